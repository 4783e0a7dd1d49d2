"""The Celery task; the only module that imports Celery."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from typing import Any

from billiard.pool import soft_timeout_sighandler
from celery import Task, current_app, shared_task
from celery.exceptions import ImproperlyConfigured
from celery.signals import worker_init, worker_shutting_down

from django_infusionsoft import stopping
from django_infusionsoft.managers import RUN_TIME_LIMIT_SECONDS
from django_infusionsoft.models import Credential
from django_infusionsoft.transport import longest_call_seconds

# One byte, shared with the processes that the worker forks: Celery does not tell them that it is
# about to end, and waits for them.
_is_shutting_down = mmap(-1, 1)
# The hard and the soft limit of a worker's tasks in seconds, its command line included.
_worker_limits: tuple[float | None, float | None] = (None, None)


@worker_init.connect
def _begin(sender: Any, **kwargs: Any) -> None:
    global _worker_limits  # noqa: PLW0603  # before the fork, for the processes to come
    _worker_limits = (sender.time_limit, sender.soft_time_limit)
    _is_shutting_down[0] = 0


@worker_shutting_down.connect
def _tell_children(**kwargs: Any) -> None:
    _is_shutting_down[0] = 1


@shared_task(bind=True, name="django_infusionsoft.tasks.refresh_due_credentials")
def refresh_due_credentials(
    self: Task[..., Any], time_limit_seconds: float | None = None
) -> dict[str, int]:
    """Refresh what is due and return the counts by outcome.

    Safe when run twice, late or never: every credential is claimed in its row. Ends cleanly, with
    every answer stored and every lease given back, when the worker shuts down and at a soft time
    limit, which is no failure: the next run goes on.

    :param time_limit_seconds: after which nothing more is sent; less where a time limit of the
        task's would strike sooner. By default a bit less than a minute.
    """
    asked = RUN_TIME_LIMIT_SECONDS if time_limit_seconds is None else time_limit_seconds
    with _asked_to_stop() as stop:
        run = Credential.objects.refresh_due(
            time_limit_seconds=min([asked, *_allowed_seconds(self)]),
            should_stop=lambda: stop() or bool(_is_shutting_down[0]),
        )
    return run.as_dict()


@contextmanager
def _asked_to_stop() -> Iterator[stopping.Stop]:
    """Note the signals that Celery or a person sends to the process of a task."""
    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
    # Elsewhere than in the prefork pool it is no soft time limit.
    has_soft_limit = signal.getsignal(signal.SIGUSR1) is soft_timeout_sighandler
    soft_limit = [signal.SIGUSR1] if has_soft_limit else []
    with stopping.noted(*signals, *soft_limit, swallowed=soft_limit) as stop:
        yield stop


def _allowed_seconds(task: Task[..., Any]) -> Iterator[float]:
    """Yield how long a run may send, so that it has ended when a time limit strikes.

    The message's limit goes before the task's, and that before the worker's, as in Celery.
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
    """Return the names of the tasks that beat starts; ``None`` where that cannot be known.

    So it is where the site has made no Celery app, where its settings cannot be read, and where a
    scheduler keeps its entries elsewhere, as django-celery-beat does.
    """
    app = current_app
    if app.main == "default":  # the one that Celery makes up
        return None
    try:
        app.finalize()  # which lets receivers of its signals add their entries
        scheduler, entries = app.conf.beat_scheduler, app.conf.beat_schedule
    except (ImportError, ImproperlyConfigured):
        return None
    if scheduler != "celery.beat:PersistentScheduler":
        return None
    return {dict(entry).get("task", "") for entry in (entries or {}).values()}
