"""How long a caller waits for a refresh, and what becomes of the reply after that."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, transaction
from django.db.backends.signals import connection_created
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft import waiting
from django_infusionsoft.exceptions import InfusionsoftError, TemporarilyUnavailable
from django_infusionsoft.models import Credential
from django_infusionsoft.refresh import attempt_pool, single
from django_infusionsoft.refresh.spool import OUTCOME
from django_infusionsoft.sandbox import Sandbox, faults
from django_infusionsoft.storage import database
from tests.support import end_leases, failing_updates, row, run, thread_limit, threads

LIMIT_SECONDS = 1.0
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    with override_settings(INFUSIONSOFT_WAIT_SECONDS=LIMIT_SECONDS):
        yield
        wait_for_store()


def storing_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "infusionsoft-store"]


def wait_for_store() -> None:
    for thread in storing_threads():
        assert not thread.daemon
        thread.join(20)


def session_get(credential: Credential) -> object:
    return credential.session().get("v2/contacts")


def in_transaction(credential: Credential) -> None:
    with transaction.atomic():
        credential.get_access_token()


WAYS: dict[str, Callable[[Credential], object]] = {
    "get_access_token": Credential.get_access_token,
    "in a transaction": in_transaction,
    "refresh": Credential.refresh,
    "session": session_get,
}


@pytest.mark.parametrize("way", WAYS)
def test_caller_leaves_after_its_limit_and_the_reply_is_stored(
    sandbox: Sandbox, expired: Credential, way: str
) -> None:
    if way == "in a transaction" and connection.vendor == "sqlite":
        pytest.skip("SQLite's transactions hold the write lock here")
    gate = sandbox.hold("after")
    with pytest.raises(TemporarilyUnavailable, match=r"has not replied for 1 seconds"):
        WAYS[way](expired)
    opened: list[Any] = []

    def note(connection: Any, **kwargs: Any) -> None:
        opened.append(connection)

    connection_created.connect(note)
    try:
        gate.release()
        wait_for_store()
    finally:
        connection_created.disconnect(note)
    assert row(expired).generation == 2
    assert expired.events.get(kind="refreshed").outcome == "ok"
    assert {each.connection for each in opened} == {None}  # of its own, and closed
    assert len(sandbox.token_requests) == 1


def test_failure_is_stored_when_the_caller_has_left(sandbox: Sandbox, expired: Credential) -> None:
    gate = faults.Gate("before")
    sandbox.plan(faults.hold(gate) | faults.error_500())
    with pytest.raises(TemporarilyUnavailable):
        expired.get_access_token()
    gate.release()
    wait_for_store()
    assert (row(expired).failures, row(expired).lease_until) == (1, None)


def test_failure_is_kept_in_the_spool_when_the_database_is_away_too(
    sandbox: Sandbox, expired: Credential, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(credential: Credential) -> None:
        raise OperationalError("the database is away")

    gate = faults.Gate("before")
    sandbox.plan(faults.hold(gate) | faults.error_500())
    with pytest.raises(TemporarilyUnavailable):
        expired.get_access_token()
    with monkeypatch.context() as patch:
        patch.setattr(database, "RETRY_PAUSES", ())
        patch.setattr(attempt_pool, "require_same_table", fail)
        gate.release()
        wait_for_store()
    assert [path.suffix for path in spool.iterdir()] == [OUTCOME]
    end_leases()
    run()
    assert (row(expired).failures, row(expired).unanswered_attempts) == (1, 0)
    assert list(spool.iterdir()) == []


def test_waiting_caller_is_woken_when_the_reply_is_stored_after_the_first_has_left(
    sandbox: Sandbox, expired: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait() -> str:
        with waiting.limited(30):
            return row(expired).get_access_token()

    monkeypatch.setattr(single, "POLL_SECONDS", 60)
    gate = sandbox.hold("after")
    with threads(1) as start:
        with pytest.raises(TemporarilyUnavailable):
            expired.get_access_token()
        waiter = start(wait)
        time.sleep(0.5)
        gate.release()
        assert waiter.result(10) == row(expired).access_token


def test_valid_access_token_is_returned_after_the_limit(
    sandbox: Sandbox, connect: Callable[..., Credential]
) -> None:
    connect(seconds_left=200)
    Credential.objects.update(issued_at=timezone.now() - timedelta(hours=23))
    aging, gate = Credential.objects.get(), sandbox.hold("after")
    assert aging.get_access_token() == aging.access_token
    gate.release()
    wait_for_store()
    assert row(aging).generation == 2


def test_interrupted_caller_waits_until_its_limit(sandbox: Sandbox, expired: Credential) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*args: Any) -> None:
        raise Interrupted

    def interrupt_main() -> None:
        gate.wait_until_processed()
        signal.pthread_kill(main, signal.SIGUSR1)

    gate, main = sandbox.hold("after"), threading.get_ident()
    before = signal.signal(signal.SIGUSR1, interrupt)
    interrupting = threading.Thread(target=interrupt_main)
    started = time.monotonic()
    try:
        interrupting.start()
        with pytest.raises(Interrupted):
            expired.refresh()
    finally:
        interrupting.join()
        signal.signal(signal.SIGUSR1, before)
    assert LIMIT_SECONDS <= time.monotonic() - started < 5
    gate.release()
    wait_for_store()
    assert row(expired).generation == 2


def test_caller_does_not_wait_for_the_database_when_the_pair_is_in_the_spool(
    sandbox: Sandbox, expired: Credential
) -> None:
    messages = ["server closed the connection"] * 20
    is_sent = lambda: bool(sandbox.token_requests)  # noqa: E731
    started = time.monotonic()
    with failing_updates(*messages, when=is_sent), pytest.raises(OperationalError):
        expired.get_access_token()
    assert time.monotonic() - started < 5
    assert run() == {"refreshed": 1}
    assert len(sandbox.token_requests) == 1


def test_caller_does_not_wait_for_a_probe(sandbox: Sandbox, expired: Credential) -> None:
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"), pytest.raises(InfusionsoftError):
        expired.get_access_token()
    gate, started = sandbox.hold("before"), time.monotonic()
    try:
        with pytest.raises(InfusionsoftError):
            row(expired).get_access_token()
        assert time.monotonic() - started < 5
    finally:
        gate.release()


# To the end


def answered_late(sandbox: Sandbox) -> None:
    sandbox.plan(faults.latency_after(2 * LIMIT_SECONDS), endpoint="refresh")


def test_caller_waits_to_the_end_when_there_is_no_spool(
    sandbox: Sandbox, expired: Credential
) -> None:
    answered_late(sandbox)
    with override_settings(INFUSIONSOFT_SPOOL_DIR=""):
        assert expired.get_access_token() == row(expired).access_token
    assert storing_threads() == []


@pytest.mark.django_db
def test_caller_waits_to_the_end_in_a_testcase(sandbox: Sandbox, expired: Credential) -> None:
    answered_late(sandbox)
    assert expired.get_access_token() == row(expired).access_token


@pytest.mark.parametrize(("has_threads", "waits"), [(0, True), (1, False)])
def test_caller_waits_to_the_end_in_uwsgi_without_threads(
    sandbox: Sandbox,
    expired: Credential,
    monkeypatch: pytest.MonkeyPatch,
    has_threads: int,
    waits: bool,
) -> None:
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(has_threads=has_threads))
    waiting.threads_disabled.cache_clear()
    answered_late(sandbox)
    try:
        if waits:
            assert expired.get_access_token() == row(expired).access_token
        else:
            with pytest.raises(TemporarilyUnavailable):
                expired.get_access_token()
    finally:
        waiting.threads_disabled.cache_clear()
    wait_for_store()
    assert row(expired).generation == 2


def exit_with_whether_threads_are_lost() -> None:
    sys.exit(int(waiting.process_ends_without_threads()))


@pytest.mark.parametrize(("package", "is_lost"), [("billiard", 1), ("multiprocessing", 0)])
def test_only_processes_of_celerys_pool_end_without_their_threads(
    package: str, is_lost: int
) -> None:
    context = pytest.importorskip(package).get_context("fork")
    child = context.Process(target=exit_with_whether_threads_are_lost)
    child.start()
    child.join(20)
    assert child.exitcode == is_lost
    assert not waiting.process_ends_without_threads()


def test_refresh_works_while_another_thread_imports_celery(
    expired: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("billiard.process", "rq.job"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert expired.get_access_token() == row(expired).access_token


def test_claim_is_released_when_nothing_can_be_sent(
    sandbox: Sandbox, expired: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> bool:
        raise ValueError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(waiting, "threads_disabled", fail)
        with pytest.raises(ValueError, match="a bug"):
            expired.get_access_token()
    assert row(expired).lease_until is None
    assert row(expired).get_access_token() == row(expired).access_token
    assert row(expired).unanswered_attempts == 0
    assert len(sandbox.token_requests) == 1


def test_caller_is_told_that_nothing_was_sent_when_no_thread_can_be_started(
    sandbox: Sandbox, expired: Credential
) -> None:
    with (
        thread_limit("infusionsoft"),
        pytest.raises(TemporarilyUnavailable, match="No thread can be started"),
    ):
        expired.get_access_token()
    assert sandbox.token_requests == []
    assert row(expired).lease_until is None
    assert row(expired).get_access_token() == row(expired).access_token
    assert row(expired).unanswered_attempts == 0


def test_reply_is_stored_by_the_caller_when_no_thread_can_be_started_for_it(
    sandbox: Sandbox, expired: Credential
) -> None:
    answered_late(sandbox)
    with (
        thread_limit("infusionsoft-store"),
        pytest.raises(TemporarilyUnavailable, match="has not replied for 1 seconds"),
    ):
        expired.get_access_token()
    assert storing_threads() == []
    assert row(expired).generation == 2


def test_caller_waits_to_the_end_in_a_process_that_ends_without_its_threads(
    sandbox: Sandbox, expired: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = SimpleNamespace(get_current_job=object)
    monkeypatch.setitem(sys.modules, "rq.job", job)
    answered_late(sandbox)
    assert expired.get_access_token() == row(expired).access_token
    assert storing_threads() == []


def test_command_waits_to_the_end(sandbox: Sandbox, expired: Credential) -> None:
    answered_late(sandbox)
    call_command("infusionsoft_refresh", account="ab123")
    assert row(expired).generation == 2
    assert storing_threads() == []
