"""The entry for Celery's beat. Needs no Celery, so that settings can import it."""

from typing import Any

# What a run may take of the time until the next one: all but this, and never under half of it.
MARGIN_SECONDS = 5.0


def beat_schedule(*, seconds: float = 60) -> dict[str, dict[str, Any]]:
    """Return the entry for ``CELERY_BEAT_SCHEDULE`` that refreshes what is due.

    :param seconds: how often. A message that no worker took within this time expires, so that
        a worker which was away does not find a pile of them; and a run sends nothing more when
        the next one is about to start.
    """
    return {
        "django-infusionsoft-refresh": {
            "task": "django_infusionsoft.tasks.refresh_due_credentials",
            "schedule": seconds,
            "kwargs": {"time_limit_seconds": max(seconds - MARGIN_SECONDS, seconds / 2)},
            "options": {"expires": seconds},
        }
    }
