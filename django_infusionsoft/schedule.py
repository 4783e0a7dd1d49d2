"""The entry for Celery's beat. Needs no Celery, so that settings can import it."""

from typing import Any


def beat_schedule(*, seconds: float = 60) -> dict[str, dict[str, Any]]:
    """Return the entry for ``CELERY_BEAT_SCHEDULE`` that refreshes what is due.

    :param seconds: how often. A message that no worker took within this time expires, so that
        a worker which was away does not find a pile of them.
    """
    return {
        "django-infusionsoft-refresh": {
            "task": "django_infusionsoft.tasks.refresh_due_credentials",
            "schedule": seconds,
            "options": {"expires": seconds},
        }
    }
