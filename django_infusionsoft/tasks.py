"""The Celery task; the only module that imports Celery."""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from mmap import mmap
from typing import Any

from billiard.pool import soft_timeout_sighandler
from celery import Task, current_app, shared_task
from celery.exceptions import ImproperlyConfigured
from celery.signals import worker_init, worker_shutting_down

from django_infusionsoft import shutdown
from django_infusionsoft.keap.transport import longest_call_seconds
from django_infusionsoft.models import Credential
from django_infusionsoft.refresh.runs import RUN_TIME_LIMIT_SECONDS

# One byte, shared with the processes that the worker forks: Celery waits for them when it shuts
# down, and does not notify them.
_is_shutting_down = mmap(-1, 1)
# The hard and the soft limit of a worker's tasks in seconds, its command line included.
_worker_limits: tuple[float | None, float | None] = (None, None)


@worker_init.connect
def _begin(sender: Any, **kwargs: Any) -> None:
    global _worker_limits  # noqa: PLW0603  # before the fork, for the child processes
    _worker_limits = (sender.time_limit, sender.soft_time_limit)
    _is_shutting_down[0] = 0


@worker_shutting_down.connect
def _notify_children(**kwargs: Any) -> None:
    _is_shutting_down[0] = 1


@shared_task(bind=True, name="django_infusionsoft.tasks.refresh_due_credentials")
def refresh_due_credentials(
    self: Task[..., Any],
    time_limit_seconds: float | None = None,
    interval_seconds: float = 0.0,
) -> dict[str, int]:
    """Refresh the due credentials and return the counts by outcome.

    Safe to run twice or late: every credential is claimed in its row. When the worker shuts down,
    and at a soft time limit, the run stores all answers, releases all leases and succeeds: the
    next run continues.

    :param time_limit_seconds: nothing is sent after this, or earlier if a time limit of the task
        requires it. By default 55 seconds.
    :param interval_seconds: the interval of the schedule. If another run began less than half of
        it ago, the message is an old one, and nothing is done.
    """
    asked = RUN_TIME_LIMIT_SECONDS if time_limit_seconds is None else time_limit_seconds
    with _stop_requested() as stop:
        run = Credential.objects.refresh_due(
            time_limit_seconds=min([asked, *_allowed_seconds(self)]),
            pause_seconds=interval_seconds / 2,
            should_stop=lambda: stop() or bool(_is_shutting_down[0]),
        )
    return run.as_dict()


def _stop_requested() -> AbstractContextManager[shutdown.Stop]:
    """Defer the signals that Celery or a user sends to the process of a task."""
    signals = shutdown.existing("SIGTERM", "SIGINT", "SIGQUIT")
    # Outside the prefork pool, SIGUSR1 is not a soft time limit.
    soft_limit = [
        each
        for each in shutdown.existing("SIGUSR1")
        if signal.getsignal(each) is soft_timeout_sighandler
    ]
    return shutdown.deferred_signals(*signals, *soft_limit, discarded=soft_limit)


def _allowed_seconds(task: Task[..., Any]) -> Iterator[float]:
    """Yield how long a run may send requests, so that it ends before each time limit.

    As in Celery, the message's limit precedes the task's, and that the worker's.
    """
    conf = task.app.conf
    hard, soft = task.request.timelimit or (None, None)
    worker_hard, worker_soft = _worker_limits
    for limit in (
        hard or task.time_limit or worker_hard or conf.task_time_limit,
        soft or task.soft_time_limit or worker_soft or conf.task_soft_time_limit,
    ):
        if limit:
            yield max(limit - longest_call_seconds(), limit / 2)


def scheduled_tasks() -> set[str] | None:
    """Return the names of the tasks that beat starts; ``None`` if unknown.

    They are unknown if the site has no Celery app, if its settings cannot be read, and if the
    scheduler keeps its entries elsewhere, as django-celery-beat does.
    """
    app = current_app
    if app.main == "default":  # Celery's fallback
        return None
    try:
        app.finalize()  # lets receivers of its signals add their entries
        scheduler, entries = app.conf.beat_scheduler, app.conf.beat_schedule
    except (ImportError, ImproperlyConfigured):
        return None
    if scheduler != "celery.beat:PersistentScheduler":
        return None
    return {dict(entry).get("task", "") for entry in (entries or {}).values()}
