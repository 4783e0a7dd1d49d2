"""A person connects again, disconnects or deletes while Keap is being asked: their will wins."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Event
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from django_infusionsoft import oauth, signals
from django_infusionsoft.exceptions import (
    InfusionsoftError,
    OutcomeUnknown,
    ReauthorizationRequired,
)
from django_infusionsoft.models import ApplicationState, Credential, CredentialEvent
from django_infusionsoft.sandbox import Gate, Sandbox, faults
from tests.processes import started
from tests.support import ask, received, row, run, threads

Connect = Callable[..., Credential]
WITH_THREADS = pytest.mark.django_db(transaction=True)

# A process of the site that asks for an access token.
READER = """
import django

django.setup()

from django_infusionsoft.models import Credential

try:
    print(Credential.objects.for_account("ab123").get_access_token())
except Exception as error:
    print(type(error).__name__)
"""


def kinds(credential: Credential) -> list[str]:
    return [event.kind for event in credential.events.order_by("pk")]


def refresh(credential: Credential) -> str:
    try:
        row(credential).refresh()
    except InfusionsoftError as error:
        return type(error).__name__
    return "no exception"


def let_time_pass() -> None:
    past = timezone.now() - timedelta(seconds=1)
    Credential.objects.filter(refresh_at__isnull=False).update(refresh_at=past)
    ApplicationState.objects.update(probe_at=past)


@contextmanager
def held(
    sandbox: Sandbox, call: Callable[[], Any], *, where: Any = "after"
) -> Iterator[Callable[[], Any]]:
    """Hold a refresh at Keap while the block runs; it yields what lets it come home.

    ``after``: the refresh token is spent, and the reply has not been sent.
    """
    gate = sandbox.hold(where, account="ab123")
    with threads(1) as start:
        future = start(call)
        gate.wait_until_processed() if where == "after" else gate.wait_until_arrived()

        def come_home() -> Any:
            gate.release()
            return future.result(timeout=20)

        try:
            yield come_home
        finally:
            gate.release()


@contextmanager
def reading_process(sandbox: Sandbox, database_url: str) -> Iterator[tuple[Gate, "Popen[str]"]]:
    """A process whose refresh Keap has processed, and not answered."""
    gate = sandbox.hold("after", account="ab123")
    with started(
        "-c", READER, database_url=database_url, settings=sandbox.settings, stdout=PIPE
    ) as process:
        gate.wait_until_processed(timeout=30)
        yield gate, process


def answer_of(process: "Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


# A person connects again


@WITH_THREADS
def test_new_pair_of_a_person_wins_over_a_reply_that_comes_later(
    sandbox: Sandbox, expired: Credential, connect: Connect
) -> None:
    slow = row(expired)
    with held(sandbox, slow.get_access_token) as come_home:
        again = connect()
        served = come_home()
    assert served == slow.access_token == again.access_token
    after = row(expired)
    assert (after.refresh_token, after.generation) == (again.refresh_token, 2)
    assert (after.status, after.lease_until) == ("connected", None)
    assert kinds(expired)[-1] == "late_reply_dropped"


@WITH_THREADS
def test_new_pair_of_a_person_wins_over_a_reply_that_came_before(
    sandbox: Sandbox, expired: Credential, connect: Connect
) -> None:
    with held(sandbox, row(expired).get_access_token) as come_home:
        come_home()
    again = connect()
    after = row(expired)
    assert (after.access_token, after.generation) == (again.access_token, 3)
    assert kinds(expired)[-2:] == ["refreshed", "imported"]
    assert ask(expired) == again.access_token


@WITH_THREADS
def test_pair_authorized_in_the_browser_wins_as_well(
    sandbox: Sandbox, expired: Credential
) -> None:
    reply = sandbox.issue("ab123")
    pair = oauth.TokenPair(
        access_token=reply["access_token"],
        refresh_token=reply["refresh_token"],
        expires_in=86_400,
        account="ab123",
    )
    with held(sandbox, row(expired).get_access_token) as come_home:
        Credential.objects.connect(pair, application=None)
        assert come_home() == reply["access_token"]
    assert row(expired).refresh_token == reply["refresh_token"]
    assert kinds(expired)[-2:] == ["reconnected", "late_reply_dropped"]


@WITH_THREADS
def test_new_pair_of_a_person_wins_over_the_reply_to_a_run(
    sandbox: Sandbox, expired: Credential, connect: Connect
) -> None:
    let_time_pass()
    with held(sandbox, run) as come_home:
        again = connect()
        come_home()
    assert row(expired).refresh_token == again.refresh_token
    assert kinds(expired)[-1] == "late_reply_dropped"


@WITH_THREADS
def test_new_pair_of_a_person_wins_over_the_reply_to_another_process(
    sandbox: Sandbox, expired: Credential, connect: Connect, database_url: str
) -> None:
    with reading_process(sandbox, database_url) as (gate, process):
        again = connect()
        gate.release()
        assert answer_of(process) == again.access_token
    assert row(expired).refresh_token == again.refresh_token
    assert kinds(expired)[-1] == "late_reply_dropped"


@WITH_THREADS
def test_late_rejection_is_not_believed_when_a_person_has_connected_again(
    sandbox: Sandbox, expired: Credential, connect: Connect
) -> None:
    sandbox.revoke("ab123")
    with (
        received(signals.reauthorization_required) as signal,
        held(sandbox, row(expired).get_access_token) as come_home,
    ):
        again = connect()
        assert come_home() == again.access_token
    assert (row(expired).status, signal) == ("connected", [])


@WITH_THREADS
@pytest.mark.parametrize("fault", [faults.error_503(), faults.answer(401), faults.drop_after()])
def test_late_failure_is_not_counted_when_a_person_has_connected_again(
    sandbox: Sandbox, expired: Credential, connect: Connect, fault: faults.Fault
) -> None:
    gate = Gate("before")
    sandbox.plan(faults.hold(gate) | fault, account="ab123")
    with threads(1) as start:
        call = start(row(expired).get_access_token)
        gate.wait_until_arrived()
        again = connect()
        gate.release()
        assert call.result(timeout=20) == again.access_token
    after = row(expired)
    assert (after.failures, after.unanswered_attempts, after.last_error) == (0, 0, "")


@WITH_THREADS
def test_waiter_is_served_the_new_pair_as_soon_as_a_person_has_connected_again(
    sandbox: Sandbox, expired: Credential, connect: Connect
) -> None:
    with (
        held(sandbox, row(expired).get_access_token) as come_home,
        threads(1) as start,
    ):
        waiter = start(row(expired).get_access_token)
        again = connect()
        assert waiter.result(timeout=20) == again.access_token
        come_home()
    assert len(sandbox.token_requests) == 1


# A person disconnects


def disconnected(credential: Credential) -> bool:
    """Whether nothing is left, and nobody will try anything."""
    after = row(credential)
    assert (after.access_token, after.refresh_token) == ("", "")
    assert (after.lease_until, after.lease_id, after.refresh_at) == (None, "", None)
    assert not Credential.objects.due().exists()
    assert not Credential.objects.connected().exists()
    return after.status == "disconnected"


def test_tokens_are_gone_and_nothing_is_due_when_a_person_disconnects(
    sandbox: Sandbox, credential: Credential
) -> None:
    let_time_pass()
    credential.disconnect()
    assert disconnected(credential)
    assert run() == {}
    assert refresh(credential) == "ReauthorizationRequired"
    assert sandbox.token_requests == []
    assert kinds(credential)[-1] == "disconnected"


def test_caller_is_told_at_once_when_a_person_has_disconnected(
    sandbox: Sandbox, credential: Credential
) -> None:
    other = row(credential)
    credential.disconnect()
    for each in (credential, row(credential), Credential.objects.for_account("ab123")):
        with pytest.raises(ReauthorizationRequired, match="connected again"):
            each.get_access_token()
    other.expires_at = timezone.now()  # while it lives, a loaded one makes no query
    with pytest.raises(ReauthorizationRequired):
        other.get_access_token()


def test_reconnecting_revives_the_row(
    sandbox: Sandbox, credential: Credential, connect: Connect
) -> None:
    credential.disconnect()
    again = connect()
    assert again.pk == credential.pk
    assert ask(credential) == again.access_token
    assert refresh(credential) == "no exception"
    after = row(credential)
    assert (after.status, after.generation) == ("connected", 4)
    let_time_pass()
    assert run() == {"refreshed": 1}


@WITH_THREADS
def test_credential_stays_disconnected_when_a_reply_comes_later(
    sandbox: Sandbox, expired: Credential
) -> None:
    with held(sandbox, lambda: refresh(expired)) as come_home:
        row(expired).disconnect()
        come_home()
    assert disconnected(expired)
    assert row(expired).generation == 2
    assert kinds(expired)[-2:] == ["disconnected", "late_reply_dropped"]


@WITH_THREADS
def test_credential_is_disconnected_when_a_reply_came_before(
    sandbox: Sandbox, expired: Credential
) -> None:
    with held(sandbox, lambda: refresh(expired)) as come_home:
        assert come_home() == "no exception"
    expired.disconnect()  # an instance that has not seen the reply
    assert disconnected(expired)
    assert row(expired).generation == 3
    assert ask(expired) == "ReauthorizationRequired"


@WITH_THREADS
def test_reader_whose_reply_came_too_late_is_told_that_a_person_has_disconnected(
    sandbox: Sandbox, expired: Credential
) -> None:
    with held(sandbox, lambda: ask(expired)) as come_home:
        row(expired).disconnect()
        assert come_home() == "ReauthorizationRequired"


@WITH_THREADS
def test_refresh_whose_reply_came_too_late_is_told_that_a_person_has_disconnected(
    sandbox: Sandbox, expired: Credential
) -> None:
    with held(sandbox, lambda: refresh(expired)) as come_home:
        row(expired).disconnect()
        assert come_home() == "ReauthorizationRequired"


@WITH_THREADS
def test_waiter_is_told_when_a_person_disconnects(sandbox: Sandbox, expired: Credential) -> None:
    waiting, has_looked = row(expired), Event()

    def tell(execute: Any, *statement: Any) -> Any:
        result = execute(*statement)
        has_looked.set()
        return result

    def wait() -> str:
        with connection.execute_wrapper(tell):
            return waiting.get_access_token()

    with held(sandbox, lambda: refresh(expired)) as come_home, threads(1) as start:
        waiter = start(wait)
        assert has_looked.wait(10)
        row(expired).disconnect()
        try:
            with pytest.raises(ReauthorizationRequired):
                waiter.result(timeout=20)
        finally:
            come_home()


def test_refresh_of_an_instance_from_before_is_told_that_a_person_has_disconnected(
    sandbox: Sandbox, credential: Credential
) -> None:
    before = row(credential)
    credential.disconnect()
    with pytest.raises(ReauthorizationRequired):
        before.refresh()
    assert sandbox.token_requests == []


def test_session_that_meets_a_401_is_told_that_a_person_has_disconnected(
    sandbox: Sandbox, credential: Credential
) -> None:
    session = row(credential).session()
    assert session.get("v2/contacts").status_code == 200
    sandbox.revoke_access_tokens("ab123")
    credential.disconnect()
    with pytest.raises(ReauthorizationRequired):
        session.get("v2/contacts")


@WITH_THREADS
def test_credential_stays_disconnected_when_the_reply_to_a_run_comes_later(
    sandbox: Sandbox, expired: Credential, connect: Connect
) -> None:
    let_time_pass()
    with held(sandbox, run) as come_home:
        row(expired).disconnect()
        come_home()
    assert disconnected(expired)
    assert kinds(expired)[-1] == "late_reply_dropped"


@WITH_THREADS
def test_credential_stays_disconnected_when_the_reply_to_another_process_comes_later(
    sandbox: Sandbox, expired: Credential, database_url: str
) -> None:
    with reading_process(sandbox, database_url) as (gate, process):
        row(expired).disconnect()
        gate.release()
        answer = answer_of(process)
    assert disconnected(expired)
    assert kinds(expired)[-1] == "late_reply_dropped"
    assert answer == "ReauthorizationRequired"


@WITH_THREADS
@pytest.mark.parametrize("fault", [faults.error_503(), faults.answer(401), faults.drop_after()])
def test_credential_stays_disconnected_when_a_failure_comes_later(
    sandbox: Sandbox, expired: Credential, fault: faults.Fault
) -> None:
    gate = Gate("before")
    sandbox.plan(faults.hold(gate) | fault, account="ab123")
    with threads(1) as start:
        call = start(lambda: refresh(expired))
        gate.wait_until_arrived()
        row(expired).disconnect()
        gate.release()
        call.result(timeout=20)
    assert disconnected(expired)
    assert row(expired).failures == 0


class Rollback(Exception):
    """What a caller's view raises."""


@WITH_THREADS
def test_credential_stays_connected_when_the_disconnection_is_rolled_back(
    sandbox: Sandbox, expired: Credential
) -> None:
    with pytest.raises(Rollback), transaction.atomic():
        row(expired).disconnect()
        raise Rollback
    after = row(expired)
    assert (after.status, after.refresh_token) == ("connected", expired.refresh_token)
    assert "disconnected" not in kinds(expired)
    assert ask(expired) == row(expired).access_token != expired.access_token


@WITH_THREADS
def test_reply_is_stored_when_the_disconnection_meanwhile_is_rolled_back(
    sandbox: Sandbox, expired: Credential
) -> None:
    with held(sandbox, lambda: ask(expired)) as come_home:
        with pytest.raises(Rollback), transaction.atomic():
            row(expired).disconnect()
            raise Rollback
        assert come_home() == row(expired).access_token
    (grant,) = sandbox.live_grants
    assert row(expired).refresh_token == grant.refresh_token
    assert row(expired).status == "connected"


@WITH_THREADS
def test_instance_is_disconnected_when_that_was_done_inside_a_transaction(
    sandbox: Sandbox, credential: Credential
) -> None:
    with transaction.atomic():
        credential.disconnect()
        assert credential.status == "disconnected"
    assert disconnected(credential)
    with pytest.raises(ReauthorizationRequired):
        credential.get_access_token()


@WITH_THREADS
def test_history_tells_the_generation_when_the_disconnection_was_inside_a_transaction(
    sandbox: Sandbox, credential: Credential
) -> None:
    with transaction.atomic():
        credential.disconnect()
    assert credential.events.get(kind="disconnected").generation == row(credential).generation == 2


# A person deletes


@WITH_THREADS
def test_caller_is_told_when_the_row_is_deleted_before_the_reply_comes(
    sandbox: Sandbox, expired: Credential, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow = row(expired)
    with held(sandbox, slow.get_access_token) as come_home:
        row(expired).delete()
        with pytest.raises(ReauthorizationRequired, match="deleted"):
            come_home()
    assert list(spool.iterdir()) == []
    assert f"reply_without_a_row credential={expired.pk}" in caplog.text
    assert not Credential.objects.exists()
    assert not CredentialEvent.objects.exists()


@WITH_THREADS
def test_next_reader_is_told_when_the_row_is_deleted_after_the_reply_came(
    sandbox: Sandbox, expired: Credential, spool: Path
) -> None:
    slow = row(expired)
    with held(sandbox, slow.get_access_token) as come_home:
        come_home()
    row(expired).delete()
    with pytest.raises(ReauthorizationRequired, match="deleted"):
        expired.get_access_token()
    with pytest.raises(ReauthorizationRequired, match="deleted"):
        slow.refresh()
    assert list(spool.iterdir()) == []
    assert len(sandbox.token_requests) == 1


@WITH_THREADS
@pytest.mark.parametrize(
    "fault",
    [faults.error_503(), faults.answer(401), faults.drop_after(), faults.error_200()],
)
def test_caller_is_told_when_the_row_is_deleted_before_a_failure_comes(
    sandbox: Sandbox, expired: Credential, fault: faults.Fault
) -> None:
    gate, slow = Gate("before"), row(expired)
    sandbox.plan(faults.hold(gate) | fault, account="ab123")
    with threads(1) as start:
        call = start(slow.refresh)
        gate.wait_until_arrived()
        row(expired).delete()
        gate.release()
        with pytest.raises(ReauthorizationRequired, match="deleted"):
            call.result(timeout=20)


@WITH_THREADS
def test_run_goes_on_when_a_row_is_deleted_before_its_reply_comes(
    sandbox: Sandbox, expired: Credential, connect: Connect, spool: Path
) -> None:
    other = connect("cd456", seconds_left=-1)
    let_time_pass()
    with held(sandbox, run) as come_home:
        row(expired).delete()
        counts = come_home()
    assert counts["refreshed"] == 1
    assert row(other).generation == 2
    assert list(spool.iterdir()) == []


@WITH_THREADS
def test_process_is_told_when_the_row_is_deleted_before_its_reply_comes(
    sandbox: Sandbox, expired: Credential, database_url: str, spool: Path
) -> None:
    with reading_process(sandbox, database_url) as (gate, process):
        row(expired).delete()
        gate.release()
        assert answer_of(process) == "ReauthorizationRequired"
    assert list(spool.iterdir()) == []


@WITH_THREADS
def test_waiter_is_told_when_the_row_is_deleted(sandbox: Sandbox, expired: Credential) -> None:
    waiting = row(expired)
    with held(sandbox, lambda: refresh(expired)) as come_home, threads(1) as start:
        waiter = start(waiting.get_access_token)
        row(expired).delete()
        with pytest.raises(ReauthorizationRequired, match="deleted"):
            waiter.result(timeout=20)
        assert come_home() == "ReauthorizationRequired"


# Somebody else has the same pair: a copy of the database


def used_by_a_copy(credential: Credential) -> None:
    """Let a copy of the site refresh, as it does with the pair that it has from us."""
    oauth.refresh(credential.client, credential.refresh_token)


def test_reason_is_used_elsewhere_when_a_copy_was_faster(
    sandbox: Sandbox, credential: Credential
) -> None:
    used_by_a_copy(credential)
    with (
        received(signals.reauthorization_required) as signal,
        pytest.raises(ReauthorizationRequired) as caught,
    ):
        row(credential).refresh()
    assert caught.value.reason == row(credential).reason == "used_elsewhere"
    assert [call["reason"] for call in signal] == ["used_elsewhere"]
    event = credential.events.get(kind="reauthorization_required")
    assert (event.outcome, event.reason) == ("rejected", "used_elsewhere")
    assert "never presented before" in event.detail
    assert "a copy of this database" in event.detail
    assert ask(credential) == credential.access_token  # while it lives


def test_reason_is_used_elsewhere_when_a_run_finds_it_out(
    sandbox: Sandbox, credential: Credential
) -> None:
    used_by_a_copy(credential)
    let_time_pass()
    assert run() == {"rejected": 1}
    assert row(credential).reason == "used_elsewhere"


def test_reason_is_used_elsewhere_when_our_own_refreshes_went_well_before(
    sandbox: Sandbox, credential: Credential
) -> None:
    credential.refresh()
    used_by_a_copy(row(credential))
    assert refresh(credential) == "ReauthorizationRequired"
    assert row(credential).reason == "used_elsewhere"


def test_reason_is_revoked_when_a_person_has_ended_the_grant(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke("ab123")
    assert refresh(credential) == "ReauthorizationRequired"
    assert row(credential).reason == "revoked"


def test_reason_is_rotation_lost_when_an_answer_of_ours_was_lost_before(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.drop_after(), account="ab123")
    with pytest.raises(OutcomeUnknown):
        row(credential).refresh()
    let_time_pass()
    assert run() == {"rejected": 1}
    assert row(credential).reason == "rotation_lost"


def test_reason_is_rotation_lost_when_a_process_of_ours_died_at_it_before(
    sandbox: Sandbox, credential: Credential
) -> None:
    used_by_a_copy(credential)  # as the process did that holds the lease
    past = timezone.now() - timedelta(seconds=1)
    Credential.objects.update(
        lease_until=past,
        lease_id="0" * 32,
        lease_holder="web-1:42",
        lease_is_used=True,
        refresh_at=past,
    )
    assert run() == {"rejected": 1}
    assert row(credential).reason == "rotation_lost"
    assert kinds(credential)[-2:] == ["abandoned", "reauthorization_required"]


def test_reason_is_revoked_when_the_access_token_has_ended_and_cannot_tell(
    sandbox: Sandbox, expired: Credential
) -> None:
    used_by_a_copy(expired)
    assert refresh(expired) == "ReauthorizationRequired"
    assert row(expired).reason == "revoked"


def test_reason_is_revoked_when_a_refresh_ends_the_access_token_and_it_cannot_tell(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.switches.refresh_revokes_access_tokens = True
    used_by_a_copy(credential)
    assert refresh(credential) == "ReauthorizationRequired"
    assert row(credential).reason == "revoked"


def test_reason_is_revoked_when_the_api_does_not_answer(
    sandbox: Sandbox, credential: Credential
) -> None:
    used_by_a_copy(credential)
    sandbox.plan(faults.drop_before(), endpoint="api")
    assert refresh(credential) == "ReauthorizationRequired"
    assert row(credential).reason == "revoked"


def test_connecting_again_ends_the_quarrel(
    sandbox: Sandbox, credential: Credential, connect: Connect
) -> None:
    used_by_a_copy(credential)
    refresh(credential)
    connect()
    assert refresh(credential) == "no exception"
    assert (row(credential).status, row(credential).reason) == ("connected", "")
