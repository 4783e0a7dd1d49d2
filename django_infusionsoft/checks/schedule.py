"""The check of Celery's beat schedule."""

import sys
from importlib import import_module
from typing import Any, Final

from django.apps import apps
from django.core.checks import CheckMessage

from django_infusionsoft.checks.problems import problem

TASK: Final = "django_infusionsoft.tasks.refresh_due_credentials"


def check_beat(**kwargs: Any) -> list[CheckMessage]:
    """W010: beat has no entry for the task. Silent if that cannot be determined."""
    tasks = _scheduled_tasks()
    if tasks is None or TASK in tasks:
        return []
    return problem(
        "W010",
        f"Celery beat has no entry for {TASK}.",
        "Merge django_infusionsoft.schedule.beat_schedule() into CELERY_BEAT_SCHEDULE. "
        "If cron or another scheduler starts the runs, add 'django_infusionsoft.W010' "
        "to SILENCED_SYSTEM_CHECKS.",
    )


def _scheduled_tasks() -> set[str] | None:
    # A site with a Celery app has imported Celery by now. Other sites should not load it for a
    # check: that takes longer than loading Django.
    if "celery" not in sys.modules or apps.is_installed("django_celery_beat"):
        return None
    names: set[str] | None = import_module("django_infusionsoft.tasks").scheduled_tasks()
    return names
