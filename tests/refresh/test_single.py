"""The refresh of one credential: claim, send, store, report."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.db import DatabaseError, OperationalError, connection, transaction
from django.test import RequestFactory, override_settings
from django.utils import timezone
from django.views.debug import ExceptionReporter

from django_infusionsoft import signals
from django_infusionsoft.exceptions import (
    ConfigurationError,
    DatabaseBusy,
    DecryptionError,
    GatewayFailed,
    OutcomeUnknown,
    ReauthorizationRequired,
    RefreshInProgress,
    TemporarilyUnavailable,
)
from django_infusionsoft.models import Credential
from django_infusionsoft.monitoring.history import fingerprint
from django_infusionsoft.refresh import leases
from django_infusionsoft.refresh.attempt_pool import AttemptPool
from django_infusionsoft.sandbox import Sandbox, faults
from django_infusionsoft.storage import credentials
from tests.support import end_leases, failing_updates, received, receiver, threads

Connect = Callable[..., Credential]
OTHER_KEY = "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q="


def present(claimed: leases.Claim) -> None:
    with AttemptPool(1) as calls:
        calls.start(claimed)


def row(credential: Credential) -> Credential:
    return Credential.objects.get(pk=credential.pk)


def kinds(credential: Credential) -> list[str]:
    return [event.kind for event in credential.events.order_by("pk")]


def seconds_until_refresh(credential: Credential) -> float:
    refresh_at = row(credential).refresh_at
    assert refresh_at
    return (refresh_at - timezone.now()).total_seconds()


# Success


def test_pair_is_rotated_and_stored(sandbox: Sandbox, credential: Credential) -> None:
    before = credential.access_token
    credential.refresh()
    assert (credential.generation, row(credential).generation) == (2, 2)
    assert row(credential).access_token == credential.access_token != before
    (grant,) = sandbox.live_grants
    assert row(credential).refresh_token == grant.refresh_token
    assert sandbox.replays == 0


def test_instance_equals_the_row_after_a_refresh(credential: Credential) -> None:
    credential.refresh()
    stored = row(credential)
    for name in credentials.SHARED_FIELDS:
        mine, theirs = getattr(credential, name), getattr(stored, name)
        if name in ("issued_at", "expires_at", "refresh_at"):
            assert abs(mine - theirs) < timedelta(seconds=5)
        else:
            assert mine == theirs


def test_expiry_and_next_refresh_follow_the_reply(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.switches.access_token_seconds = 1000
    credential.refresh()
    left = (row(credential).expires_at - timezone.now()).total_seconds()
    assert 990 < left <= 1000
    until_refresh = seconds_until_refresh(credential)
    assert 690 < until_refresh < 810


def test_history_shows_which_refresh_token_was_presented(credential: Credential) -> None:
    presented = credential.refresh_token
    credential.refresh()
    event = credential.events.get(kind="refreshed")
    assert event.fingerprint == fingerprint(presented)
    assert (event.generation, event.outcome) == (2, "ok")
    assert event.duration_ms is not None
    assert presented not in str(vars(event))


def test_old_refresh_token_is_kept_when_the_reply_has_none(
    sandbox: Sandbox, credential: Credential
) -> None:
    presented = credential.refresh_token
    sandbox.plan(faults.answer(200, {"access_token": "new", "expires_in": 60}))
    credential.refresh()
    assert (row(credential).access_token, row(credential).refresh_token) == ("new", presented)


def test_fresh_access_token_costs_no_query(
    credential: Credential, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(1):
        loaded = Credential.objects.for_account("ab123")
        assert loaded.get_access_token()
        assert loaded.get_access_token()


def test_refresh_makes_four_writes(
    credential: Credential, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(7):  # plus reading the claimed row, and a savepoint
        credential.refresh()


# The history


def forget_the_event(credential: Credential, *, seconds_ago: float) -> None:
    """Change the history as if the process had died right after it stored the pair."""
    credential.events.filter(kind="refreshed").delete()
    moment = timezone.now() - timedelta(seconds=seconds_ago)
    Credential.objects.filter(pk=credential.pk).update(is_unreported=True, issued_at=moment)


def test_run_reports_a_stored_refresh_whose_process_died(credential: Credential) -> None:
    presented = fingerprint(credential.refresh_token)
    credential.refresh()
    forget_the_event(credential, seconds_ago=1)
    Credential.objects.refresh_due()
    assert kinds(credential) == ["imported"]  # its process may still be about to write it
    forget_the_event(credential, seconds_ago=1000)
    for _ in range(2):
        Credential.objects.refresh_due()
    event = credential.events.get(kind="refreshed")
    assert (event.fingerprint, event.generation, event.worker) == (presented, 2, "")
    assert not row(credential).is_unreported


def test_next_refresh_reports_the_one_before_it(credential: Credential) -> None:
    credential.refresh()
    forget_the_event(credential, seconds_ago=1)
    row(credential).refresh()
    events = credential.events.filter(kind="refreshed").order_by("pk")
    assert list(events.values_list("generation", flat=True)) == [2, 3]
    assert not row(credential).is_unreported


def test_refresh_is_not_reported_twice(credential: Credential) -> None:
    credential.refresh()
    moment = timezone.now() - timedelta(hours=1)
    Credential.objects.update(is_unreported=True, issued_at=moment)
    Credential.objects.refresh_due()
    assert kinds(credential) == ["imported", "refreshed"]
    assert not row(credential).is_unreported


# Access tokens, by their age


def test_access_token_is_refreshed_when_it_has_expired(
    sandbox: Sandbox, expired: Credential
) -> None:
    old = expired.access_token
    assert expired.get_access_token() != old
    assert [request.outcome for request in sandbox.token_requests] == ["rotated"]


def test_access_token_is_reloaded_when_another_process_has_refreshed_it(
    sandbox: Sandbox, expired: Credential
) -> None:
    stale = row(expired)
    expired.refresh()
    assert stale.get_access_token() == expired.access_token
    assert len(sandbox.token_requests) == 1


def test_access_token_is_refreshed_shortly_before_it_expires(
    sandbox: Sandbox, connect: Connect
) -> None:
    credential = connect(seconds_left=200)
    Credential.objects.update(issued_at=timezone.now() - timedelta(hours=23))
    old = row(credential).access_token
    assert row(credential).get_access_token() != old


@pytest.mark.parametrize(
    "fault", [faults.error_503(), faults.drop_after(), faults.answer(401, "")]
)
def test_valid_access_token_is_returned_when_the_early_refresh_fails(
    sandbox: Sandbox, connect: Connect, fault: faults.Fault
) -> None:
    credential = connect(seconds_left=200)
    Credential.objects.update(issued_at=timezone.now() - timedelta(hours=23))
    sandbox.plan(fault)
    assert row(credential).get_access_token() == credential.access_token
    assert sandbox.presentations(credential.refresh_token) == 1


def test_valid_access_token_is_returned_when_the_row_cannot_be_read(
    sandbox: Sandbox, connect: Connect
) -> None:
    connect("ab123", seconds_left=200)
    connect("cd456", seconds_left=-1)
    Credential.objects.update(issued_at=timezone.now() - timedelta(hours=23))
    aging, expired = Credential.objects.order_by("account")

    def fail(*args: Any) -> None:
        raise OperationalError("server closed the connection unexpectedly")

    with connection.execute_wrapper(fail):
        assert aging.get_access_token() == aging.access_token
        with pytest.raises(OperationalError):
            expired.get_access_token()
    assert sandbox.token_requests == []


def test_nothing_is_sent_after_a_failure_while_the_access_token_is_valid(
    sandbox: Sandbox, connect: Connect
) -> None:
    credential = connect(seconds_left=200)
    Credential.objects.update(issued_at=timezone.now() - timedelta(hours=23))
    sandbox.plan(faults.error_503())
    for _ in range(3):
        assert row(credential).get_access_token() == credential.access_token
    assert len(sandbox.token_requests) == 1


@pytest.mark.parametrize("fault", [faults.throttled(600), faults.drop_after()])
def test_nothing_is_sent_after_a_failure_when_the_access_token_has_expired(
    sandbox: Sandbox, expired: Credential, fault: faults.Fault
) -> None:
    sandbox.plan(fault)
    for _ in range(3):
        with pytest.raises(TemporarilyUnavailable):
            row(expired).get_access_token()
    assert sandbox.presentations(expired.refresh_token) == 1


def test_error_says_when_to_retry(sandbox: Sandbox, expired: Credential) -> None:
    sandbox.plan(faults.throttled(600))
    with pytest.raises(TemporarilyUnavailable):
        expired.get_access_token()
    with pytest.raises(TemporarilyUnavailable) as caught:
        expired.get_access_token()
    assert caught.value.retry_after is not None
    assert 590 < caught.value.retry_after <= 600


def test_valid_access_token_is_returned_at_once_while_another_refreshes(
    sandbox: Sandbox, connect: Connect
) -> None:
    credential = connect(seconds_left=200)
    Credential.objects.update(issued_at=timezone.now() - timedelta(hours=23))
    assert leases.claim(row(credential))
    assert row(credential).get_access_token() == credential.access_token
    assert sandbox.token_requests == []


@pytest.mark.parametrize("hours", [1, -1])
def test_nothing_is_sent_when_the_clock_of_a_worker_is_wrong(
    sandbox: Sandbox, credential: Credential, hours: int
) -> None:
    sandbox.switches.access_token_seconds = 3600
    credential.refresh()
    with time_machine.travel(timezone.now() + timedelta(hours=hours)):
        for _ in range(3):
            assert row(credential).get_access_token() == credential.access_token
        wrong = row(credential)
        wrong.refresh()
    assert len(sandbox.token_requests) == 2
    left = (row(credential).expires_at - timezone.now()).total_seconds()
    assert 3590 < left <= 3600


# Leases


def test_second_claim_fails_while_the_first_lease_is_valid(credential: Credential) -> None:
    assert leases.claim(credential) is not None
    assert leases.claim(credential) is None


def test_claim_fails_when_the_generation_has_changed(credential: Credential) -> None:
    stale = row(credential)
    credential.refresh()
    assert leases.claim(stale) is None


def test_expired_lease_is_taken_over_and_counted(credential: Credential) -> None:
    assert leases.claim(credential)
    end_leases()
    assert leases.claim(credential) is not None
    assert row(credential).unanswered_attempts == 1


def test_nothing_is_sent_when_the_lease_expires_too_soon(
    sandbox: Sandbox, credential: Credential
) -> None:
    with override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.5):
        claimed = leases.claim(credential)
    assert claimed
    with AttemptPool(1) as calls:
        calls.start(claimed)
        (settled,) = calls.results()
    assert isinstance(settled.error, RefreshInProgress)
    assert sandbox.token_requests == []
    assert row(credential).lease_until is None


def test_caller_gives_up_in_time_when_another_refresh_does_not_finish(expired: Credential) -> None:
    assert leases.claim(row(expired))
    with (
        override_settings(INFUSIONSOFT_WAIT_SECONDS=0.1),
        pytest.raises(RefreshInProgress, match="ab123"),
    ):
        expired.get_access_token()


def test_caller_takes_over_when_the_holder_of_the_lease_has_died(
    sandbox: Sandbox, expired: Credential
) -> None:
    with override_settings(
        INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS=0.05, INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.025
    ):
        assert leases.claim(row(expired))
    expired.get_access_token()
    assert row(expired).generation == 2
    assert row(expired).unanswered_attempts == 0


# Outcomes


def test_account_must_be_reconnected_when_keap_rejects_the_grant(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke("ab123")
    with (
        received(signals.reauthorization_required) as signal,
        pytest.raises(ReauthorizationRequired) as caught,
    ):
        credential.refresh()
    assert caught.value.reason == "revoked"
    stored = row(credential)
    assert (stored.status, stored.reason) == ("reauthorization_required", "revoked")
    assert (stored.refresh_at, stored.lease_until) == (None, None)
    assert stored.refresh_token == credential.refresh_token
    assert signal[0]["reason"] == "revoked"
    assert kinds(credential)[-1] == "reauthorization_required"


def test_access_token_is_returned_until_it_expires_when_the_grant_is_rejected(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke("ab123")
    with pytest.raises(ReauthorizationRequired):
        credential.refresh()
    assert row(credential).get_access_token() == credential.access_token
    Credential.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    with pytest.raises(ReauthorizationRequired, match="must be reconnected"):
        row(credential).get_access_token()


def test_refresh_token_is_not_presented_again_when_the_grant_is_rejected(
    sandbox: Sandbox, expired: Credential
) -> None:
    """Unless a user asks for it."""
    sandbox.revoke("ab123")
    for _ in range(3):
        with pytest.raises(ReauthorizationRequired):
            row(expired).get_access_token()
    assert sandbox.presentations(expired.refresh_token) == 1


def test_reason_is_expired_when_keap_says_so(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.clock.advance(46 * 86_400)
    with pytest.raises(ReauthorizationRequired):
        credential.refresh()
    assert row(credential).reason == "expired"


def test_rejection_is_ignored_when_the_generation_has_changed(
    sandbox: Sandbox, credential: Credential
) -> None:
    slow = row(credential)
    claimed = leases.claim(slow)
    assert claimed
    Credential.objects.update(lease_until=None)  # as if the slow process had slept past its lease
    credential.refresh()
    present(claimed)  # the step after sleeping
    assert row(credential).status == "connected"
    assert claimed.credential.access_token == credential.access_token
    assert sandbox.replays == 1


def test_late_reply_is_dropped_when_another_thread_reloads_the_same_instance(
    transactional_db: None, sandbox: Sandbox, credential: Credential, connect: Connect
) -> None:
    gate = sandbox.hold("after")
    with threads(1) as start:
        call = start(credential.refresh)
        gate.wait_until_processed()
        again = connect()
        credentials.reload(credential)  # as a thread does when the access token has expired
        gate.release()
        call.result()
    assert row(credential).access_token == again.access_token == credential.access_token
    assert kinds(credential)[-1] == "late_reply_dropped"


@pytest.mark.parametrize(
    ("fault", "outcome", "exception"),
    [
        (faults.error_503(), "unavailable", TemporarilyUnavailable),
        (faults.throttled(), "unavailable", TemporarilyUnavailable),
        (faults.html(), "unavailable", TemporarilyUnavailable),
        (faults.drop_after(), "unknown", OutcomeUnknown),
    ],
)
def test_pair_is_kept_and_retried_later_when_keap_fails(
    sandbox: Sandbox,
    credential: Credential,
    fault: faults.Fault,
    outcome: str,
    exception: type[Exception],
) -> None:
    presented = credential.refresh_token
    sandbox.plan(fault)
    with received(signals.refresh_failed) as signal, pytest.raises(exception):
        credential.refresh()
    stored = row(credential)
    assert (stored.status, stored.refresh_token) == ("connected", presented)
    assert (stored.failures, stored.lease_until) == (1, None)
    assert stored.unanswered_attempts == (outcome == "unknown")
    assert 60 < seconds_until_refresh(credential) < 200
    assert credential.events.get(kind="refresh_failed").outcome == outcome
    assert isinstance(signal[0]["exception"], exception)


def test_retry_after_is_honoured(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.plan(faults.throttled(5000))
    with pytest.raises(TemporarilyUnavailable):
        credential.refresh()
    assert 4990 < seconds_until_refresh(credential) <= 5000


def test_refresh_succeeds_and_failures_are_reset_when_keap_works_again(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(faults.error_503())
    with pytest.raises(TemporarilyUnavailable):
        expired.get_access_token()
    # The delay is over.
    Credential.objects.update(refresh_at=timezone.now() - timedelta(seconds=1))
    assert expired.get_access_token()
    assert (row(expired).failures, row(expired).last_error) == (0, "")


def test_reason_is_rotation_lost_when_an_answer_was_lost_before(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(faults.drop_after())
    with pytest.raises(OutcomeUnknown):
        expired.refresh()
    with pytest.raises(ReauthorizationRequired) as caught:
        row(expired).refresh()
    assert caught.value.reason == "rotation_lost"
    assert sandbox.presentations(expired.refresh_token) == 2


def test_refresh_token_is_presented_after_any_number_of_gateway_failures(
    sandbox: Sandbox, credential: Credential
) -> None:
    for _ in range(4):
        sandbox.plan(faults.error_502(), account="ab123")
        with pytest.raises(GatewayFailed):
            credential.refresh()
    credential.refresh()
    after = row(credential)
    assert (after.generation, after.failures, after.may_be_rotated) == (2, 0, False)
    assert sandbox.presentations(credential.refresh_token) == 0


def test_account_stays_connected_when_the_lost_request_never_arrived(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(faults.drop_before())
    with pytest.raises(OutcomeUnknown):
        expired.refresh()
    expired.refresh()
    assert (row(expired).generation, row(expired).unanswered_attempts) == (2, 0)


def test_error_names_the_settings_when_no_client_is_configured(credential: Credential) -> None:
    with (
        override_settings(INFUSIONSOFT_CLIENT_ID=""),
        pytest.raises(ConfigurationError, match="INFUSIONSOFT_CLIENT_ID"),
    ):
        credential.refresh()
    assert row(credential).lease_until is None


def test_account_that_was_not_due_is_refreshed_by_the_first_run_with_a_client(
    credential: Credential,
) -> None:
    with override_settings(INFUSIONSOFT_CLIENT_ID=""), pytest.raises(ConfigurationError):
        credential.refresh()
    assert Credential.objects.refresh_due().refreshed == 1


def test_nothing_is_sent_when_no_key_can_decrypt_the_refresh_token(
    sandbox: Sandbox, credential: Credential
) -> None:
    with (
        override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]),
        pytest.raises(DecryptionError, match="refresh_token"),
    ):
        row(credential).refresh()
    assert sandbox.token_requests == []
    credential.refresh()


def test_error_says_so_when_the_row_was_deleted(sandbox: Sandbox, expired: Credential) -> None:
    orphan = row(expired)
    expired.delete()
    with pytest.raises(ReauthorizationRequired, match="deleted"):
        orphan.get_access_token()
    assert sandbox.token_requests == []


# After the reply


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry the database three times, without a delay."""
    monkeypatch.setattr("django_infusionsoft.storage.database.RETRY_PAUSES", (0, 0, 0))


def test_pair_counts_as_stored_when_only_the_answer_to_the_write_was_lost(
    transactional_db: None, credential: Credential, quick_retries: None
) -> None:
    claimed = leases.claim(credential)
    assert claimed
    with failing_updates("gone", written=True):
        present(claimed)
    assert row(credential).generation == 2
    assert row(credential).access_token == claimed.credential.access_token
    assert kinds(credential)[-1] == "refreshed"


@override_settings(INFUSIONSOFT_SPOOL_DIR="")
def test_critical_log_entry_shows_no_secret_when_there_is_no_spool_either(
    transactional_db: None,
    sandbox: Sandbox,
    credential: Credential,
    quick_retries: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    claimed = leases.claim(credential)
    assert claimed
    with failing_updates(*["gone"] * 4), pytest.raises(OperationalError):
        present(claimed)
    (grant,) = sandbox.live_grants
    assert "CRITICAL" in {record.levelname for record in caplog.records}
    assert grant.refresh_token not in caplog.text


def test_pair_is_stored_when_the_write_is_interrupted(
    transactional_db: None, sandbox: Sandbox, credential: Credential
) -> None:
    claimed = leases.claim(credential)
    assert claimed
    interrupts = [KeyboardInterrupt()]

    def interrupt(execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith("UPDATE") and interrupts:
            raise interrupts.pop()
        return execute(sql, *rest)

    with connection.execute_wrapper(interrupt), pytest.raises(KeyboardInterrupt):
        present(claimed)
    (grant,) = sandbox.live_grants
    assert row(credential).refresh_token == grant.refresh_token


@override_settings(INFUSIONSOFT_SPOOL_DIR="")
def test_error_report_shows_no_secret_when_the_pair_cannot_be_stored(
    transactional_db: None, sandbox: Sandbox, credential: Credential, quick_retries: None
) -> None:
    claimed, presented = leases.claim(credential), credential.refresh_token
    assert claimed
    with failing_updates(*["gone"] * 4), pytest.raises(OperationalError) as caught:
        present(claimed)
    traceback = caught.tb.tb_next  # skip this test's own variables
    request = RequestFactory().get("/")
    reporter = ExceptionReporter(request, caught.type, caught.value, traceback)
    report = reporter.get_traceback_html()
    (grant,) = sandbox.live_grants
    assert "OperationalError" in report
    for secret in (presented, grant.refresh_token, credential.access_token, "sandbox-secret"):
        assert secret not in report


def test_all_received_pairs_are_stored_before_signals_are_sent(
    sandbox: Sandbox, connect: Connect, spool: Path
) -> None:
    accounts = ("ab123", "cd456", "ef789")
    claims = [leases.claim(connect(account, seconds_left=-1)) for account in accounts]
    unstored: list[int] = []

    def count_unstored(**kwargs: Any) -> None:
        live = {grant.refresh_token for grant in sandbox.live_grants}
        unstored.append(len(live - {each.refresh_token for each in Credential.objects.all()}))

    with receiver(signals.credential_refreshed, count_unstored), AttemptPool(3) as calls:
        for each in claims:
            assert each
            calls.start(each)
        while len(list(spool.glob("*.reply"))) < 3:
            time.sleep(0.01)
        time.sleep(0.05)  # only a few instructions remain
        assert len(list(calls.results())) == 3
    assert unstored == [0, 0, 0]


def test_presented_refresh_token_is_that_of_the_claimed_generation(
    sandbox: Sandbox, credential: Credential, connect: Connect
) -> None:
    """Lists of credentials defer the tokens, which are loaded when they are used."""
    deferred = Credential.objects.defer("access_token", "refresh_token").get()
    claimed = leases.claim(deferred)
    assert claimed
    again = connect()
    present(claimed)
    assert sandbox.presentations(again.refresh_token) == 0
    assert row(credential).access_token == again.access_token


def test_refresh_succeeds_when_the_event_cannot_be_written(
    credential: Credential, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError("full")

    monkeypatch.setattr("django_infusionsoft.monitoring.history._write", fail)
    credential.refresh()
    assert row(credential).generation == 2
    assert "event_not_written" in caplog.text


def test_refresh_succeeds_when_a_receiver_raises(credential: Credential) -> None:
    def fail(**kwargs: Any) -> None:
        raise RuntimeError("mine")

    with receiver(signals.credential_refreshed, fail):
        credential.refresh()
    assert row(credential).generation == 2


def test_log_has_stable_names_for_outcomes(
    sandbox: Sandbox, credential: Credential, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="django_infusionsoft")
    credential.refresh()
    sandbox.revoke("ab123")
    with pytest.raises(ReauthorizationRequired):
        credential.refresh()
    levels = {record.getMessage().split()[0]: record.levelname for record in caplog.records}
    assert levels == {"refreshed": "INFO", "reauthorization_required": "ERROR"}
    assert "account=ab123" in caplog.text


# Inside a caller's transaction


def test_nothing_is_sent_when_the_caller_has_locked_the_row(
    transactional_db: None,
    sandbox: Sandbox,
    credential: Credential,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_infusionsoft.storage.database.LOCK_TIMEOUT_SECONDS", 1)
    with transaction.atomic():
        Credential.objects.update(account_name="changed")
        with pytest.raises(TemporarilyUnavailable, match="transaction"):
            credential.refresh()
    assert sandbox.token_requests == []
    credential.refresh()


def test_error_says_so_when_the_credential_is_not_committed_yet(
    transactional_db: None, sandbox: Sandbox, connect: Connect
) -> None:
    reply = sandbox.issue("cd456")
    with (
        pytest.raises((ReauthorizationRequired, DatabaseBusy), match="commit"),
        transaction.atomic(),
    ):
        credential = Credential.objects.create(
            account="cd456",
            access_token=reply["access_token"],
            refresh_token=reply["refresh_token"],
            issued_at=timezone.now(),
            expires_at=timezone.now(),
            connected_at=timezone.now(),
        )
        credential.get_access_token()
    assert sandbox.token_requests == []
