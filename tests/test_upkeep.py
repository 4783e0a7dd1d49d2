"""The one row through which processes know of each other's runs and mails."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from django_infusionsoft import runs, upkeep
from django_infusionsoft.models import Credential, Upkeep
from django_infusionsoft.rows import process_name
from django_infusionsoft.sandbox import Sandbox
from tests.support import run, threads

pytestmark = pytest.mark.django_db
PAUSE = 600.0


def take() -> bool:
    return upkeep.take_mail("default", seconds=120, pause_seconds=PAUSE)


def known() -> Upkeep:
    return Upkeep.objects.get()


def test_nothing_is_known_in_the_beginning() -> None:
    assert upkeep.read("default") is None


def test_run_is_seen_while_it_goes_on() -> None:
    upkeep.see_run("default")
    row = upkeep.read("default")
    assert row is not None
    assert row.run_seen_at is not None
    assert abs(row.run_seen_at - row.database_now) < timedelta(minutes=5)
    assert (row.run_worker, row.run_ended_at) == (process_name(), None)


def test_run_tells_what_it_did(due: Callable[..., Credential], sandbox: Sandbox) -> None:
    due("ab123")
    due("cd456")
    sandbox.revoke("cd456")
    run()
    row = known()
    assert (row.run_ended, row.run_refreshed, row.run_failed) == ("done", 1, 1)
    assert row.run_ended_at == row.run_seen_at


def test_run_with_nothing_to_do_is_seen_too() -> None:
    run()
    assert known().run_ended_at is not None


def test_run_that_is_stopped_is_seen() -> None:
    Credential.objects.refresh_due(should_stop=lambda: True)
    assert known().run_ended == "stop"


def test_long_run_is_seen_now_and_then(
    due: Callable[..., Credential], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", -1)
    due("ab123")
    long_ago = timezone.now() - timedelta(days=1)
    seen = []

    def look(_: object) -> None:
        seen.append(known().run_seen_at)
        Upkeep.objects.update(run_seen_at=long_ago)

    Credential.objects.refresh_due(on_progress=look)
    assert seen
    assert seen[0] is not None
    assert seen[0] > long_ago


@pytest.mark.django_db(transaction=True)
def test_run_has_done_what_it_did_though_it_cannot_be_told(
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


def test_one_row_is_all_there_ever_is() -> None:
    upkeep.see_run("default")
    upkeep.end_run("default", ended="done", refreshed=0, failed=0)
    take()
    upkeep.end_mail("default")
    assert Upkeep.objects.count() == 1


def test_mail_is_one_processes() -> None:
    assert take()
    assert not take()


def test_next_mail_waits_for_the_pause() -> None:
    assert take()
    upkeep.end_mail("default")
    assert not take()
    Upkeep.objects.update(mailed_at=timezone.now() - timedelta(seconds=PAUSE + 60))
    assert take()


def test_mail_of_a_process_that_died_is_taken_over() -> None:
    assert take()
    Upkeep.objects.update(mail_until=timezone.now() - timedelta(seconds=1))
    assert take()


@pytest.mark.django_db(transaction=True)
def test_mail_is_one_threads_of_many(database_url: str) -> None:
    with threads(4) as start:
        taken = [start(take) for _ in range(8)]
    assert sum(each.result() for each in taken) == 1
    assert Upkeep.objects.count() == 1
