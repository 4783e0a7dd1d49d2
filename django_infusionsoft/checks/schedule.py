"""Who starts the runs."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Final

from django.apps import apps
from django.core import checks
from django.core.checks import CheckMessage

TASK: Final = "django_infusionsoft.tasks.refresh_due_credentials"


def check_beat(**kwargs: Any) -> list[CheckMessage]:
    """W010: Celery's beat has no entry for the task. Silent where that cannot be known."""
    tasks = _scheduled_tasks()
    if tasks is None or TASK in tasks:
        return []
    return [
        checks.Warning(
            f"Celery's beat has no entry for {TASK}.",
            hint="Merge django_infusionsoft.schedule.beat_schedule() into CELERY_BEAT_SCHEDULE. "
            "If cron or something else starts the runs, add 'django_infusionsoft.W010' to "
            "SILENCED_SYSTEM_CHECKS.",
            id="django_infusionsoft.W010",
        )
    ]


def _scheduled_tasks() -> set[str] | None:
    # A site with a Celery app has imported Celery by now. In another one, a check is no reason to
    # load it: that takes longer than all of Django.
    if "celery" not in sys.modules or apps.is_installed("django_celery_beat"):
        return None
    tasks = import_module("django_infusionsoft.tasks")
    names: set[str] | None = tasks.scheduled_tasks()
    return names
