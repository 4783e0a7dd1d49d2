"""One worker process: refreshes what is due, and tells how long it took."""

from __future__ import annotations

from typing import Any, Final

import django
from django.db import connection

from benchmarks.timed import Job, Work, serve

TIME_LIMIT_SECONDS: Final = 3600.0


def prepare(job: Job) -> Work:
    django.setup()
    from django_infusionsoft.models import Credential

    connection.ensure_connection()

    def work() -> dict[str, Any]:
        run = Credential.objects.refresh_due(time_limit_seconds=TIME_LIMIT_SECONDS)
        return {"refreshed": run.refreshed, "run": run.as_dict()}

    return work


if __name__ == "__main__":
    serve(prepare)
