"""Schedulers whose messages pile up, whose clocks are wrong, or that keep a lost connection."""

from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.test import Client
from django.utils import timezone

from django_infusionsoft.models import Credential, WorkerState
from django_infusionsoft.refresh.run_result import Ended
from django_infusionsoft.sandbox import Sandbox
from tests.support import run

pytestmark = pytest.mark.django_db


def test_run_is_empty_when_another_began_a_moment_ago(
    due: Callable[..., Credential], sandbox: Sandbox
) -> None:
    first = Credential.objects.refresh_due(pause_seconds=30)
    due("ab123")
    second = Credential.objects.refresh_due(pause_seconds=30)
    assert (first.ended, second.ended) == (Ended.DONE, Ended.RECENT)
    assert sandbox.token_requests == []


@pytest.mark.parametrize("seconds", [-31, 3600])
def test_run_is_not_empty_when_the_last_began_long_ago_or_by_a_clock_ahead(
    expired: Credential, seconds: float
) -> None:
    WorkerState.objects.create(run_began_at=timezone.now() + timedelta(seconds=seconds))
    assert Credential.objects.refresh_due(pause_seconds=30).refreshed == 1


def test_run_without_a_pause_is_never_empty(expired: Credential) -> None:
    WorkerState.objects.create(run_began_at=timezone.now())
    assert run() == {"refreshed": 1}


def lose_connection() -> None:
    """Let the server close this thread's connection, as after a restart or a long idle time."""
    mysql = connection.vendor == "mysql"
    with connection.cursor() as cursor:
        cursor.execute("SELECT connection_id()" if mysql else "SELECT pg_backend_pid()")
        (number,) = cursor.fetchone()
    other = connections.create_connection("default")
    with closing(other), other.cursor() as cursor:
        cursor.execute(f"KILL {number}" if mysql else f"SELECT pg_terminate_backend({number})")


@pytest.fixture
def server(transactional_db: None) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no server")


def command(*arguments: str) -> Callable[[], object]:
    return lambda: call_command(*arguments, stdout=StringIO(), stderr=StringIO())


WAYS: dict[str, Callable[[], object]] = {
    "a run": run,
    "the command": command("infusionsoft_refresh"),
    "the command for one account": command("infusionsoft_refresh", "--account", "ab123"),
    "the command with --dry-run": command("infusionsoft_refresh", "--dry-run"),
    "the import": command("infusionsoft_import", "/dev/null"),
}


@pytest.mark.parametrize("way", WAYS)
def test_connection_is_opened_again_when_the_server_has_closed_it_before(
    server: None, expired: Credential, sandbox: Sandbox, way: str
) -> None:
    lose_connection()
    WAYS[way]()
    assert len(sandbox.token_requests) == (way not in ("the command with --dry-run", "the import"))


def test_status_and_health_view_open_another_connection(server: None, client: Client) -> None:
    run()
    lose_connection()
    command("infusionsoft_status")()
    lose_connection()
    assert client.get("/infusionsoft/health/").status_code == 200


def test_reader_opens_another_connection_once_a_query_has_failed(
    server: None, connect: Callable[..., Credential]
) -> None:
    connect(seconds_left=200)
    Credential.objects.update(issued_at=timezone.now() - timedelta(hours=23))
    credential = Credential.objects.get()
    before = credential.access_token
    lose_connection()
    assert credential.get_access_token() == before
    assert credential.get_access_token() != before
