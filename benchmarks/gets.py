"""One process that calls the API: ``session()`` beside a plain ``requests.Session``, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import django
import requests
from django.db import connection
from django.test.utils import CaptureQueriesContext

from benchmarks.timed import Job, Work, serve

PATH: Final = "v1/account/profile"
# So many of one kind, then so many of the other: what else happens on the machine meets both.
BLOCK: Final = 10

Get = Callable[[], requests.Response]


def prepare(job: Job) -> Work:
    django.setup()
    from django_infusionsoft.models import Credential

    credential = Credential.objects.for_account(job["account"])
    ours, plain = credential.session(), requests.Session()
    plain.headers["Authorization"] = f"Bearer {credential.get_access_token()}"
    url = job["api_url"] + PATH
    gets: dict[str, Get] = {"ours": lambda: ours.get(PATH), "plain": lambda: plain.get(url)}

    def work() -> dict[str, Any]:
        for get in gets.values():
            _block(get)
        seconds: dict[str, list[float]] = {name: [] for name in gets}
        with CaptureQueriesContext(connection) as queries:
            for _ in range(job["gets"] // BLOCK):
                for name, get in gets.items():
                    seconds[name].append(_block(get))
        medians = {name: statistics.median(each) / BLOCK for name, each in seconds.items()}
        return {**medians, "queries": len(queries)}

    return work


def _block(get: Get) -> float:
    """Return the seconds of a block of calls."""
    started = time.perf_counter()
    for _ in range(BLOCK):
        get().raise_for_status()
    return time.perf_counter() - started


if __name__ == "__main__":
    serve(prepare)
