"""The Celery task in real worker processes."""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from signal import SIGTERM
from subprocess import STDOUT, Popen
from typing import Any

import pytest
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults
from django_infusionsoft.schedule import beat_schedule
from tests.processes import started

pytest.importorskip("celery", reason="Celery is not installed here")

Settings = dict[str, Any]
StartWorker = Callable[..., "Popen[str]"]
WaitingRun = Callable[..., AbstractContextManager["Popen[str]"]]

NAME = "django_infusionsoft.tasks.refresh_due_credentials"
ACCOUNTS = tuple(f"ab{number}" for number in range(100, 124))
# The longest call takes 1.5 seconds.
QUICK_CALLS = {
    "INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS": 0.5,
    "INFUSIONSOFT_READ_TIMEOUT_SECONDS": 0.5,
}


def wait_for(condition: Callable[[], Any], *, seconds: float = 30) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "The condition was not met in time."
        time.sleep(0.05)


def test_task_has_the_name_that_the_schedule_uses() -> None:
    from django_infusionsoft.tasks import refresh_due_credentials

    (entry,) = beat_schedule().values()
    assert entry["task"] == refresh_due_credentials.name
    assert entry["task"] == NAME


def test_message_of_the_schedule_does_not_expire_by_the_clock_of_beat() -> None:
    (entry,) = beat_schedule(seconds=30).values()
    assert (entry["schedule"], entry.get("options")) == (30, None)


def test_messages_that_have_piled_up_are_one_run(
    connect: Callable[..., Credential], caplog: pytest.LogCaptureFixture
) -> None:
    from django_infusionsoft.tasks import refresh_due_credentials

    caplog.set_level("INFO")
    connect("ab123", seconds_left=-1)
    (entry,) = beat_schedule().values()
    for _ in range(5):
        refresh_due_credentials.apply(kwargs=entry["kwargs"]).get()
    assert caplog.text.count("run_finished refreshed=1") == caplog.text.count("run_finished") == 1


@pytest.mark.parametrize(("seconds", "limit"), [(60, 55), (12, 7), (4, 2), (0.5, 0.25)])
def test_run_of_the_schedule_ends_before_the_next_one(seconds: float, limit: float) -> None:
    (entry,) = beat_schedule(seconds=seconds).values()
    assert entry["kwargs"] == {"time_limit_seconds": limit, "interval_seconds": seconds}


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
        "stopped": 0,
    }


# Workers that are stopped, late or concurrent


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Run Keap with more accounts than a run can refresh before it is stopped."""
    with Sandbox(accounts=ACCOUNTS) as running, override_settings(**running.settings):
        yield running


@pytest.fixture(params=["redis_url", "rabbitmq_url"])
def broker(request: pytest.FixtureRequest, sandbox: Sandbox) -> Iterator[Settings]:
    """Return settings for workers with a separate queue."""
    settings = sandbox.settings | {
        "CELERY_BROKER_URL": request.getfixturevalue(request.param),
        "CELERY_TASK_DEFAULT_QUEUE": f"django-infusionsoft-{uuid.uuid4()}",
        "INFUSIONSOFT_REFRESH_CONCURRENCY": 2,
    }
    yield settings
    from kombu import Connection

    with Connection(settings["CELERY_BROKER_URL"]) as connection:
        connection.SimpleQueue(settings["CELERY_TASK_DEFAULT_QUEUE"]).queue.delete()


@pytest.fixture
def send(broker: Settings) -> Callable[..., None]:
    """Send the task's message, as beat does: ``send("its id", expires=60)``."""
    from celery import Celery

    def send_task(task_id: str, **options: Any) -> None:
        with Celery(broker=broker["CELERY_BROKER_URL"], set_as_current=False, fixups=[]) as app:
            app.conf.task_default_queue = broker["CELERY_TASK_DEFAULT_QUEUE"]
            app.send_task(NAME, task_id=task_id, **options)

    return send_task


@pytest.fixture
def worker(broker: Settings, database_url: str, tmp_path: Path) -> Iterator[StartWorker]:
    """Start a worker: ``worker("name", "--beat", SETTING=…)``; ``log()`` returns its output."""
    with ExitStack() as stack:

        def start(name: str, *arguments: str, **settings: Any) -> "Popen[str]":
            command = ["-m", "celery", "-A", "tests.celery_app", "worker", "-l", "info"]
            # RabbitMQ refuses a second worker of the same name, which another test may run.
            command += ["-n", f"{name}@{broker['CELERY_TASK_DEFAULT_QUEUE']}"]
            command += ["--concurrency", "1", "-s", str(tmp_path / name), *arguments]
            file = stack.enter_context((tmp_path / f"{name}.log").open("w"))
            return stack.enter_context(
                started(
                    *command,
                    database_url=database_url,
                    settings=broker | settings,
                    stdout=file,
                    stderr=STDOUT,
                )
            )

        yield start


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., str]:
    """Return the output of a worker so far."""
    return lambda name="one": (tmp_path / f"{name}.log").read_text()


@pytest.fixture
def many_due(connect: Callable[..., Credential], sandbox: Sandbox) -> None:
    for account in ACCOUNTS:
        connect(account, seconds_left=-1)


@pytest.fixture
def waiting_run(
    sandbox: Sandbox, many_due: None, worker: StartWorker, send: Callable[..., None]
) -> WaitingRun:
    """Start a worker whose task waits for a reply until the end of the block."""

    @contextmanager
    def start(*arguments: str) -> Iterator["Popen[str]"]:
        gate = sandbox.hold("after")
        sandbox.plan(faults.latency(0.3), times=None)
        process = worker("one", *arguments)
        send("it")
        gate.wait_until_processed(timeout=30)
        yield process
        gate.release()

    return start


def end_of(process: "Popen[str]") -> tuple[int, int] | None:
    """Return how a process has ended; it can still be waited for."""
    state = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    return state and (state.si_code, state.si_status)


def is_logged(log: Callable[..., str], what: str, task_id: str) -> Callable[[], bool]:
    return lambda: f"[{task_id}] {what}" in log()


def assert_run_was_clean(sandbox: Sandbox) -> None:
    """Assert that nothing is lost or leased, some are refreshed, and the rest is due."""
    assert not Credential.objects.filter(lease_until__isnull=False).exists()
    alive = {grant.refresh_token for grant in sandbox.live_grants}
    assert {credential.refresh_token for credential in Credential.objects.all()} == alive
    refreshed = Credential.objects.filter(generation=2).count()
    assert refreshed == len(sandbox.token_requests)
    assert 0 < refreshed < len(ACCOUNTS)
    assert Credential.objects.due().count() == len(ACCOUNTS) - refreshed
    assert sandbox.replays == 0


@pytest.mark.parametrize("whom", ["the worker alone", "all its processes"])
def test_run_ends_cleanly_when_its_worker_is_terminated(
    whom: str,
    sandbox: Sandbox,
    waiting_run: WaitingRun,
    log: Callable[..., str],
) -> None:
    """Both ways in which containers and systemd stop a worker."""
    with waiting_run() as process:
        if whom == "the worker alone":
            process.terminate()
        else:
            os.killpg(process.pid, SIGTERM)
        wait_for(lambda: "Warm shutdown" in log())
    wait_for(lambda: end_of(process))
    assert end_of(process) == (os.CLD_EXITED, 0)
    assert " ended=stop" in log()
    assert_run_was_clean(sandbox)


def test_task_succeeds_when_it_reaches_its_soft_time_limit(
    sandbox: Sandbox,
    waiting_run: WaitingRun,
    log: Callable[..., str],
) -> None:
    with waiting_run("--soft-time-limit", "2"):
        wait_for(lambda: "Soft time limit (2" in log())
    wait_for(is_logged(log, "succeeded", "it"))
    assert_run_was_clean(sandbox)


@pytest.mark.parametrize("broker", ["redis_url"], indirect=True)
@pytest.mark.parametrize(
    ("settings", "arguments", "options"),
    [
        ({"CELERY_TASK_TIME_LIMIT": 3}, [], {}),
        ({"CELERY_TASK_ANNOTATIONS": {NAME: {"time_limit": 3}}}, [], {}),
        ({}, ["--time-limit", "3"], {}),
        ({}, [], {"time_limit": 3}),
    ],
    ids=["site", "task", "worker", "message"],
)
def test_run_ends_before_a_hard_time_limit(
    sandbox: Sandbox,
    many_due: None,
    worker: StartWorker,
    send: Callable[..., None],
    log: Callable[..., str],
    settings: Settings,
    arguments: list[str],
    options: dict[str, Any],
) -> None:
    sandbox.plan(faults.latency(0.4), times=None)
    worker("one", *arguments, **settings, **QUICK_CALLS)
    send("it", **options)
    wait_for(is_logged(log, "succeeded", "it"))
    assert_run_was_clean(sandbox)


def test_each_account_is_refreshed_once_when_two_runs_overlap(
    sandbox: Sandbox,
    many_due: None,
    worker: StartWorker,
    send: Callable[..., None],
    log: Callable[..., str],
) -> None:
    gate = sandbox.hold("before", times=None)
    worker("one", "--concurrency", "2")
    for task_id in ("first", "second"):
        send(task_id)
    gate.wait_until_arrived(2, timeout=30)  # the first of each, which is sent alone
    gate.release()
    wait_for(is_logged(log, "succeeded", "first"))
    wait_for(is_logged(log, "succeeded", "second"))
    assert set(Credential.objects.values_list("generation", flat=True)) == {2}
    assert len(sandbox.token_requests) == len(ACCOUNTS)
    assert sandbox.replays == 0


@pytest.mark.every_database
def test_workers_keep_accounts_connected(
    sandbox: Sandbox, connect: Callable[..., Credential], worker: StartWorker
) -> None:
    """Two workers, each with its own beat, run twice as often, but refresh each account once."""
    for account in ACCOUNTS[:3]:
        connect(account)
    Credential.objects.update(refresh_at=timezone.now() - timedelta(seconds=1))
    worker("one", "--beat")
    worker("two", "--beat")
    wait_for(lambda: not Credential.objects.exclude(generation=2).exists())
    assert sandbox.replays == 0
    assert [request.outcome for request in sandbox.token_requests] == ["rotated"] * 3
