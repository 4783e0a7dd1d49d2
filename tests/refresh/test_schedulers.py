"""Schedulers whose messages pile up, whose clocks are wrong, or that keep a lost connection."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection, connections
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


@pytest.mark.django_db(transaction=True)
def test_next_run_opens_another_connection_when_the_server_has_closed_it(
    expired: Credential, sandbox: Sandbox
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no server")
    mysql = connection.vendor == "mysql"
    with connection.cursor() as cursor:
        cursor.execute("SELECT connection_id()" if mysql else "SELECT pg_backend_pid()")
        (number,) = cursor.fetchone()
    other = connections.create_connection("default")
    with other.cursor() as cursor:
        cursor.execute(f"KILL {number}" if mysql else f"SELECT pg_terminate_backend({number})")
    other.close()
    assert run() == {"refreshed": 1}
