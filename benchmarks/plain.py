"""What the sweep is measured by: threads that post the same requests, and nothing else.

Each thread has a ``requests.Session`` of its own, as anybody would write it, whose connection is
kept alive. There is no database, no encryption, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import requests

from benchmarks.timed import Job, Work, serve

TIMEOUT_SECONDS: Final = 30.0


def prepare(job: Job) -> Work:
    concurrency = job["concurrency"]
    # One for all: a list's iterator gives each value to one thread only.
    refresh_tokens = iter(job["refresh_tokens"])

    def work() -> dict[str, Any]:
        with ThreadPoolExecutor(concurrency) as pool:
            counts = [pool.submit(post_all, job, refresh_tokens) for _ in range(concurrency)]
        return {"refreshed": sum(count.result() for count in counts)}

    return work


def post_all(job: Job, refresh_tokens: Iterator[str]) -> int:
    """Present one refresh token after the other; return how many pairs came."""
    count = 0
    with requests.Session() as session:
        for refresh_token in refresh_tokens:
            response = session.post(
                job["token_url"],
                data={"grant_type": "refresh_token", "refresh_token": refresh_token},
                auth=(job["client_id"], job["client_secret"]),
                timeout=TIMEOUT_SECONDS,
            )
            count += bool(response.json()["refresh_token"])
    return count


if __name__ == "__main__":
    serve(prepare)
