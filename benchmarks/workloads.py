"""The work of timed processes: ``python -m benchmarks.workloads NAME``, see ``timed_process``."""

from __future__ import annotations

import re
import socket
import statistics
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urlsplit

import django
import requests
from django.db import connection

from benchmarks.timed_process import Job, Prepare, Work, serve

RUN_SECONDS: Final = 3600.0
TIMEOUT_SECONDS: Final = 30.0
CONTENT_LENGTH: Final = re.compile(rb"\r\nContent-Length: *(\d+)\r\n", re.IGNORECASE)
API_PATH: Final = "v1/account/profile"
# The kinds of calls alternate in blocks, so that other load affects both equally.
BLOCK: Final = 10


def refresh_due(job: Job) -> Work:
    """One worker process of the app."""
    django.setup()
    from django_infusionsoft.models import Credential

    connection.ensure_connection()

    def work() -> dict[str, Any]:
        run = Credential.objects.refresh_due(time_limit_seconds=RUN_SECONDS)
        return {"refreshed": run.refreshed, "run": run.as_dict()}

    return work


def plain_threads(job: Job) -> Work:
    """The baseline: threads that post the same requests, each with a kept-alive session.

    They use no database and no encryption, and discard the token pairs.
    """
    return _in_threads(job["refresh_tokens"], job, _post_all)


def raw_sockets(job: Job) -> Work:
    """The cheapest possible client, to measure the sandbox itself."""
    return _in_threads([_raw_request(job, each) for each in job["refresh_tokens"]], job, _send_all)


def api_calls(job: Job) -> Work:
    """API calls by ``session()`` and by a plain ``requests.Session``, alternately."""
    django.setup()
    from django.test.utils import CaptureQueriesContext

    from django_infusionsoft.models import Credential

    credential = Credential.objects.for_account(job["account"])
    ours, plain = credential.session(), requests.Session()
    plain.headers["Authorization"] = f"Bearer {credential.get_access_token()}"
    url = job["api_url"] + API_PATH
    calls = {"ours": lambda: ours.get(API_PATH), "plain": lambda: plain.get(url)}

    def work() -> dict[str, Any]:
        for call in calls.values():
            _block_seconds(call)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        with CaptureQueriesContext(connection) as queries:
            for _ in range(job["api_calls"] // BLOCK):
                for name, call in calls.items():
                    seconds[name].append(_block_seconds(call))
        medians = {name: statistics.median(each) / BLOCK for name, each in seconds.items()}
        return {**medians, "queries": len(queries)}

    return work


def peers(job: Job) -> Work:
    """One of the packages that sites use today."""
    from benchmarks import peers

    return peers.prepare(job)


WORKLOADS: Final[Mapping[str, Prepare]] = {
    "refresh_due": refresh_due,
    "plain_threads": plain_threads,
    "raw_sockets": raw_sockets,
    "api_calls": api_calls,
    "peers": peers,
}


def _in_threads(
    values: list[Any], job: Job, send_all: Callable[[Job, Iterator[Any]], int]
) -> Work:
    # The threads share the iterator, so that each value is used once.
    iterator, threads = iter(values), job["concurrency"]

    def work() -> dict[str, Any]:
        with ThreadPoolExecutor(threads) as pool:
            counts = [pool.submit(send_all, job, iterator) for _ in range(threads)]
        return {"refreshed": sum(count.result() for count in counts)}

    return work


def _post_all(job: Job, refresh_tokens: Iterator[str]) -> int:
    """Present one refresh token after another; return the number of new token pairs."""
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


def _raw_request(job: Job, refresh_token: str) -> bytes:
    parts = urlsplit(job["token_url"])
    basic = b64encode(f"{job['client_id']}:{job['client_secret']}".encode()).decode()
    body = f"grant_type=refresh_token&refresh_token={refresh_token}"
    return (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Basic {basic}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
        f"{body}"
    ).encode()


def _send_all(job: Job, raw_requests: Iterator[bytes]) -> int:
    """Send one request after another on one socket; return the number of successful replies."""
    parts, count = urlsplit(job["token_url"]), 0
    with socket.create_connection((parts.hostname, parts.port or 80), TIMEOUT_SECONDS) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in raw_requests:
            sock.sendall(request)
            count += _read_reply(sock).startswith(b"HTTP/1.1 200")
    return count


def _read_reply(sock: socket.socket) -> bytes:
    reply = b""
    while True:
        part = sock.recv(65536)
        if not part:
            return b""
        reply += part
        head, end, body = reply.partition(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(head + b"\r\n")
        if end and length and len(body) >= int(length[1]):
            return reply


def _block_seconds(call: Callable[[], requests.Response]) -> float:
    """Return the duration of a block of calls."""
    started = time.perf_counter()
    for _ in range(BLOCK):
        call().raise_for_status()
    return time.perf_counter() - started


if __name__ == "__main__":
    serve(WORKLOADS[sys.argv[1]])
