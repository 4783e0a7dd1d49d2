"""The Celery task, in real worker processes."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from subprocess import STDOUT
from typing import Any

import pytest
from django.utils import timezone

from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox
from django_infusionsoft.schedule import beat_schedule
from tests.processes import started

pytest.importorskip("celery", reason="Celery is not installed here")


def wait_for(condition: Callable[[], Any], *, seconds: float = 30) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "it did not happen in time"
        time.sleep(0.05)


def test_task_has_the_name_that_the_schedule_uses() -> None:
    from django_infusionsoft.tasks import refresh_due_credentials

    (entry,) = beat_schedule().values()
    assert entry["task"] == refresh_due_credentials.name
    assert entry["task"] == "django_infusionsoft.tasks.refresh_due_credentials"


def test_message_of_the_schedule_expires_before_the_next_one() -> None:
    (entry,) = beat_schedule(seconds=30).values()
    assert (entry["schedule"], entry["options"]) == (30, {"expires": 30})


def test_task_returns_the_counts(expired: Credential) -> None:
    from django_infusionsoft.tasks import refresh_due_credentials

    counts = refresh_due_credentials.apply().get()
    assert counts == {
        "refreshed": 1,
        "rejected": 0,
        "misconfigured": 0,
        "unavailable": 0,
        "unknown": 0,
        "unreadable": 0,
    }


def delete_queue(settings: dict[str, str]) -> None:
    from kombu import Connection

    with Connection(settings["CELERY_BROKER_URL"]) as broker:
        broker.SimpleQueue(settings["CELERY_TASK_DEFAULT_QUEUE"]).queue.delete()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("broker", ["redis_url", "rabbitmq_url"])
def test_workers_keep_accounts_connected(
    broker: str,
    request: pytest.FixtureRequest,
    sandbox: Sandbox,
    connect: Callable[..., Credential],
    database_url: str,
    tmp_path: Path,
) -> None:
    """Two workers, each with a beat of its own: twice too often, and still each once."""
    for account in ("ab123", "cd456", "ef789"):
        connect(account)
    Credential.objects.update(refresh_at=timezone.now() - timedelta(seconds=1))
    settings = sandbox.settings | {
        "CELERY_BROKER_URL": request.getfixturevalue(broker),
        "CELERY_TASK_DEFAULT_QUEUE": f"django-infusionsoft-{tmp_path.name}-{broker}",
    }

    def worker(name: str) -> Any:
        command = ["-m", "celery", "-A", "tests.celery_app", "worker", "--beat", "-l", "info"]
        command += ["--concurrency", "1", "-n", name, "-s", str(tmp_path / name)]
        log = stack.enter_context((tmp_path / f"{name}.log").open("w"))
        return started(
            *command, database_url=database_url, settings=settings, stdout=log, stderr=STDOUT
        )

    with ExitStack() as stack:
        stack.callback(delete_queue, settings)
        stack.enter_context(worker("one"))
        stack.enter_context(worker("two"))
        wait_for(lambda: not Credential.objects.exclude(generation=2).exists())
    assert sandbox.replays == 0
    assert [request.outcome for request in sandbox.token_requests] == ["rotated"] * 3
