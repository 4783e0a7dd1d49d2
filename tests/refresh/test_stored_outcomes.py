"""Outcomes without a token pair are stored, even if the database is unavailable for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.db import Error
from django.test import override_settings

from django_infusionsoft.checks.values import check_spooled
from django_infusionsoft.choices import Reason, Status
from django_infusionsoft.models import Credential
from django_infusionsoft.monitoring import heartbeat
from django_infusionsoft.refresh.attempt_pool import AttemptPool
from django_infusionsoft.refresh.leases import claim_batch, mark_used, release
from django_infusionsoft.refresh.recovery import recover_all
from django_infusionsoft.refresh.run_result import Ended
from django_infusionsoft.sandbox import Fault, Sandbox, faults
from django_infusionsoft.signals import reauthorization_required
from tests.support import ask, end_leases, failing_updates, received, row, run

pytestmark = pytest.mark.django_db(transaction=True)

AWAY = ["the database is away"] * 100
OTHER_KEY = "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q="


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_infusionsoft.storage.database.RETRY_PAUSES", (0.01, 0.01))


@contextmanager
def away_after_reply(
    sandbox: Sandbox, *messages: str, written: bool = False
) -> Iterator[list[str]]:
    """Let the database fail once Keap has replied."""
    before = len(sandbox.token_requests)
    with failing_updates(
        *messages, written=written, when=lambda: len(sandbox.token_requests) > before
    ) as left:
        yield left


def presented(sandbox: Sandbox) -> list[str]:
    """Return the accounts whose refresh tokens were presented, in order, without probes."""
    return [each.account for each in sandbox.token_requests if each.account]


def outcome_of(credential: Credential) -> tuple[str, str, int, int]:
    stored = row(credential)
    assert stored.lease_until is None
    return stored.status, stored.reason, stored.failures, stored.unanswered_attempts


def refresh(credential: Credential) -> None:
    row(credential).refresh()


def fail_while_away(sandbox: Sandbox, credential: Credential, fault: Fault) -> None:
    """Let an attempt get this reply, and the database stay away until the process gives up."""
    sandbox.plan(fault, account="ab123")
    with away_after_reply(sandbox, *AWAY), pytest.raises(Error):
        refresh(credential)
    assert row(credential).lease_until is not None


INVALID_CLIENT = faults.answer(401, {"error": "invalid_client"})
REVOKED = faults.answer(400, {"error": "invalid_grant"})
# What Keap does; status, reason, failures and attempts without a reply afterwards.
REPLIES = {
    "503": (faults.error_503(), ("connected", "", 1, 0)),
    "429": (faults.throttled(), ("connected", "", 1, 0)),
    "a page": (faults.html(), ("connected", "", 1, 0)),
    "no such client": (INVALID_CLIENT, ("connected", "", 0, 0)),
    "revoked": (REVOKED, ("reauthorization_required", "revoked", 0, 0)),
    "nothing": (faults.drop_after(), ("connected", "", 1, 1)),
}


@pytest.mark.parametrize("reply", REPLIES)
def test_outcome_is_stored_when_the_database_fails_for_a_moment(
    sandbox: Sandbox, expired: Credential, reply: str
) -> None:
    fault, expected = REPLIES[reply]
    sandbox.plan(fault, account="ab123")
    with away_after_reply(sandbox, "once", "twice") as left:
        assert ask(expired) != "OperationalError"
    assert left == []
    assert outcome_of(expired) == expected


@pytest.mark.parametrize("reply", [each for each in REPLIES if each != "no such client"])
@pytest.mark.parametrize("way", ["a run", "a reader"])
def test_outcome_is_stored_by_the_next_process_when_the_database_stays_away(
    sandbox: Sandbox, expired: Credential, spool: Path, reply: str, way: str
) -> None:
    fault, expected = REPLIES[reply]
    fail_while_away(sandbox, expired, fault)
    (file,) = spool.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    run() if way == "a run" else ask(expired)
    assert len(presented(sandbox)) == 1
    assert outcome_of(expired) == expected
    assert list(spool.iterdir()) == []
    events = [event for event in expired.events.all() if event.kind != "imported"]
    assert [event.kind for event in events] in (["refresh_failed"], ["reauthorization_required"])


@pytest.mark.parametrize("way", [refresh, lambda credential: run()], ids=["a caller", "a run"])
def test_no_attempt_is_counted_when_the_database_stays_away(
    sandbox: Sandbox, expired: Credential, way: Callable[[Credential], object]
) -> None:
    """Not even if the next process finds that the lease has expired."""
    for _ in range(3):
        fail_while_away(sandbox, expired, faults.error_503())
        end_leases()
    way(expired)
    assert outcome_of(expired)[:2] == (Status.CONNECTED, "")
    assert outcome_of(expired)[3] == 0
    refresh(expired)
    assert row(expired).generation > expired.generation
    assert "abandoned" not in [event.kind for event in expired.events.all()]


def test_no_attempt_is_counted_when_the_refresh_token_cannot_be_decrypted(
    expired: Credential,
) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]):
        with failing_updates("", *AWAY, when=Missed(1)), pytest.raises(Error):
            refresh(expired)
        end_leases()
        run()
    assert outcome_of(expired)[3] == 0


class Missed:
    """True from the second call on: the claim succeeds."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_signal_is_sent_once_when_only_the_answer_of_the_database_was_lost(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(REVOKED)
    with (
        received(reauthorization_required) as calls,
        away_after_reply(sandbox, "lost", written=True),
    ):
        assert ask(expired) == "ReauthorizationRequired"
    assert [call["reason"] for call in calls] == ["revoked"]
    assert outcome_of(expired) == ("reauthorization_required", "revoked", 0, 0)


def test_pauses_are_shared_by_the_attempts_of_a_run(
    sandbox: Sandbox,
    due: Callable[..., Credential],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses = (0.01,) * 7
    monkeypatch.setattr("django_infusionsoft.storage.database.RETRY_PAUSES", pauses)
    for account in ("ab123", "cd456", "ef789"):
        due(account)
    claims = claim_batch(Credential.objects.due(), 3)
    mark_used(claims)
    sandbox.plan(faults.error_503(), times=None)
    with away_after_reply(sandbox, *AWAY), pytest.raises(Error), AttemptPool(3) as pool:
        for each in claims:
            pool.start(each)
    failures = [each for each in caplog.messages if "_not_stored_yet" in each]
    assert len(failures) == len(pauses) + len(claims)
    assert run() == {"unavailable": 3}


@pytest.mark.parametrize("status", ["connected", "unanswered"])
def test_count_is_corrected_when_another_machine_has_taken_over(
    sandbox: Sandbox, expired: Credential, spool: Path, status: str
) -> None:
    """It cannot read this machine's spool."""
    fail_while_away(sandbox, expired, faults.error_503())
    end_leases()
    (claim,) = claim_batch(Credential.objects.due(), 1)
    release([claim])
    if status == "unanswered":
        lost = {"status": Status.REAUTHORIZATION_REQUIRED, "reason": Reason.UNANSWERED}
        Credential.objects.update(unanswered_attempts=2, **lost, refresh_at=None)
    ask(expired) if status == "connected" else run()
    assert outcome_of(expired) == ("connected", "", 0, 0)
    assert row(expired).generation == expired.generation + 1
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("attempts", [1, 2])
def test_count_stays_when_only_the_answer_of_the_database_was_lost(
    sandbox: Sandbox, expired: Credential, spool: Path, attempts: int
) -> None:
    """The outcome is in the row, and in the spool as well."""
    Credential.objects.update(unanswered_attempts=attempts)
    sandbox.plan(faults.error_503(), account="ab123")
    with failing_updates(*AWAY, written=True, when=Missed(1)), pytest.raises(Error):
        ask(expired)
    before = outcome_of(expired)
    assert before[3] == attempts
    assert len(list(spool.iterdir())) == 1
    list(recover_all(Credential, "default"))
    assert outcome_of(expired) == before
    assert list(spool.iterdir()) == []


def test_outcome_is_dropped_when_the_account_was_reconnected(
    sandbox: Sandbox, expired: Credential, spool: Path, connect: Callable[..., Credential]
) -> None:
    fail_while_away(sandbox, expired, REVOKED)
    connect()
    run()
    assert outcome_of(expired) == ("connected", "", 0, 0)
    assert list(spool.iterdir()) == []


def test_outcome_is_stored_by_a_run_that_ends_because_another_one_has_just_begun(
    sandbox: Sandbox, expired: Credential
) -> None:
    fail_while_away(sandbox, expired, REVOKED)
    heartbeat.begin_run("default", pause_seconds=0)
    assert Credential.objects.refresh_due(pause_seconds=30).ended == Ended.RECENT
    assert outcome_of(expired) == ("reauthorization_required", "revoked", 0, 0)


def test_claim_that_was_not_sent_leaves_no_file_when_the_account_was_reconnected(
    expired: Credential,
    spool: Path,
    connect: Callable[..., Credential],
    backdated: Callable[..., None],
) -> None:
    Credential.objects.update(refresh_at=expired.issued_at)
    claims = claim_batch(Credential.objects.due(), 10)
    with failing_updates(*AWAY), pytest.raises(Error):
        release(claims, retry_delays=iter(()))
    assert len(list(spool.iterdir())) == 1
    connect()
    backdated(days=1)
    run()
    assert check_spooled() == []


def test_claims_that_were_not_sent_are_not_counted_when_they_cannot_be_released(
    expired: Credential, sandbox: Sandbox
) -> None:
    Credential.objects.update(refresh_at=expired.issued_at)
    claims = claim_batch(Credential.objects.due(), 10)
    mark_used(claims)
    with failing_updates(*AWAY), pytest.raises(Error):
        release(claims, retry_delays=iter(()))
    end_leases()
    refresh(expired)
    kinds = [event.kind for event in expired.events.all()]
    assert kinds == ["refreshed", "refresh_failed", "imported"]
    assert len(sandbox.token_requests) == 1
