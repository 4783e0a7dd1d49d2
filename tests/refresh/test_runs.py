"""A run refreshes what is due: what it refreshes, why it ends, what it leaves, what it costs."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import Any

import pytest
from django.db import DataError, connection, connections
from django.db.backends.signals import connection_created
from django.db.models import F
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_infusionsoft.exceptions import TemporarilyUnavailable
from django_infusionsoft.fields import Ciphertext, get_cipher
from django_infusionsoft.keap.oauth import TokenPair
from django_infusionsoft.models import Application, ApplicationState, Credential, CredentialEvent
from django_infusionsoft.refresh import leases
from django_infusionsoft.refresh.attempt_pool import FAILURES_THAT_HALT
from django_infusionsoft.refresh.run_result import Run
from django_infusionsoft.sandbox import Fault, Gate, Sandbox, faults
from tests.support import end_leases, keap_with, row, thread_limit, threads
from tests.web import OTHER_KEY

Due = Callable[..., Credential]
ACCOUNTS = [f"acc{number:02}" for number in range(64)]
ONE_BY_ONE = override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=1)
TWO_BY_TWO = override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=2)
EIGHT_AT_ONCE = override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=8)
DOWN = faults.error_503()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with keap_with(ACCOUNTS) as running:
        yield running


@pytest.fixture
def batch(due: Due) -> list[Credential]:
    """Connect twelve credentials that are due; the most urgent is first."""
    return [row(due(account, 60 - place)) for place, account in enumerate(ACCOUNTS[:12])]


def counts(run: Run) -> dict[str, int]:
    return {name: count for name, count in run.as_dict().items() if count}


def presented(sandbox: Sandbox) -> list[str]:
    """Return the accounts whose refresh tokens were presented, in order, without probes."""
    return [request.account for request in sandbox.token_requests if request.account]


def asked(sandbox: Sandbox) -> list[str]:
    """Return the account of each token request, in order; it is empty for probes."""
    return [request.account for request in sandbox.token_requests]


def probes(sandbox: Sandbox) -> int:
    return len(sandbox.token_requests) - len(presented(sandbox))


def held(sandbox: Sandbox, credentials: list[Credential]) -> Gate:
    """Hold the answers to these credentials' refreshes at one gate."""
    gate = Gate("after")
    for credential in credentials:
        sandbox.plan(faults.hold(gate), account=credential.account)
    return gate


def wait_until(has_happened: Callable[[], object]) -> None:
    """Wait until other threads have changed the database."""
    ends_at = time.monotonic() + 20
    while not has_happened():
        assert time.monotonic() < ends_at, "Waited for 20 seconds."
        time.sleep(0.02)


def leased() -> int:
    return Credential.objects.filter(lease_until__isnull=False).count()


def assert_unchanged(credentials: list[Credential]) -> None:
    """Assert that the rows are unchanged: due as before, and no failure counted."""
    assert credentials
    for before in credentials:
        after = row(before)
        assert after.refresh_at == before.refresh_at
        assert (after.lease_until, after.lease_id, after.lease_holder) == (None, "", "")
        assert (after.generation, after.status) == (before.generation, "connected")
        assert after.unanswered_attempts == before.unanswered_attempts
        assert (after.failures, after.last_error) == (before.failures, "")
        assert [event.kind for event in after.events.all()] == ["imported"]


def make_probes_due() -> None:
    ApplicationState.objects.update(probe_at=timezone.now() - timedelta(seconds=1))


def state() -> ApplicationState:
    """Return the state of the client in the settings."""
    return ApplicationState.objects.get(application=None)


def seconds_until_probe() -> float:
    return (state().probe_at - timezone.now()).total_seconds()


# What a run refreshes


def test_run_refreshes_only_what_is_due(
    sandbox: Sandbox, due: Due, connect: Callable[..., Credential]
) -> None:
    late, early = due(ACCOUNTS[0]), due("acc01", minutes=-60)
    fresh = connect("acc02")
    run = Credential.objects.refresh_due()
    assert counts(run) == {"refreshed": 1}
    assert run.succeeded
    assert [row(each).generation for each in (late, early, fresh)] == [2, 1, 1]
    assert asked(sandbox) == [ACCOUNTS[0]]


@ONE_BY_ONE
def test_run_starts_with_the_most_urgent(sandbox: Sandbox, due: Due, second: Application) -> None:
    due("acc01", 10)
    due("acc02", 30)
    due("acc03", 20, application=second)
    Credential.objects.refresh_due()
    assert asked(sandbox) == ["acc02", "acc03", "acc01"]


def test_run_refreshes_several_accounts_of_several_applications(
    sandbox: Sandbox, due: Due, second: Application
) -> None:
    for account in ACCOUNTS[:12]:
        due(account)
    for account in ACCOUNTS[6:18]:
        due(account, application=second)
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 24}
    used = {(request.client_id, request.account) for request in sandbox.token_requests}
    assert len(used) == len(sandbox.token_requests) == 24
    assert not Credential.objects.due().exists()
    assert not Credential.objects.exclude(generation=2).exists()


def test_run_refreshes_only_one_application_when_called_on_its_credentials(
    due: Due, second: Application
) -> None:
    other = due(ACCOUNTS[0])
    due(ACCOUNTS[0], application=second)
    assert counts(second.credentials.refresh_due()) == {"refreshed": 1}
    assert row(other).generation == 1


def test_run_continues_when_one_account_is_revoked(sandbox: Sandbox, due: Due) -> None:
    dead = due("acc01", 60)
    others = [due(account) for account in ACCOUNTS[2:6]]
    sandbox.revoke("acc01")
    run = Credential.objects.refresh_due()
    assert counts(run) == {"refreshed": 4, "rejected": 1}
    assert not run.succeeded
    assert row(dead).status == "reauthorization_required"
    assert [row(each).generation for each in others] == [2] * 4


def test_run_continues_when_one_answer_is_lost(sandbox: Sandbox, due: Due) -> None:
    lost = due("acc01", 60)
    for account in ACCOUNTS[2:6]:
        due(account)
    sandbox.plan(faults.drop_after(), account="acc01")
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 4, "unknown": 1}
    assert row(lost).unanswered_attempts == 1


def test_run_continues_when_no_key_can_decrypt_one_credential(sandbox: Sandbox, due: Due) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]):
        locked = due("acc01", 60)
    for account in ACCOUNTS[2:6]:
        due(account)
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 4, "unreadable": 1}
    assert "acc01" not in asked(sandbox)
    assert (row(locked).status, row(locked).failures) == ("connected", 1)
    assert "refresh_token" in row(locked).last_error


def test_run_continues_when_one_stored_token_is_not_text(sandbox: Sandbox, due: Due) -> None:
    damaged, other = due(ACCOUNTS[0], 60), due(ACCOUNTS[1])
    no_text = Ciphertext(get_cipher().encrypt(b"\xff\xfe").decode())
    rows = Credential.objects.filter(pk=damaged.pk)
    # As a process that died has left it: the run reports that too.
    expired = timezone.now() - timedelta(minutes=1)
    rows.update(refresh_token=no_text, lease_until=expired, lease_is_used=True, lease_id="dead")
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 1, "unreadable": 1}
    assert (row(damaged).generation, row(other).generation) == (1, 2)


@pytest.mark.parametrize("answer", ["rotated", "rejected"])
def test_run_continues_when_a_credential_is_deleted_during_its_refresh(
    transactional_db: None, sandbox: Sandbox, due: Due, answer: str
) -> None:
    deleted = due("acc01", 60)
    others = [due(account) for account in ACCOUNTS[2:6]]
    if answer == "rejected":
        sandbox.revoke("acc01")
    gate = sandbox.hold(account="acc01")
    with threads(1) as start:
        run = start(Credential.objects.refresh_due)
        gate.wait_until_processed()
        Credential.objects.filter(pk=deleted.pk).delete()
        gate.release()
    assert run.result().refreshed == 4
    assert [row(each).generation for each in others] == [2] * 4


def test_all_other_replies_of_a_batch_are_stored_when_one_credential_is_deleted(
    transactional_db: None, sandbox: Sandbox, due: Due
) -> None:
    due("acc09", 90)  # refreshed first, as the probe
    deleted = due("acc01", 60)
    others = [due(account) for account in ACCOUNTS[2:6]]
    gates = [sandbox.hold(account=each.account) for each in (deleted, *others)]
    with threads(1) as start:
        run = start(Credential.objects.refresh_due)
        for gate in gates:
            gate.wait_until_processed()
        Credential.objects.filter(pk=deleted.pk).delete()
        for gate in gates:
            gate.release()
    assert run.result().refreshed == 5
    assert [row(each).generation for each in others] == [2] * 4


@contextmanager
def failing_store(credential: Credential, error: BaseException) -> Iterator[None]:
    """Raise an error when the token pair of one credential is written."""

    def fail(execute: Callable[..., Any], sql: str, params: Any, *rest: Any) -> Any:
        # The last parameters of that write are the primary key and the generation.
        if sql.startswith("UPDATE") and tuple(params[-2:]) == (credential.pk, 1):
            raise error
        return execute(sql, params, *rest)

    with connection.execute_wrapper(fail):
        yield


@pytest.mark.parametrize("with_error", [DataError("disk full"), KeyboardInterrupt()])
def test_all_other_replies_of_a_batch_are_stored_when_storing_one_fails(
    transactional_db: None,
    sandbox: Sandbox,
    due: Due,
    with_error: BaseException,
) -> None:
    due("acc09", 90)  # refreshed first, as the probe
    broken = due("acc01", 60)
    others = [due(account) for account in ACCOUNTS[2:6]]
    with failing_store(broken, with_error), pytest.raises(type(with_error)):
        Credential.objects.refresh_due()
    assert [row(each).generation for each in others] == [2] * 4
    assert row(broken).generation == 1
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 1}
    assert row(broken).generation == 2


def test_run_refreshes_everything_with_the_threads_that_the_system_allows(
    batch: list[Credential],
) -> None:
    with thread_limit("infusionsoft", 1):
        assert counts(Credential.objects.refresh_due()) == {"refreshed": 12}


def test_run_says_that_nothing_was_sent_when_no_thread_can_be_started(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    with (
        thread_limit("infusionsoft"),
        pytest.raises(TemporarilyUnavailable, match="No thread can be started"),
    ):
        Credential.objects.refresh_due()
    assert sandbox.token_requests == []
    assert_unchanged(batch)


def test_credential_is_skipped_when_another_process_is_refreshing_it(
    sandbox: Sandbox, due: Due
) -> None:
    busy = due("acc01", 60)
    due("acc02")
    assert leases.claim(busy)
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 1}
    assert asked(sandbox) == ["acc02"]


def test_credential_of_a_dead_process_is_picked_up_when_its_lease_has_expired(
    sandbox: Sandbox, due: Due
) -> None:
    late = due("acc01")
    assert leases.claim(late)
    end_leases()
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 1}


@ONE_BY_ONE
def test_application_is_skipped_when_its_client_is_rejected(
    sandbox: Sandbox, due: Due, second: Application
) -> None:
    wrong = [due(account, 60, application=second) for account in ACCOUNTS[:4]]
    for account in ACCOUNTS[:4]:
        due(account)
    second.client_secret = "wrong"
    second.save()
    run = Credential.objects.refresh_due(time_limit_seconds=10)
    assert counts(run) == {"refreshed": 4, "misconfigured": 1, "stopped": 1}
    outcomes = [request.outcome for request in sandbox.token_requests]
    # The client is rejected twice: for the attempt and for a probe.
    assert outcomes == ["invalid_client", "invalid_client", *["rotated"] * 4]
    for each in wrong:
        assert (row(each).status, row(each).failures, row(each).lease_until) == (
            "connected",
            0,
            None,
        )
    assert Credential.objects.due().count() == 4


@ONE_BY_ONE
def test_run_continues_when_keap_fails_sometimes(sandbox: Sandbox, due: Due) -> None:
    for minutes, account in enumerate(ACCOUNTS[:12]):
        due(account, minutes)
        if minutes % 2:
            sandbox.plan(faults.error_503(), account=account)
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 6, "unavailable": 6}


@pytest.mark.parametrize("seconds", [0, -1])
def test_nothing_is_started_when_there_is_no_time(
    sandbox: Sandbox, due: Due, seconds: float
) -> None:
    due(ACCOUNTS[0])
    assert counts(Credential.objects.refresh_due(time_limit_seconds=seconds)) == {}
    assert sandbox.token_requests == []


def test_run_sends_several_calls_at_once(
    transactional_db: None, sandbox: Sandbox, due: Due
) -> None:
    due("acc01", 90)  # refreshed first, as the probe
    gates = []
    for account in ACCOUNTS[2:10]:
        due(account)
        gates.append(sandbox.hold(account=account))
    with threads(1) as start:
        run = start(Credential.objects.refresh_due)
        for gate in gates:
            gate.wait_until_processed()
        for gate in gates:
            gate.release()
    assert counts(run.result()) == {"refreshed": 9}


def test_number_of_queries_does_not_grow_with_the_number_of_credentials(
    sandbox: Sandbox, due: Due, connect: Callable[..., Credential]
) -> None:
    costs = []
    due(ACCOUNTS[0])
    Credential.objects.refresh_due()  # the first run of a site creates rows
    for accounts in (ACCOUNTS[2:3], ACCOUNTS[3:24]):
        for account in accounts:
            connect(account)
        for account in ACCOUNTS[:2]:
            due(account)
        with CaptureQueriesContext(connection) as queries:
            assert counts(Credential.objects.refresh_due()) == {"refreshed": 2}
        costs.append(len(queries))
    assert costs[0] == costs[1]


def test_run_asks_keap_for_the_account_of_an_unidentified_credential(
    sandbox: Sandbox, db: None
) -> None:
    reply = sandbox.issue(ACCOUNTS[0])
    pair = TokenPair(reply["access_token"], reply["refresh_token"], 3600, None)
    unidentified = Credential.objects.connect(pair, application=None)
    Credential.objects.update(refresh_at=timezone.now() - timedelta(minutes=1))
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 1}
    assert row(unidentified).account == ACCOUNTS[0]


def test_run_logs_its_counts(due: Due, caplog: pytest.LogCaptureFixture) -> None:
    due(ACCOUNTS[0])
    caplog.set_level("INFO", logger="django_infusionsoft")
    Credential.objects.refresh_due()
    assert "run_finished refreshed=1 rejected=0" in caplog.text


# Several runs


def test_second_run_claims_what_the_first_has_not_claimed(
    transactional_db: None, sandbox: Sandbox, due: Due
) -> None:
    for account in ACCOUNTS[:24]:
        due(account)
    tokens = [row(each).refresh_token for each in Credential.objects.all()]
    gate = sandbox.hold("before", times=None)
    with threads(2) as start:
        runs = [start(Credential.objects.refresh_due) for _ in range(2)]
        gate.wait_until_arrived(2)  # both have started
        gate.release()
    done = [run.result().refreshed for run in runs]
    assert sum(done) == 24
    assert min(done) > 0
    assert [sandbox.presentations(token) for token in tokens] == [1] * len(tokens)


def test_run_searches_again_when_another_has_just_claimed_what_it_found(
    transactional_db: None, sandbox: Sandbox, due: Due
) -> None:
    due("acc01", 60)
    due("acc02")

    def claim_first(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith("UPDATE") and not others:
            others.append(None)
            with threads(1) as start:
                start(lambda: leases.claim_batch(Credential.objects.due(), 1)).result()
        return execute(sql, *rest)

    others: list[None] = []
    with connection.execute_wrapper(claim_first):
        assert counts(Credential.objects.refresh_due()) == {"refreshed": 1}


@pytest.mark.parametrize("transaction_mode", ["IMMEDIATE", "DEFERRED"])
def test_each_refresh_token_is_presented_once_when_many_runs_overlap(
    transactional_db: None,
    sandbox: Sandbox,
    due: Due,
    monkeypatch: pytest.MonkeyPatch,
    transaction_mode: str,
) -> None:
    if connection.vendor == "sqlite":
        options = connection.settings_dict["OPTIONS"] | {"transaction_mode": transaction_mode}
        monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    elif transaction_mode == "DEFERRED":
        pytest.skip("a mode of SQLite's")
    for account in ACCOUNTS[:24]:
        due(account)
    with threads(4) as start:
        runs = [start(Credential.objects.refresh_due) for _ in range(4)]
    assert sum(run.result().refreshed for run in runs) == 24
    assert len(sandbox.token_requests) == 24
    assert sandbox.replays == 0


# Why a run ends


def test_run_is_done_when_nothing_more_is_due(batch: list[Credential]) -> None:
    run = Credential.objects.refresh_due()
    assert (counts(run), run.ended) == ({"refreshed": 12}, "done")


def test_run_is_done_when_nothing_was_due(sandbox: Sandbox, db: None) -> None:
    run = Credential.objects.refresh_due()
    assert (counts(run), run.succeeded, run.ended) == ({}, True, "done")
    assert sandbox.token_requests == []


def test_run_is_done_when_what_was_due_could_not_be_refreshed(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(DOWN, account=batch[0].account)
    sandbox.revoke(ACCOUNTS[1])
    run = Credential.objects.refresh_due()
    assert counts(run) == {"refreshed": 10, "unavailable": 1, "rejected": 1}
    assert run.ended == "done"


@ONE_BY_ONE
def test_run_ends_at_its_time_limit(sandbox: Sandbox, batch: list[Credential]) -> None:
    sandbox.plan(faults.latency_after(0.4))
    run = Credential.objects.refresh_due(time_limit_seconds=0.3)
    assert (counts(run), run.ended) == ({"refreshed": 1}, "time_limit")
    assert_unchanged(batch[1:])


@ONE_BY_ONE
def test_run_ends_when_it_is_stopped(sandbox: Sandbox, batch: list[Credential]) -> None:
    run = Credential.objects.refresh_due(should_stop=lambda: bool(presented(sandbox)))
    assert (counts(run), run.ended) == ({"refreshed": 1}, "stop")
    assert_unchanged(batch[1:])


def test_nothing_is_claimed_when_the_run_is_stopped_at_once(batch: list[Credential]) -> None:
    run = Credential.objects.refresh_due(should_stop=lambda: True)
    assert (counts(run), run.ended) == ({}, "stop")
    assert_unchanged(batch)


def test_run_ends_because_of_keap_when_all_that_is_due_is_blocked(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(DOWN, times=None)
    assert Credential.objects.refresh_due().ended == "keap"
    again = Credential.objects.refresh_due()
    assert (counts(again), again.ended) == ({"stopped": 1}, "keap")


# What a run leaves


@TWO_BY_TWO
def test_unused_leases_are_released_and_answers_stored_when_the_run_is_stopped(
    transactional_db: None, sandbox: Sandbox, batch: list[Credential]
) -> None:
    Credential.objects.filter(pk=batch[3].pk).update(unanswered_attempts=1)
    batch[3].refresh_from_db()
    gate, stop = held(sandbox, batch[1:]), threading.Event()
    with threads(1) as start:
        run = start(lambda: Credential.objects.refresh_due(should_stop=stop.is_set))
        gate.wait_until_processed(2)
        assert leased() > 2  # some are claimed in advance
        stop.set()
        wait_until(lambda: leased() == 2)
        assert not run.done()
        assert_unchanged(batch[3:])
        gate.release()
    assert (counts(run.result()), run.result().ended) == ({"refreshed": 3}, "stop")
    assert [row(each).generation for each in batch[:3]] == [2] * 3
    assert presented(sandbox)[0] == batch[0].account
    assert len(presented(sandbox)) == 3
    assert leased() == 0
    assert_unchanged(batch[3:])


@TWO_BY_TWO
@pytest.mark.parametrize(
    ("fault", "outcome"),
    [(faults.drop_after(), "unknown"), (faults.throttled(), "unavailable")],
    ids=["unknown outcome", "429"],
)
def test_unused_leases_are_released_when_an_answer_stops_the_run(
    transactional_db: None,
    sandbox: Sandbox,
    batch: list[Credential],
    fault: Fault,
    outcome: str,
) -> None:
    Credential.objects.filter(pk=batch[3].pk).update(unanswered_attempts=1)
    batch[3].refresh_from_db()
    halting, gate = Gate("after"), held(sandbox, batch[2:])
    sandbox.plan(faults.hold(halting) | fault, account=batch[1].account)
    with threads(1) as start:
        run = start(Credential.objects.refresh_due)
        gate.wait_until_processed(1)
        halting.release()
        wait_until(lambda: leased() == 1)  # the held one
        assert_unchanged(batch[3:])
        assert len(presented(sandbox)) == 3
        gate.release()
    done = run.result()
    if outcome == "unknown":  # the probe was answered
        assert (counts(done), done.ended) == ({"refreshed": 11, "unknown": 1}, "done")
        assert row(batch[1]).unanswered_attempts == 1
    else:
        assert counts(done) == {"refreshed": 2, "unavailable": 1, "stopped": 1}
        assert done.ended == "keap"
        assert_unchanged(batch[3:])
    assert leased() == 0


def is_store(sql: str) -> bool:
    return sql.startswith("UPDATE") and "access_token" in sql


@TWO_BY_TWO
@pytest.mark.parametrize("stored_before", [0, 1])
def test_error_is_raised_and_nothing_unsent_stays_leased_when_no_pair_can_be_stored(
    transactional_db: None, sandbox: Sandbox, batch: list[Credential], stored_before: int
) -> None:
    def fail_after(run: Run) -> None:
        if run.refreshed >= stored_before:
            failing.append(None)

    failing: list[None] = [] if stored_before else [None]

    def fail(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if failing and is_store(sql):
            raise DataError("disk full")
        return execute(sql, *rest)

    with connection.execute_wrapper(fail), pytest.raises(DataError, match="disk full"):
        Credential.objects.refresh_due(on_progress=fail_after)
    sent = presented(sandbox)
    assert len(sent) == len(set(sent)) < len(batch)
    still = Credential.objects.filter(lease_until__isnull=False)
    assert set(still.values_list("account", flat=True)) == set(sent[stored_before:])
    assert_unchanged([each for each in batch if each.account not in sent])
    # The answers are in the spool.
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 12 - stored_before}
    assert len(presented(sandbox)) == len(set(presented(sandbox))) == len(batch)


# Keap is down


@ONE_BY_ONE
def test_application_is_blocked_after_some_errors_in_a_row(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(DOWN, times=None)
    run = Credential.objects.refresh_due()
    assert counts(run) == {"unavailable": FAILURES_THAT_HALT, "stopped": 1}
    assert run.ended == "keap"
    assert presented(sandbox) == [each.account for each in batch[:FAILURES_THAT_HALT]]
    assert probes(sandbox) == 0
    assert state().block_reason == "unavailable"
    assert seconds_until_probe() == pytest.approx(15, abs=3)
    assert_unchanged(batch[FAILURES_THAT_HALT:])


def test_nothing_is_sent_before_the_probe_is_due(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(DOWN, times=None)
    Credential.objects.refresh_due()
    before = len(sandbox.token_requests)
    for _ in range(3):
        assert counts(Credential.objects.refresh_due()) == {"stopped": 1}
    assert len(sandbox.token_requests) == before
    assert_unchanged(batch[FAILURES_THAT_HALT:])


def test_delay_grows_to_a_minute_while_probes_fail(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(DOWN, times=None)
    Credential.objects.refresh_due()
    sent = len(presented(sandbox))
    for number, pause in enumerate((15, 30, 60, 60), start=1):
        make_probes_due()
        assert counts(Credential.objects.refresh_due()) == {"stopped": 1}
        assert (probes(sandbox), len(presented(sandbox))) == (number, sent)
        assert seconds_until_probe() == pytest.approx(pause, abs=3)


@ONE_BY_ONE
def test_application_resumes_with_the_failed_accounts_when_one_probe_succeeds(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    Credential.objects.update(issued_at=F("refresh_at") - timedelta(days=1))
    sandbox.plan(DOWN, times=None)
    Credential.objects.refresh_due()
    failed = presented(sandbox)
    sandbox.clear_plan()
    make_probes_due()
    run = Credential.objects.refresh_due()
    assert (counts(run), run.ended) == ({"refreshed": len(batch)}, "done")
    assert probes(sandbox) == 1
    assert state().block_reason == ""
    again = presented(sandbox)[len(failed) :]
    assert again[: len(failed)] == failed == ACCOUNTS[: len(failed)]


def test_one_run_probes_when_two_could(
    transactional_db: None, sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(DOWN, times=None)
    Credential.objects.refresh_due()
    sandbox.clear_plan()
    make_probes_due()
    before, gate = len(sandbox.token_requests), sandbox.hold("before")
    with threads(1) as start:
        prober = start(Credential.objects.refresh_due)
        gate.wait_until_arrived()
        other = Credential.objects.refresh_due()
        assert (counts(other), other.ended) == ({"stopped": 1}, "keap")
        assert len(sandbox.token_requests) == before
        gate.release()
    assert prober.result().refreshed == len(batch)
    assert probes(sandbox) == 1


@EIGHT_AT_ONCE
def test_application_is_blocked_when_one_gateway_failed(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    """Each of its replies may have cost a grant."""
    sandbox.plan(faults.error_502(), times=None)
    run = Credential.objects.refresh_due()
    assert (counts(run), run.ended) == ({"unavailable": 1, "stopped": 1}, "keap")
    assert presented(sandbox) == [batch[0].account]
    assert_unchanged(batch[1:])


@EIGHT_AT_ONCE
def test_application_is_blocked_when_keap_goes_down_during_a_run(
    transactional_db: None, sandbox: Sandbox, due: Due
) -> None:
    batch = [row(due(account, 90 - place)) for place, account in enumerate(ACCOUNTS[:40])]
    for each in batch[1:]:
        sandbox.plan(DOWN, times=None, account=each.account)
    run = Credential.objects.refresh_due()
    assert (run.refreshed, run.stopped, run.ended) == (1, 1, "keap")
    # Including those that were in progress when the limit was reached.
    assert FAILURES_THAT_HALT <= run.unavailable < FAILURES_THAT_HALT + 8
    assert state().block_reason == "unavailable"
    assert len(presented(sandbox)) == 1 + run.unavailable
    assert_unchanged([each for each in batch if each.account not in presented(sandbox)])


@TWO_BY_TWO
def test_application_is_blocked_when_the_last_failure_arrives_while_others_are_reported(
    transactional_db: None, sandbox: Sandbox, batch: list[Credential]
) -> None:
    for each in batch[1:]:
        sandbox.plan(faults.latency(0.1) | DOWN, times=None, account=each.account)
    reported: list[str] = []

    def wait_at_the_third(execute: Any, sql: str, params: Any, *arguments: Any) -> Any:
        if sql.startswith("INSERT") and "credentialevent" in sql:
            before, ends_at = len(reported), time.monotonic() + 60
            # On PostgreSQL a parameter holds the values of all rows.
            values = chain.from_iterable(
                each if isinstance(each, list) else [each] for each in params
            )
            reported.extend(each for each in values if each == "refresh_failed")
            if before < 3 <= len(reported):
                while len(presented(sandbox)) <= FAILURES_THAT_HALT:
                    assert time.monotonic() < ends_at
                    time.sleep(0.01)
                time.sleep(0.2)  # the answers arrive
        return execute(sql, params, *arguments)

    with connection.execute_wrapper(wait_at_the_third):
        run = Credential.objects.refresh_due()
    assert len(reported) >= 3
    assert FAILURES_THAT_HALT <= run.unavailable < FAILURES_THAT_HALT + 2
    assert (run.stopped, state().block_reason) == (1, "unavailable")


@pytest.mark.parametrize(("wished", "pause"), [(None, 15), (5, 15), (100, 100), (86_400, 600)])
def test_application_is_blocked_for_as_long_as_keap_asks_when_it_answers_429(
    sandbox: Sandbox, batch: list[Credential], wished: float | None, pause: float
) -> None:
    sandbox.plan(faults.throttled(wished))
    run = Credential.objects.refresh_due()
    assert (counts(run), run.ended) == ({"unavailable": 1, "stopped": 1}, "keap")
    assert len(sandbox.token_requests) == 1
    assert state().block_reason == "unavailable"
    assert seconds_until_probe() == pytest.approx(pause, abs=3)
    assert_unchanged(batch[1:])


@ONE_BY_ONE
@pytest.mark.parametrize(
    ("fault", "failures"), [(DOWN, FAILURES_THAT_HALT), (faults.throttled(), 1)]
)
def test_other_application_is_refreshed_when_one_is_blocked(
    sandbox: Sandbox, due: Due, second: Application, fault: Fault, failures: int
) -> None:
    for place, account in enumerate(ACCOUNTS[:24]):
        if place % 2:
            due(account, 60 - place)
            sandbox.plan(fault, times=None, account=account)
        else:
            due(account, 60 - place, application=second)
    run = Credential.objects.refresh_due()
    assert counts(run) == {"refreshed": 12, "unavailable": failures, "stopped": 1}
    assert run.ended == "keap"
    assert state().block_reason == "unavailable"
    of_second = Credential.objects.filter(application=second)
    assert not of_second.exclude(generation=2).exists()


# What a run reports


def test_progress_is_reported_with_growing_counts(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    reported: list[dict[str, int]] = []
    sandbox.revoke(ACCOUNTS[4])
    run = Credential.objects.refresh_due(on_progress=lambda run: reported.append(run.as_dict()))
    assert reported[-1] == run.as_dict()
    tried = [sum(each.values()) for each in reported]
    assert tried == sorted(tried)
    assert len(set(tried)) > 1
    assert tried[-1] == len(batch)


# What a run costs


def connection_ids() -> set[int]:
    """Return the IDs of all connections to the test database, including this one."""
    question = {
        "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database()",
        "mysql": "SELECT id FROM information_schema.processlist WHERE db = database()",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(question)
        return {number for (number,) in cursor.fetchall()}


@EIGHT_AT_ONCE
def test_run_has_one_database_connection_when_many_calls_are_in_progress(
    transactional_db: None, sandbox: Sandbox, batch: list[Credential]
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite does not list its connections")
    gate, before = held(sandbox, batch[1:]), connection_ids()
    with threads(1) as start:
        run: Future[Run] = start(Credential.objects.refresh_due)
        gate.wait_until_processed(8)
        during = connection_ids() - before
        gate.release()
        run.result()
    assert len(during) == 1


@EIGHT_AT_ONCE
def test_threads_that_call_keap_open_no_connection(
    transactional_db: None, sandbox: Sandbox, batch: list[Credential]
) -> None:
    def opened(**kwargs: Any) -> None:
        openers.append(threading.get_ident())

    openers: list[int] = []
    connection_created.connect(opened)
    try:
        connections.close_all()
        assert Credential.objects.refresh_due().refreshed == len(batch)
    finally:
        connection_created.disconnect(opened)
    assert set(openers) == {threading.get_ident()}


@EIGHT_AT_ONCE
def test_each_refreshed_credential_costs_one_update(
    transactional_db: None, sandbox: Sandbox, due: Due
) -> None:
    for account in ACCOUNTS[:40]:
        due(account)
    with CaptureQueriesContext(connection) as queries:
        assert counts(Credential.objects.refresh_due()) == {"refreshed": 40}
    statements = [each["sql"] for each in queries.captured_queries]
    stores = [sql for sql in statements if is_store(sql)]
    assert len(stores) == 40
    # Claims and events are written in batches, whose size depends on when answers arrive.
    others = Counter(sql.split()[0] for sql in statements if not is_store(sql))
    assert others["SELECT"] + others["UPDATE"] + others["INSERT"] < 60
    assert others["UPDATE"] < 30
    assert others["INSERT"] < 30


def test_no_attempt_is_counted_when_a_process_died_before_using_its_claims(
    batch: list[Credential],
) -> None:
    for _ in range(2):
        assert len(leases.claim_batch(Credential.objects.due(), 12)) == 12
        end_leases()
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 12}
    assert not CredentialEvent.objects.filter(kind="abandoned").exists()


def test_one_attempt_is_counted_for_each_claim_when_a_process_died_using_them(
    batch: list[Credential],
) -> None:
    claims = leases.claim_batch(Credential.objects.due(), 12)
    leases.mark_used(claims[:5])
    end_leases()
    leases.claim_batch(Credential.objects.due(), 12)
    assert Credential.objects.filter(unanswered_attempts=1).count() == 5


@override_settings(INFUSIONSOFT_REFRESH_RATE=5)
def test_attempt_of_a_dead_process_is_reported_when_the_next_run_stops_before_retrying(
    batch: list[Credential],
) -> None:
    now = timezone.now()
    ApplicationState.objects.create(
        since=now, probe_at=now, reserved_until=now + timedelta(seconds=0.8)
    )
    leases.mark_used(leases.claim_batch(Credential.objects.due(), 12))
    end_leases()
    asked = iter([False])
    run = Credential.objects.refresh_due(should_stop=lambda: next(asked, True))
    assert run.ended == "stop"
    (reported,) = CredentialEvent.objects.filter(kind="abandoned")
    (unanswered,) = Credential.objects.filter(unanswered_attempts=1)
    assert (reported.credential, unanswered.lease_until) == (unanswered, None)


def test_reserved_slots_are_ignored_when_there_is_no_longer_a_rate_limit(
    batch: list[Credential],
) -> None:
    now = timezone.now()
    ApplicationState.objects.create(
        since=now, probe_at=now, reserved_until=now + timedelta(minutes=1)
    )
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 12}
