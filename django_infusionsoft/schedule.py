"""The entry for Celery beat. Needs no Celery, so that settings can import it."""

from typing import Any

# A run may take the time until the next one less this, and at least half of it.
MARGIN_SECONDS = 5.0


def beat_schedule(*, seconds: float = 60) -> dict[str, dict[str, Any]]:
    """Return the entry for ``CELERY_BEAT_SCHEDULE`` that refreshes the due credentials.

    :param seconds: the interval. A run stops sending requests before the next one starts. Messages
        do not expire, since the clock of beat's machine may be wrong. If they pile up while no
        worker runs, all but the first are empty runs, by the database's clock.
    """
    return {
        "django-infusionsoft-refresh": {
            "task": "django_infusionsoft.tasks.refresh_due_credentials",
            "schedule": seconds,
            "kwargs": {
                "time_limit_seconds": max(seconds - MARGIN_SECONDS, seconds / 2),
                "interval_seconds": seconds,
            },
        }
    }
