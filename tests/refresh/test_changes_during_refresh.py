"""A user reconnects, disconnects or deletes an account during a refresh: their change wins."""

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

from django_infusionsoft import signals
from django_infusionsoft.exceptions import InfusionsoftError, ReauthorizationRequired
from django_infusionsoft.keap import oauth
from django_infusionsoft.models import ApplicationState, Credential, CredentialEvent
from django_infusionsoft.sandbox import Gate, Sandbox, faults
from tests.processes import started
from tests.support import ask, received, row, run, threads

Connect = Callable[..., Credential]
WITH_THREADS = pytest.mark.django_db(transaction=True)

# A process that asks for an access token.
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


def end_delays() -> None:
    past = timezone.now() - timedelta(seconds=1)
    Credential.objects.filter(refresh_at__isnull=False).update(refresh_at=past)
    ApplicationState.objects.update(probe_at=past)


@contextmanager
def held(
    sandbox: Sandbox, call: Callable[[], Any], *, where: Any = "after"
) -> Iterator[Callable[[], Any]]:
    """Hold a refresh at Keap while the block runs; yield a function that finishes it.

    :param where: ``after``: the refresh token is used, and the reply has not been sent.
    """
    gate = sandbox.hold(where, account="ab123")
    with threads(1) as start:
        future = start(call)
        gate.wait_until_processed() if where == "after" else gate.wait_until_arrived()

        def finish() -> Any:
            gate.release()
            return future.result(timeout=20)

        try:
            yield finish
        finally:
            gate.release()


@contextmanager
def reading_process(sandbox: Sandbox, database_url: str) -> Iterator[tuple[Gate, "Popen[str]"]]:
    """Start a process whose refresh Keap has processed and not answered."""
    gate = sandbox.hold("after", account="ab123")
    with started(
        "-c", READER, database_url=database_url, settings=sandbox.settings, stdout=PIPE
    ) as process:
        gate.wait_until_processed(timeout=30)
        yield gate, process


def answer_of(process: "Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


# A user reconnects


@WITH_THREADS
def test_imported_pair_is_kept_when_a_reply_arrives_later(
    sandbox: Sandbox, expired: Credential, connect: Connect
) -> None:
    slow = row(expired)
    with held(sandbox, slow.get_access_token) as finish:
        again = connect()
        served = finish()
    assert served == slow.access_token == again.access_token
    after = row(expired)
    assert (after.refresh_token, after.generation) == (again.refresh_token, 2)
    assert (after.status, after.lease_until) == ("connected", None)
    assert kinds(expired)[-1] == "late_reply_dropped"


@WITH_THREADS
def test_imported_pair_replaces_the_pair_of_an_earlier_reply(
    sandbox: Sandbox, expired: Credential, connect: Connect
) -> None:
    with held(sandbox, row(expired).get_access_token) as finish:
        finish()
    again = connect()
    after = row(expired)
    assert (after.access_token, after.generation) == (again.access_token, 3)
    assert kinds(expired)[-2:] == ["refreshed", "imported"]
    assert ask(expired) == again.access_token


@WITH_THREADS
def test_authorized_pair_is_kept_when_a_reply_arrives_later(
    sandbox: Sandbox, expired: Credential
) -> None:
    reply = sandbox.issue("ab123")
    pair = oauth.TokenPair(
        access_token=reply["access_token"],
        refresh_token=reply["refresh_token"],
        expires_in=86_400,
        account="ab123",
    )
    with held(sandbox, row(expired).get_access_token) as finish:
        Credential.objects.connect(pair, application=None)
        assert finish() == reply["access_token"]
    assert row(expired).refresh_token == reply["refresh_token"]
    assert kinds(expired)[-2:] == ["reconnected", "late_reply_dropped"]


@WITH_THREADS
def test_imported_pair_is_kept_when_the_reply_to_a_run_arrives_later(
    sandbox: Sandbox, expired: Credential, connect: Connect
) -> None:
    end_delays()
    with held(sandbox, run) as finish:
        again = connect()
        finish()
    assert row(expired).refresh_token == again.refresh_token
    assert kinds(expired)[-1] == "late_reply_dropped"


@WITH_THREADS
def test_imported_pair_is_kept_when_the_reply_to_another_process_arrives_later(
    sandbox: Sandbox, expired: Credential, connect: Connect, database_url: str
) -> None:
    with reading_process(sandbox, database_url) as (gate, process):
        again = connect()
        gate.release()
        assert answer_of(process) == again.access_token
    assert row(expired).refresh_token == again.refresh_token
    assert kinds(expired)[-1] == "late_reply_dropped"


@WITH_THREADS
def test_late_rejection_is_ignored_when_the_account_was_reconnected(
    sandbox: Sandbox, expired: Credential, connect: Connect
) -> None:
    sandbox.revoke("ab123")
    with (
        received(signals.reauthorization_required) as signal,
        held(sandbox, row(expired).get_access_token) as finish,
    ):
        again = connect()
        assert finish() == again.access_token
    assert (row(expired).status, signal) == ("connected", [])


@WITH_THREADS
@pytest.mark.parametrize("fault", [faults.error_503(), faults.answer(401), faults.drop_after()])
def test_late_failure_is_not_counted_when_the_account_was_reconnected(
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
def test_waiting_caller_gets_the_new_access_token_when_the_account_is_reconnected(
    sandbox: Sandbox, expired: Credential, connect: Connect
) -> None:
    with (
        held(sandbox, row(expired).get_access_token) as finish,
        threads(1) as start,
    ):
        waiter = start(row(expired).get_access_token)
        again = connect()
        assert waiter.result(timeout=20) == again.access_token
        finish()
    assert len(sandbox.token_requests) == 1


# A user disconnects


def disconnected(credential: Credential) -> bool:
    """Whether the tokens and the lease are deleted, and no refresh is due."""
    after = row(credential)
    assert (after.access_token, after.refresh_token) == ("", "")
    assert (after.lease_until, after.lease_id, after.refresh_at) == (None, "", None)
    assert not Credential.objects.due().exists()
    assert not Credential.objects.connected().exists()
    return after.status == "disconnected"


def test_tokens_are_deleted_and_nothing_is_due_when_the_account_is_disconnected(
    sandbox: Sandbox, credential: Credential
) -> None:
    end_delays()
    credential.disconnect()
    assert disconnected(credential)
    assert run() == {}
    assert refresh(credential) == "ReauthorizationRequired"
    assert sandbox.token_requests == []
    assert kinds(credential)[-1] == "disconnected"


def test_error_is_raised_at_once_when_the_account_was_disconnected(
    sandbox: Sandbox, credential: Credential
) -> None:
    other = row(credential)
    credential.disconnect()
    for each in (credential, row(credential), Credential.objects.for_account("ab123")):
        with pytest.raises(ReauthorizationRequired, match="must be reconnected"):
            each.get_access_token()
    other.expires_at = timezone.now()  # a loaded instance with a valid access token makes no query
    with pytest.raises(ReauthorizationRequired):
        other.get_access_token()


def test_row_is_used_again_when_the_account_is_reconnected(
    sandbox: Sandbox, credential: Credential, connect: Connect
) -> None:
    credential.disconnect()
    again = connect()
    assert again.pk == credential.pk
    assert ask(credential) == again.access_token
    assert refresh(credential) == "no exception"
    after = row(credential)
    assert (after.status, after.generation) == ("connected", 4)
    end_delays()
    assert run() == {"refreshed": 1}


@WITH_THREADS
def test_credential_stays_disconnected_when_a_reply_arrives_later(
    sandbox: Sandbox, expired: Credential
) -> None:
    with held(sandbox, lambda: refresh(expired)) as finish:
        row(expired).disconnect()
        finish()
    assert disconnected(expired)
    assert row(expired).generation == 2
    assert kinds(expired)[-2:] == ["disconnected", "late_reply_dropped"]


@WITH_THREADS
def test_credential_is_disconnected_when_a_reply_arrived_before(
    sandbox: Sandbox, expired: Credential
) -> None:
    with held(sandbox, lambda: refresh(expired)) as finish:
        assert finish() == "no exception"
    expired.disconnect()  # an instance that was loaded before the reply
    assert disconnected(expired)
    assert row(expired).generation == 3
    assert ask(expired) == "ReauthorizationRequired"


@WITH_THREADS
@pytest.mark.parametrize("call", [ask, refresh])
def test_caller_gets_an_error_when_the_account_is_disconnected_before_the_reply(
    sandbox: Sandbox, expired: Credential, call: Callable[[Credential], str]
) -> None:
    with held(sandbox, lambda: call(expired)) as finish:
        row(expired).disconnect()
        assert finish() == "ReauthorizationRequired"


@WITH_THREADS
def test_waiting_caller_gets_an_error_when_the_account_is_disconnected(
    sandbox: Sandbox, expired: Credential
) -> None:
    waiting, has_checked = row(expired), Event()

    def notice_query(execute: Any, *statement: Any) -> Any:
        result = execute(*statement)
        has_checked.set()
        return result

    def wait() -> str:
        with connection.execute_wrapper(notice_query):
            return waiting.get_access_token()

    with held(sandbox, lambda: refresh(expired)) as finish, threads(1) as start:
        waiter = start(wait)
        assert has_checked.wait(10)
        row(expired).disconnect()
        try:
            with pytest.raises(ReauthorizationRequired):
                waiter.result(timeout=20)
        finally:
            finish()


def test_refresh_of_a_stale_instance_raises_an_error_when_the_account_was_disconnected(
    sandbox: Sandbox, credential: Credential
) -> None:
    before = row(credential)
    credential.disconnect()
    with pytest.raises(ReauthorizationRequired):
        before.refresh()
    assert sandbox.token_requests == []


def test_session_raises_an_error_on_a_401_when_the_account_was_disconnected(
    sandbox: Sandbox, credential: Credential
) -> None:
    session = row(credential).session()
    assert session.get("v2/contacts").status_code == 200
    sandbox.revoke_access_tokens("ab123")
    credential.disconnect()
    with pytest.raises(ReauthorizationRequired):
        session.get("v2/contacts")


@WITH_THREADS
def test_credential_stays_disconnected_when_the_reply_to_a_run_arrives_later(
    sandbox: Sandbox, expired: Credential, connect: Connect
) -> None:
    end_delays()
    with held(sandbox, run) as finish:
        row(expired).disconnect()
        finish()
    assert disconnected(expired)
    assert kinds(expired)[-1] == "late_reply_dropped"


@WITH_THREADS
def test_credential_stays_disconnected_when_the_reply_to_another_process_arrives_later(
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
def test_credential_stays_disconnected_when_a_failure_arrives_later(
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
    """Raised by a caller's view."""


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
def test_reply_is_stored_when_a_disconnection_during_the_refresh_is_rolled_back(
    sandbox: Sandbox, expired: Credential
) -> None:
    with held(sandbox, lambda: ask(expired)) as finish:
        with pytest.raises(Rollback), transaction.atomic():
            row(expired).disconnect()
            raise Rollback
        assert finish() == row(expired).access_token
    (grant,) = sandbox.live_grants
    assert row(expired).refresh_token == grant.refresh_token
    assert row(expired).status == "connected"


@WITH_THREADS
def test_instance_is_disconnected_inside_a_transaction(
    sandbox: Sandbox, credential: Credential
) -> None:
    with transaction.atomic():
        credential.disconnect()
        assert credential.status == "disconnected"
    assert disconnected(credential)
    with pytest.raises(ReauthorizationRequired):
        credential.get_access_token()


@WITH_THREADS
def test_history_has_the_generation_when_disconnecting_inside_a_transaction(
    sandbox: Sandbox, credential: Credential
) -> None:
    with transaction.atomic():
        credential.disconnect()
    assert credential.events.get(kind="disconnected").generation == row(credential).generation == 2


# A user deletes


@WITH_THREADS
def test_error_is_raised_when_the_row_is_deleted_before_the_reply_arrives(
    sandbox: Sandbox, expired: Credential, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow = row(expired)
    with held(sandbox, slow.get_access_token) as finish:
        row(expired).delete()
        with pytest.raises(ReauthorizationRequired, match="deleted"):
            finish()
    assert list(spool.iterdir()) == []
    assert f"reply_without_a_row credential={expired.pk}" in caplog.text
    assert not Credential.objects.exists()
    assert not CredentialEvent.objects.exists()


@WITH_THREADS
def test_next_reader_gets_an_error_when_the_row_is_deleted_after_the_reply_arrived(
    sandbox: Sandbox, expired: Credential, spool: Path
) -> None:
    slow = row(expired)
    with held(sandbox, slow.get_access_token) as finish:
        finish()
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
def test_error_is_raised_when_the_row_is_deleted_before_a_failure_arrives(
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
def test_run_continues_when_a_row_is_deleted_before_its_reply_arrives(
    sandbox: Sandbox, expired: Credential, connect: Connect, spool: Path
) -> None:
    other = connect("cd456", seconds_left=-1)
    end_delays()
    with held(sandbox, run) as finish:
        row(expired).delete()
        counts = finish()
    assert counts["refreshed"] == 1
    assert row(other).generation == 2
    assert list(spool.iterdir()) == []


@WITH_THREADS
def test_process_gets_an_error_when_the_row_is_deleted_before_its_reply_arrives(
    sandbox: Sandbox, expired: Credential, database_url: str, spool: Path
) -> None:
    with reading_process(sandbox, database_url) as (gate, process):
        row(expired).delete()
        gate.release()
        assert answer_of(process) == "ReauthorizationRequired"
    assert list(spool.iterdir()) == []


@WITH_THREADS
def test_waiting_caller_gets_an_error_when_the_row_is_deleted(
    sandbox: Sandbox, expired: Credential
) -> None:
    waiting = row(expired)
    with held(sandbox, lambda: refresh(expired)) as finish, threads(1) as start:
        waiter = start(waiting.get_access_token)
        row(expired).delete()
        with pytest.raises(ReauthorizationRequired, match="deleted"):
            waiter.result(timeout=20)
        assert finish() == "ReauthorizationRequired"


# A copy of the database uses the same token pair


def refresh_in_a_copy(credential: Credential) -> None:
    """Refresh as a copy of the site would, with the token pair of this database."""
    oauth.refresh(credential.client, credential.refresh_token)


def test_reason_is_used_elsewhere_when_a_copy_refreshed_first(
    sandbox: Sandbox, credential: Credential
) -> None:
    refresh_in_a_copy(credential)
    with (
        received(signals.reauthorization_required) as signal,
        pytest.raises(ReauthorizationRequired) as caught,
    ):
        row(credential).refresh()
    assert caught.value.reason == row(credential).reason == "used_elsewhere"
    assert [call["reason"] for call in signal] == ["used_elsewhere"]
    event = credential.events.get(kind="reauthorization_required")
    assert (event.outcome, event.reason) == ("rejected", "used_elsewhere")
    assert "had never presented" in event.detail
    assert "a copy of this database" in event.detail
    assert ask(credential) == credential.access_token  # while it is valid


def test_reason_is_used_elsewhere_when_a_run_is_rejected(
    sandbox: Sandbox, credential: Credential
) -> None:
    refresh_in_a_copy(credential)
    end_delays()
    assert run() == {"rejected": 1}
    assert row(credential).reason == "used_elsewhere"


def test_reason_is_used_elsewhere_when_earlier_refreshes_succeeded(
    sandbox: Sandbox, credential: Credential
) -> None:
    credential.refresh()
    refresh_in_a_copy(row(credential))
    assert refresh(credential) == "ReauthorizationRequired"
    assert row(credential).reason == "used_elsewhere"


@pytest.mark.parametrize("kind", ["refreshed", "recovered", "late_reply_dropped"])
def test_reason_is_not_used_elsewhere_when_this_site_presented_the_token_before(
    sandbox: Sandbox, credential: Credential, kind: str
) -> None:
    old = Credential.objects.filter(pk=credential.pk).values().get()
    credential.refresh()
    credential.events.filter(kind="refreshed").update(kind=kind)
    # As a restored dump of this table does.
    Credential.objects.update(refresh_token=old["refresh_token"])
    assert refresh(row(credential)) == "ReauthorizationRequired"
    assert row(credential).reason == "revoked"
    assert "older token pair" in row(credential).last_error
    event = credential.events.get(kind="reauthorization_required")
    assert "older token pair" in event.detail


def test_no_older_pair_is_suspected_when_earlier_presentations_failed(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.answer(401, {"error": "invalid_client"}), account="ab123")
    assert refresh(credential) == "ClientRejected"
    refresh_in_a_copy(credential)
    assert refresh(credential) == "ReauthorizationRequired"
    assert row(credential).reason == "revoked"
    assert "presented before: an earlier request" in row(credential).last_error


def test_reason_stays_used_elsewhere_when_the_history_has_only_the_import(
    sandbox: Sandbox, credential: Credential
) -> None:
    reply = sandbox.issue("ab123")
    Credential.objects.import_tokens(
        account="ab123",
        access_token=reply["access_token"],
        refresh_token=reply["refresh_token"],
        expires_at=timezone.now() + timedelta(days=1),
    )
    refresh_in_a_copy(row(credential))
    assert refresh(row(credential)) == "ReauthorizationRequired"
    assert row(credential).reason == "used_elsewhere"


def test_reason_is_revoked_when_the_user_has_revoked_the_grant(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke("ab123")
    assert refresh(credential) == "ReauthorizationRequired"
    assert row(credential).reason == "revoked"


def test_reason_is_rotation_lost_when_a_process_died_during_the_refresh(
    sandbox: Sandbox, credential: Credential
) -> None:
    refresh_in_a_copy(credential)  # as the process that holds the lease did
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


def test_reason_is_revoked_when_the_access_token_has_expired(
    sandbox: Sandbox, expired: Credential
) -> None:
    refresh_in_a_copy(expired)
    assert refresh(expired) == "ReauthorizationRequired"
    assert row(expired).reason == "revoked"


def test_reason_is_revoked_when_refreshing_revokes_the_access_token(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.switches.refresh_revokes_access_tokens = True
    refresh_in_a_copy(credential)
    assert refresh(credential) == "ReauthorizationRequired"
    assert row(credential).reason == "revoked"


def test_reason_is_revoked_when_the_api_does_not_answer(
    sandbox: Sandbox, credential: Credential
) -> None:
    refresh_in_a_copy(credential)
    sandbox.plan(faults.drop_before(), endpoint="api")
    assert refresh(credential) == "ReauthorizationRequired"
    assert row(credential).reason == "revoked"


def test_account_can_be_refreshed_when_it_was_reconnected(
    sandbox: Sandbox, credential: Credential, connect: Connect
) -> None:
    refresh_in_a_copy(credential)
    refresh(credential)
    connect()
    assert refresh(credential) == "no exception"
    assert (row(credential).status, row(credential).reason) == ("connected", "")
