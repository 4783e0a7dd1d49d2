"""A client that Keap rejects or does not answer is blocked until a probe succeeds."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from subprocess import PIPE
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft import signals, waiting
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import (
    ClientRejected,
    ConfigurationError,
    InfusionsoftError,
    ReauthorizationRequired,
    TemporarilyUnavailable,
)
from django_infusionsoft.models import Application, ApplicationState, Credential
from django_infusionsoft.refresh import timing
from django_infusionsoft.sandbox import Sandbox, faults
from tests.processes import started
from tests.support import SECOND, ask, keap_with, received, row, run, threads

Connect = Callable[..., Credential]
ACCOUNTS = ["ab123", *(f"acc{number:02}" for number in range(1, 24))]
WRONG = override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong")
REJECTED = faults.answer(401, {"error": "invalid_client", "error_description": "Client disabled"})

# A process that asks for an access token once it reads a line.
READER = """
import django

django.setup()

from django_infusionsoft.models import Credential

credential = Credential.objects.for_account("ab123")
print("ready", flush=True)
input()
try:
    print(credential.get_access_token())
except Exception as error:
    print(type(error).__name__)
"""


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with keap_with(ACCOUNTS) as running:
        yield running


@pytest.fixture
def of_second(sandbox: Sandbox, second: Application) -> Credential:
    """A credential of the other application, whose access token has expired."""
    reply = sandbox.issue("acc23", client_id=SECOND.client_id)
    return Credential.objects.import_tokens(
        account="acc23",
        access_token=reply["access_token"],
        refresh_token=reply["refresh_token"],
        expires_at=timezone.now() - timedelta(seconds=1),
        application=second,
    )


def refresh(credential: Credential) -> str:
    try:
        row(credential).refresh()
    except InfusionsoftError as error:
        return type(error).__name__
    return "refreshed"


def end_delays() -> None:
    past = timezone.now() - timedelta(seconds=1)
    Credential.objects.filter(refresh_at__isnull=False).update(refresh_at=past)
    make_probe_due()


def make_probe_due() -> None:
    ApplicationState.objects.update(probe_at=timezone.now() - timedelta(seconds=1))


def move_hours_back() -> None:
    past = timezone.now() - timedelta(hours=2)
    ApplicationState.objects.filter(notified_at__isnull=False).update(notified_at=past)
    ApplicationState.objects.update(probe_at=past, since=past)


def presented(sandbox: Sandbox) -> list[str]:
    """Return the accounts whose refresh tokens were presented, in order, without probes."""
    return [request.account for request in sandbox.token_requests if request.account]


def probes(sandbox: Sandbox) -> int:
    return len(sandbox.token_requests) - len(presented(sandbox))


def messages(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage().split()[0] == name]


def seconds_until_probe(application: Application | None = None) -> float:
    state = ApplicationState.objects.get(application=application)
    return (state.probe_at - timezone.now()).total_seconds()


# Keap rejects the client


def test_rejected_client_is_reported_once_when_many_refreshes_fail(
    sandbox: Sandbox, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    credentials = [connect(account, seconds_left=-1) for account in ACCOUNTS[:5]]
    with WRONG, received(signals.application_rejected) as signal:
        for _ in range(3):
            make_probe_due()
            for credential in credentials:
                assert ask(credential) == "ClientRejected"
                assert refresh(credential) == "ClientRejected"
            run()
    (record,) = messages(caplog, "application_rejected")
    assert record.levelno == logging.ERROR
    assert [call["application"] for call in signal] == [None]
    assert "client secret" in signal[0]["error"]


def test_only_one_refresh_token_is_presented_while_the_client_is_rejected(
    sandbox: Sandbox, connect: Connect
) -> None:
    credentials = [connect(account, seconds_left=-1) for account in ACCOUNTS[:5]]
    with WRONG:
        for _ in range(3):
            end_delays()
            run()
            for credential in credentials:
                ask(credential)
                refresh(credential)
    assert len(presented(sandbox)) == 1
    assert probes(sandbox) == 3  # one after the attempt, and two when they were due


def test_credentials_are_unchanged_when_the_client_is_rejected(
    sandbox: Sandbox, connect: Connect
) -> None:
    credentials = [connect(account, seconds_left=-1) for account in ACCOUNTS[:5]]
    before = list(Credential.objects.order_by("pk").values())
    with WRONG:
        for credential in credentials:
            refresh(credential)
            ask(credential)
    assert list(Credential.objects.order_by("pk").values()) == before


def test_credentials_are_unchanged_when_the_client_is_rejected_in_a_run(
    sandbox: Sandbox, connect: Connect
) -> None:
    for account in ACCOUNTS[:5]:
        connect(account, seconds_left=-1)
    end_delays()
    with WRONG:
        assert run() == {"misconfigured": 1, "stopped": 1}
        assert run() == {"stopped": 1}
    harmed = Credential.objects.exclude(status="connected", failures=0, last_error="", reason="")
    assert not harmed.exists()
    assert Credential.objects.due().count() == 5


def test_reader_fails_at_once_and_nothing_is_sent_while_the_client_is_rejected(
    sandbox: Sandbox, expired: Credential
) -> None:
    with WRONG:
        ask(expired)
        before = len(sandbox.token_requests)
        with pytest.raises(ClientRejected, match="client secret"):
            row(expired).get_access_token()
        assert len(sandbox.token_requests) == before


def test_valid_access_token_is_returned_while_the_client_is_rejected(
    sandbox: Sandbox, connect: Connect
) -> None:
    fresh, ageing, ended = (
        connect("ab123"),
        connect("acc01", seconds_left=200),
        connect("acc02", seconds_left=-1),
    )
    a_day_ago = timezone.now() - timedelta(hours=23)
    Credential.objects.filter(pk=ageing.pk).update(issued_at=a_day_ago)
    with WRONG:
        ask(ended)
        before = len(sandbox.token_requests)
        assert (ask(fresh), ask(ageing)) == (fresh.access_token, ageing.access_token)
        assert len(sandbox.token_requests) == before


def test_probe_delays_grow_while_the_client_is_rejected(
    sandbox: Sandbox, expired: Credential
) -> None:
    with WRONG:
        for number in range(8):
            assert ask(expired) == "ClientRejected"
            assert probes(sandbox) == number + 1
            assert seconds_until_probe() == pytest.approx(timing.probe_pause(number), abs=2)
            ask(expired)  # not due yet
            assert probes(sandbox) == number + 1
            make_probe_due()
    assert len(presented(sandbox)) == 1
    assert timing.probe_pause(7) == timing.MAX_PROBE_PAUSE_SECONDS


@pytest.mark.django_db(transaction=True)
def test_one_thread_probes_and_the_others_fail_at_once_when_a_probe_is_due(
    sandbox: Sandbox, expired: Credential
) -> None:
    with WRONG, threads(2) as start:
        ask(expired)
        make_probe_due()
        gate = sandbox.hold("before", account="")
        first = start(lambda: ask(expired))
        gate.wait_until_arrived()
        second = start(lambda: ask(expired))
        assert second.result(timeout=10) == ask(expired) == refresh(expired) == "ClientRejected"
        assert run() == {"stopped": 1}
        assert not first.done()
        gate.release()
        assert first.result(timeout=10) == "ClientRejected"
    assert (probes(sandbox), len(presented(sandbox))) == (2, 1)


@pytest.mark.django_db(transaction=True)
def test_one_process_probes_when_many_ask_as_a_probe_becomes_due(
    sandbox: Sandbox, expired: Credential, database_url: str
) -> None:
    with WRONG:
        ask(expired)
        make_probe_due()
        gate = sandbox.hold("before", account="")
        settings = {**sandbox.settings, "INFUSIONSOFT_CLIENT_SECRET": "wrong"}
        pipes: dict[str, Any] = {"stdin": PIPE, "stdout": PIPE}
        with ExitStack() as stack:
            readers = [
                stack.enter_context(
                    started("-c", READER, database_url=database_url, settings=settings, **pipes)
                )
                for _ in range(2)
            ]
            for reader in readers:
                assert reader.stdout
                assert reader.stdout.readline() == "ready\n"
            for reader in readers:
                assert reader.stdin
                reader.stdin.write("go\n")
                reader.stdin.flush()
            gate.wait_until_arrived(timeout=20)
            assert ask(expired) == "ClientRejected"
            gate.release()
            answers = [reader.stdout.readline() for reader in readers if reader.stdout]
    assert answers == ["ClientRejected\n"] * 2
    assert (probes(sandbox), len(presented(sandbox))) == (2, 1)


@pytest.mark.django_db(transaction=True)
def test_one_attempt_and_one_probe_are_sent_when_many_wait_and_the_client_is_rejected(
    sandbox: Sandbox, expired: Credential
) -> None:
    gate = sandbox.hold("before", account="ab123")
    with WRONG, threads(20) as start:
        waiters = [start(lambda: ask(expired)) for _ in range(20)]
        gate.wait_until_arrived()
        gate.release()
        assert {waiter.result(timeout=30) for waiter in waiters} == {"ClientRejected"}
    assert len(presented(sandbox)) == 1
    assert probes(sandbox) <= 1


def test_refreshes_resume_automatically_when_keap_accepts_the_client_again(
    sandbox: Sandbox, connect: Connect
) -> None:
    first, other = connect("ab123", seconds_left=-1), connect("acc01", seconds_left=-1)
    end_delays()
    sandbox.plan(REJECTED, times=None)
    assert run() == {"misconfigured": 1, "stopped": 1}
    sandbox.clear_plan()  # fixed
    assert run() == {"stopped": 1}
    assert ask(first) == ask(other) == "ClientRejected"
    make_probe_due()
    assert run() == {"refreshed": 2}


def test_probe_is_sent_when_the_client_was_blocked_at_a_full_second(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(REJECTED, times=None)
    assert ask(expired) == "ClientRejected"
    sandbox.clear_plan()
    with connection.cursor() as cursor:
        # As SQLite's clock writes it. Django would write no fraction.
        since = ["2026-01-01 00:00:00.000"]
        cursor.execute("UPDATE django_infusionsoft_applicationstate SET since = %s", since)
    end_delays()
    assert run() == {"refreshed": 1}


def test_reader_gets_an_access_token_when_keap_accepts_the_client_again(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(REJECTED, times=None)
    ask(expired)
    sandbox.clear_plan()
    make_probe_due()
    assert ask(expired) == row(expired).access_token != expired.access_token


def reject_repeatedly(credential: Credential) -> None:
    """Let so many probes fail that the next one is minutes away."""
    for _ in range(6):
        assert ask(credential) == "ClientRejected"
        make_probe_due()
    ask(credential)
    assert seconds_until_probe(credential.application) > 300


@pytest.mark.parametrize("way", [ask, refresh])
def test_refreshes_resume_at_once_when_the_secret_in_the_settings_changes(
    sandbox: Sandbox, expired: Credential, way: Callable[[Credential], str]
) -> None:
    with WRONG:
        reject_repeatedly(expired)
    way(expired)
    assert row(expired).generation == 2


def test_run_resumes_at_once_when_the_secret_in_the_settings_changes(
    sandbox: Sandbox, connect: Connect
) -> None:
    credentials = [connect(account, seconds_left=-1) for account in ACCOUNTS[:3]]
    with WRONG:
        reject_repeatedly(credentials[0])
    Credential.objects.update(refresh_at=timezone.now() - timedelta(seconds=1))
    assert run() == {"refreshed": 3}


def test_refreshes_resume_at_once_when_the_secret_of_an_application_changes(
    sandbox: Sandbox, second: Application, of_second: Credential
) -> None:
    second.client_secret = "wrong"
    second.save()
    loaded = row(of_second)  # as a long-running process has it
    reject_repeatedly(of_second)
    second.client_secret = SECOND.client_secret
    second.save()
    assert loaded.get_access_token() == row(of_second).access_token != of_second.access_token
    assert row(of_second).generation == 2


def test_new_wrong_secret_is_probed_once_before_the_next_probe_is_due(
    sandbox: Sandbox, expired: Credential
) -> None:
    with WRONG:
        reject_repeatedly(expired)
    before = probes(sandbox)
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong as well"):
        for _ in range(3):
            assert ask(expired) == "ClientRejected"
    assert (probes(sandbox) - before, len(presented(sandbox))) == (1, 1)


def test_each_secret_is_probed_once_when_machines_have_different_wrong_secrets(
    sandbox: Sandbox, expired: Credential
) -> None:
    for secret in ["wrong", "wrong as well"] * 5:
        with override_settings(INFUSIONSOFT_CLIENT_SECRET=secret):
            assert ask(expired) == "ClientRejected"
    assert (probes(sandbox), len(presented(sandbox))) == (2, 1)


def test_accepted_client_is_reported_once(
    sandbox: Sandbox, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="django_infusionsoft")
    credentials = [connect(account, seconds_left=-1) for account in ACCOUNTS[:3]]
    with received(signals.application_accepted) as signal:
        with WRONG:
            ask(credentials[0])
        assert signal == []
        for credential in credentials:
            assert ask(credential) == row(credential).access_token
        run()
    assert [call["application"] for call in signal] == [None]
    assert len(messages(caplog, "application_accepted")) == 1


@pytest.mark.parametrize(("is_hours_later", "reports"), [(True, 3), (False, 1)])
def test_rejection_that_comes_and_goes_is_reported_once_an_hour(
    sandbox: Sandbox,
    expired: Credential,
    caplog: pytest.LogCaptureFixture,
    *,
    is_hours_later: bool,
    reports: int,
) -> None:
    with (
        received(signals.application_rejected) as rejected,
        received(signals.application_accepted) as accepted,
    ):
        for _ in range(3):
            with WRONG:
                assert refresh(expired) == "ClientRejected"
            if is_hours_later:
                move_hours_back()
            assert refresh(expired) == "refreshed"
    assert len(rejected) == len(messages(caplog, "application_rejected")) == reports
    assert len(accepted) == reports


def test_rejection_is_reported_once_when_it_lasts_for_hours(
    sandbox: Sandbox, expired: Credential, caplog: pytest.LogCaptureFixture
) -> None:
    with WRONG, received(signals.application_rejected) as signal:
        for _ in range(3):
            assert ask(expired) == "ClientRejected"
            move_hours_back()
    assert probes(sandbox) == 3
    assert len(signal) == len(messages(caplog, "application_rejected")) == 1


def test_client_stays_in_use_when_it_is_rejected_for_only_one_credential(
    sandbox: Sandbox, connect: Connect
) -> None:
    odd, other = connect("ab123", seconds_left=-1), connect("acc01", seconds_left=-1)
    sandbox.plan(REJECTED, account="ab123", times=None)
    with received(signals.application_rejected) as signal:
        assert ask(odd) == "ClientRejected"
        assert ask(other) == row(other).access_token
    assert signal == []
    after = row(odd)
    assert (after.status, after.failures) == ("connected", 0)
    assert not Credential.objects.due().filter(pk=odd.pk).exists()
    sandbox.clear_plan()
    end_delays()
    assert run() == {"refreshed": 2}


def test_application_is_refreshed_when_the_settings_client_is_rejected(
    sandbox: Sandbox, expired: Credential, of_second: Credential
) -> None:
    with WRONG:
        ask(expired)
        assert ask(of_second) == row(of_second).access_token
        assert refresh(of_second) == "refreshed"
        Credential.objects.update(refresh_at=timezone.now() - timedelta(seconds=1))
        assert run() == {"refreshed": 1, "stopped": 1}
    assert row(of_second).generation == 4
    assert not ApplicationState.objects.filter(application__isnull=False).exists()


def test_settings_client_is_refreshed_when_an_application_is_rejected(
    sandbox: Sandbox, second: Application, expired: Credential, of_second: Credential
) -> None:
    second.client_secret = "wrong"
    second.save()
    with received(signals.application_rejected) as signal:
        assert ask(of_second) == "ClientRejected"
    assert [call["application"] for call in signal] == [second]
    end_delays()
    assert run() == {"refreshed": 1, "stopped": 1}
    assert row(expired).generation == 2


def test_each_client_has_its_own_state_when_both_are_rejected(
    sandbox: Sandbox, second: Application, expired: Credential, of_second: Credential
) -> None:
    second.client_secret = "wrong"
    second.save()
    with WRONG, received(signals.application_rejected) as signal:
        end_delays()
        assert run() == {"misconfigured": 2, "stopped": 2}
        assert ask(expired) == ask(of_second) == "ClientRejected"
        assert {call["application"] for call in signal} == {None, second}
    assert ask(expired) == row(expired).access_token  # the settings are correct again
    blocked_applications = ApplicationState.objects.values_list("application", "block_reason")
    assert set(blocked_applications) == {(None, ""), (second.pk, "rejected")}
    assert ask(of_second) == "ClientRejected"


def test_only_the_error_is_stored_when_no_client_is_configured(
    sandbox: Sandbox, expired: Credential
) -> None:
    before: dict[str, Any] = {**Credential.objects.values().get()}
    with override_settings(INFUSIONSOFT_CLIENT_ID=""), pytest.raises(ConfigurationError):
        row(expired).refresh()
    after = Credential.objects.values().get()
    changed = {name for name, value in after.items() if value != before[name]}
    assert changed == {"last_error", "failing_since", "failed_outcome"}
    assert sandbox.token_requests == []


# Keap accepts requests but does not reply


def test_valid_access_token_is_returned_after_a_lost_reply(
    sandbox: Sandbox, connect: Connect
) -> None:
    ageing, fresh = connect("ab123", seconds_left=200), connect("acc01")
    Credential.objects.filter(pk=ageing.pk).update(issued_at=timezone.now() - timedelta(hours=23))
    sandbox.plan(faults.drop_after(), times=None)
    for _ in range(3):
        assert ask(ageing) == ageing.access_token
        assert ask(fresh) == fresh.access_token
    assert presented(sandbox) == ["ab123"]


@pytest.mark.django_db(transaction=True)
def test_nothing_is_presented_after_a_lost_reply_until_a_probe_is_answered(
    sandbox: Sandbox, connect: Connect
) -> None:
    lost, other, third = (connect(account, seconds_left=-1) for account in ACCOUNTS[:3])
    sandbox.plan(faults.drop_before(), account="ab123")
    assert ask(lost) == "OutcomeUnknown"
    gate = sandbox.hold("after", account="")
    with threads(1) as start:
        first = start(lambda: ask(other))
        gate.wait_until_processed()
        assert ask(third) == refresh(third) == refresh(lost) == "TemporarilyUnavailable"
        end_credential_delays()
        assert run() == {"stopped": 1}
        assert presented(sandbox) == ["ab123"]
        gate.release()
        assert first.result(timeout=10) == row(other).access_token
    assert presented(sandbox) == ["ab123", "acc01"]
    assert refresh(third) == "refreshed"


def end_credential_delays() -> None:
    past = timezone.now() - timedelta(seconds=1)
    Credential.objects.update(refresh_at=past)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fault", [REJECTED, faults.drop_before()], ids=["rejected", "unanswered"])
def test_nothing_is_presented_between_storing_a_failure_and_blocking_the_client(
    sandbox: Sandbox, expired: Credential, fault: faults.Fault
) -> None:
    sandbox.plan(fault, times=None)
    results: list[str] = []

    def refresh_in_between(execute: Any, sql: str, *rest: Any) -> Any:
        result = execute(sql, *rest)
        is_credential = sql.startswith("UPDATE") and "django_infusionsoft_credential" in sql
        if is_credential and sandbox.token_requests and not results:
            with threads(1) as start:
                results.append(start(lambda: refresh(expired)).result(timeout=20))
        return result

    with connection.execute_wrapper(refresh_in_between):
        refresh(expired)
    assert results
    assert sandbox.presentations(expired.refresh_token) == 1


def test_probe_delays_grow_while_probes_get_no_answer(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(faults.drop_before(), times=None)
    assert refresh(expired) == "OutcomeUnknown"
    for number in range(4):
        assert refresh(expired) == "TemporarilyUnavailable"
        assert probes(sandbox) == number + 1
        assert seconds_until_probe() == pytest.approx(
            timing.probe_pause(number, longest=60), abs=2
        )
        refresh(expired)  # not due yet
        assert probes(sandbox) == number + 1
        make_probe_due()
    assert len(presented(sandbox)) == 1


def test_probe_that_the_callers_limit_ends_does_not_lengthen_the_pause(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(faults.drop_before())
    refresh(expired)
    ApplicationState.objects.update(probes=5)
    make_probe_due()
    gate = sandbox.hold("before")
    with override_settings(INFUSIONSOFT_WAIT_SECONDS=1.5):
        assert refresh(expired) == "TemporarilyUnavailable"
    gate.wait_until_arrived()
    assert ApplicationState.objects.get(application=None).probes == 5
    assert seconds_until_probe() == pytest.approx(timing.probe_pause(4, longest=60), abs=2)


def test_probe_is_left_to_others_when_the_callers_limit_is_too_short(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(faults.drop_before())
    refresh(expired)
    make_probe_due()
    with waiting.limited(0.1):
        assert refresh(expired) == "TemporarilyUnavailable"
    assert probes(sandbox) == 0
    assert seconds_until_probe() < 0


def test_error_says_when_the_next_probe_is_due(sandbox: Sandbox, connect: Connect) -> None:
    lost, other = connect("ab123", seconds_left=-1), connect("acc01", seconds_left=-1)
    sandbox.plan(faults.drop_before(), times=None)
    refresh(lost)
    refresh(other)
    with pytest.raises(TemporarilyUnavailable) as caught:
        other.refresh()
    assert caught.value.retry_after == pytest.approx(timing.probe_pause(0), abs=2)


def test_error_says_when_the_next_probe_is_due_when_the_callers_own_probe_failed(
    sandbox: Sandbox, connect: Connect
) -> None:
    lost, other = connect("ab123", seconds_left=-1), connect("acc01", seconds_left=-1)
    sandbox.plan(faults.drop_before(), times=None)
    refresh(lost)
    with pytest.raises(TemporarilyUnavailable) as caught:
        other.refresh()
    assert caught.value.retry_after == pytest.approx(timing.probe_pause(0), abs=2)


def test_client_is_reported_as_rejected_when_the_probe_is_rejected(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(faults.drop_before(), account="ab123")
    refresh(expired)
    with WRONG, received(signals.application_rejected) as signal:
        assert refresh(expired) == "ClientRejected"
    assert len(signal) == 1
    make_probe_due()
    assert refresh(expired) == "refreshed"
    assert len(presented(sandbox)) == 2


@pytest.mark.parametrize("begins", ["before the run", "in the middle of it"])
@pytest.mark.parametrize("fault", [faults.drop_before(), faults.drop_after()], ids=str)
def test_at_most_one_batch_of_grants_is_at_risk_when_keap_answers_nothing(
    sandbox: Sandbox, connect: Connect, fault: faults.Fault, begins: str
) -> None:
    credentials = [connect(account, seconds_left=-1) for account in ACCOUNTS[:12]]
    old = {each.account: each.refresh_token for each in credentials}
    end_delays()
    if begins == "in the middle of it":
        sandbox.plan(faults.Fault())  # the run's first call succeeds
    sandbox.plan(fault, times=None)
    run()
    for _ in range(3):
        end_delays()
        run()
        for credential in credentials[::4]:
            ask(credential)
            refresh(credential)
    unanswered = Credential.objects.filter(unanswered_attempts__gt=0)
    exposed = {account for account, token in old.items() if sandbox.presentations(token)}
    exposed -= set(Credential.objects.filter(generation=2).values_list("account", flat=True))
    assert exposed == set(unanswered.values_list("account", flat=True))
    assert 1 <= len(exposed) <= (1 if begins == "before the run" else conf.REFRESH_CONCURRENCY)
    assert not unanswered.filter(unanswered_attempts__gt=1).exists()

    sandbox.clear_plan()  # the outage is over
    end_delays()
    run()
    was_rotated = fault.drop == "after"
    ended = Credential.objects.filter(status="reauthorization_required")
    assert set(ended.values_list("account", flat=True)) == (exposed if was_rotated else set())
    assert {each.reason for each in ended} == ({"rotation_lost"} if was_rotated else set())
    others = Credential.objects.exclude(account__in=ended.values("account"))
    assert not others.exclude(status="connected", failures=0, generation__gte=2).exists()


# A refresh token that has been presented twice without an answer


@pytest.fixture
def given_up(sandbox: Sandbox, expired: Credential) -> Credential:
    """Neither the first attempt nor the retry was answered; Keap has received neither."""
    sandbox.plan(faults.drop_before(), times=2, account="ab123")
    for _ in range(2):
        end_delays()
        assert run() == {"unknown": 1}
    return expired


def test_refresh_token_is_not_presented_a_third_time_automatically(
    sandbox: Sandbox, given_up: Credential
) -> None:
    with received(signals.reauthorization_required) as signal:
        for _ in range(3):
            end_delays()
            run()
            assert ask(given_up) == "ReauthorizationRequired"
    assert sandbox.presentations(given_up.refresh_token) == 2
    assert [call["reason"] for call in signal] == ["unanswered"]
    after = row(given_up)
    assert (after.status, after.reason) == ("reauthorization_required", "unanswered")
    assert after.refresh_token == given_up.refresh_token
    event = given_up.events.get(kind="reauthorization_required")
    assert (event.outcome, event.reason) == ("rejected", "unanswered")
    assert not Credential.objects.due().exists()


def test_refresh_token_is_not_presented_a_third_time_by_a_reader(
    sandbox: Sandbox, given_up: Credential
) -> None:
    end_delays()
    with pytest.raises(ReauthorizationRequired) as caught:
        row(given_up).get_access_token()
    assert caught.value.reason == "unanswered"
    assert sandbox.presentations(given_up.refresh_token) == 2


def test_refresh_token_is_presented_once_more_when_a_user_asks(
    sandbox: Sandbox, given_up: Credential
) -> None:
    end_delays()
    run()
    assert refresh(given_up) == "refreshed"
    after = row(given_up)
    assert (after.status, after.reason, after.unanswered_attempts) == ("connected", "", 0)
    assert sandbox.presentations(given_up.refresh_token) == 3
    end_delays()
    assert run() == {"refreshed": 1}


def test_reason_is_rotation_lost_when_a_user_retries_and_keap_had_rotated(
    sandbox: Sandbox, expired: Credential
) -> None:
    for fault in (faults.drop_before(), faults.drop_after()):
        sandbox.plan(fault, account="ab123")
        end_delays()
        run()
    end_delays()
    run()
    assert row(expired).reason == "unanswered"
    assert refresh(expired) == "ReauthorizationRequired"
    assert row(expired).reason == "rotation_lost"
    assert refresh(expired) == "ReauthorizationRequired"
    assert sandbox.presentations(expired.refresh_token) == 3


def test_each_request_of_a_user_presents_it_once_when_keap_does_not_answer(
    sandbox: Sandbox, given_up: Credential
) -> None:
    end_delays()
    run()
    sandbox.plan(faults.drop_before(), times=None, account="ab123")
    assert refresh(given_up) == "OutcomeUnknown"
    for _ in range(3):
        end_delays()
        run()
        ask(given_up)
    assert sandbox.presentations(given_up.refresh_token) == 3
    assert row(given_up).reason == "unanswered"
    sandbox.clear_plan()
    assert refresh(given_up) == "refreshed"


def test_valid_access_token_is_returned_when_the_refresh_token_is_given_up(
    sandbox: Sandbox, given_up: Credential
) -> None:
    end_delays()
    run()
    in_an_hour = timezone.now() + timedelta(hours=1)
    Credential.objects.update(expires_at=in_an_hour)
    assert row(given_up).status == "reauthorization_required"
    assert ask(given_up) == given_up.access_token
    ageing = {"issued_at": timezone.now() - timedelta(hours=23)}
    Credential.objects.update(**ageing, expires_at=timezone.now() + timedelta(seconds=200))
    assert ask(given_up) == given_up.access_token
    assert sandbox.presentations(given_up.refresh_token) == 2
