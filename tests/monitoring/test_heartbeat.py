"""The worker state: one row in which processes record runs and lock mails."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from django_infusionsoft.models import Credential, WorkerState
from django_infusionsoft.monitoring import heartbeat
from django_infusionsoft.refresh import sweep
from django_infusionsoft.sandbox import Sandbox
from tests.support import run, threads

pytestmark = pytest.mark.django_db
PAUSE = 600.0


def lock_mail() -> bool:
    return heartbeat.lock_mail("default", seconds=120, pause_seconds=PAUSE)


def worker_state() -> WorkerState:
    return WorkerState.objects.get()


def test_read_returns_none_when_no_run_was_recorded() -> None:
    assert heartbeat.read("default") is None


def test_heartbeat_is_recorded_while_a_run_is_running() -> None:
    heartbeat.record_heartbeat("default")
    row = heartbeat.read("default")
    assert row is not None
    assert row.run_seen_at is not None
    assert abs(row.run_seen_at - row.database_now) < timedelta(minutes=5)
    assert row.run_ended_at is None


def test_run_records_its_result(due: Callable[..., Credential], sandbox: Sandbox) -> None:
    due("ab123")
    due("cd456")
    sandbox.revoke("cd456")
    run()
    row = worker_state()
    assert (row.run_ended, row.run_refreshed, row.run_failed) == ("done", 1, 1)
    assert row.run_ended_at == row.run_seen_at


def test_run_is_recorded_when_no_account_is_due() -> None:
    run()
    assert worker_state().run_ended_at is not None


def test_run_is_recorded_when_it_is_stopped() -> None:
    Credential.objects.refresh_due(should_stop=lambda: True)
    assert worker_state().run_ended == "stop"


def test_long_run_records_heartbeats(
    due: Callable[..., Credential], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "HEARTBEAT_SECONDS", -1)
    due("ab123")
    long_ago = timezone.now() - timedelta(days=1)
    seen = []

    def record(_: object) -> None:
        seen.append(worker_state().run_seen_at)
        WorkerState.objects.update(run_seen_at=long_ago)

    Credential.objects.refresh_due(on_progress=record)
    assert seen
    assert seen[0] is not None
    assert seen[0] > long_ago


@pytest.mark.django_db(transaction=True)
def test_run_succeeds_when_its_result_cannot_be_recorded(
    due: Callable[..., Credential], caplog: pytest.LogCaptureFixture
) -> None:
    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("UPDATE") and "run_ended_at" in sql:
            raise OperationalError("gone")
        return execute(sql, params, many, context)

    due("ab123")
    with connection.execute_wrapper(wrapper):
        assert run() == {"refreshed": 1}
    assert "run_not_reported" in caplog.text


def test_there_is_always_one_row() -> None:
    heartbeat.record_heartbeat("default")
    heartbeat.end_run("default", ended="done", refreshed=0, failed=0)
    lock_mail()
    heartbeat.unlock_mail("default")
    assert WorkerState.objects.count() == 1


def test_mail_lock_is_held_by_one_process() -> None:
    assert lock_mail()
    assert not lock_mail()


def test_mail_lock_is_available_only_after_the_pause() -> None:
    assert lock_mail()
    heartbeat.unlock_mail("default")
    assert not lock_mail()
    WorkerState.objects.update(mailed_at=timezone.now() - timedelta(seconds=PAUSE + 60))
    assert lock_mail()


def test_mail_lock_is_available_when_it_has_expired() -> None:
    assert lock_mail()
    WorkerState.objects.update(mail_locked_until=timezone.now() - timedelta(seconds=1))
    assert lock_mail()


@pytest.mark.django_db(transaction=True)
def test_mail_lock_is_acquired_by_one_of_many_threads(database_url: str) -> None:
    with threads(4) as start:
        locked = [start(lock_mail) for _ in range(8)]
    assert sum(each.result() for each in locked) == 1
    assert WorkerState.objects.count() == 1
