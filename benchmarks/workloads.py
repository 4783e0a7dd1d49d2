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
from itertools import islice
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
CONTACTS_PATH: Final = "v2/contacts"
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

    ours, plain = Credential.objects.for_account(job["account"]).session(), _plain_session(job)
    url = job["api_url"] + API_PATH
    calls = {"ours": lambda: ours.get(API_PATH), "plain": lambda: plain.get(url)}

    def work() -> dict[str, Any]:
        with CaptureQueriesContext(connection) as queries:
            medians = _alternately(calls, job["api_calls"])
        return {**medians, "queries": len(queries)}

    return work


def calls_of_requests(job: Job) -> Work:
    """A credential and a session for each call, as in web requests; and a kept plain session."""
    django.setup()
    from django.test.utils import CaptureQueriesContext

    from django_infusionsoft.models import Credential

    account, plain = job["account"], _plain_session(job)
    url = job["api_url"] + API_PATH

    def ours() -> requests.Response:
        return Credential.objects.for_account(account).session().get(API_PATH)

    def work() -> dict[str, Any]:
        with CaptureQueriesContext(connection) as queries:
            ours()
        return {
            **_alternately({"ours": ours, "plain": lambda: plain.get(url)}, job["api_calls"]),
            "queries": len(queries),
        }

    return work


def calls_in_threads(job: Job) -> Work:
    """Threads that share a credential, each with a session; and plain sessions."""
    django.setup()
    from django_infusionsoft.models import Credential

    credential = Credential.objects.for_account(job["account"])
    url, number = job["api_url"] + API_PATH, job["calls_per_thread"]

    def ours() -> None:
        session = credential.session()
        for _ in range(number):
            session.get(API_PATH).raise_for_status()

    def plain() -> None:
        session = _plain_session(job)
        for _ in range(number):
            session.get(url).raise_for_status()

    def seconds(call: Callable[[], None]) -> float:
        started = time.perf_counter()
        with ThreadPoolExecutor(job["threads"]) as pool:
            for each in [pool.submit(call) for _ in range(job["threads"])]:
                each.result()
        return time.perf_counter() - started

    def work() -> dict[str, Any]:
        rounds = [(seconds(ours), seconds(plain)) for _ in range(job["rounds"])]
        calls = job["threads"] * number
        return {
            "ours": calls / statistics.median(each for each, _ in rounds),
            "plain": calls / statistics.median(each for _, each in rounds),
            "ratio": statistics.median(theirs / own for own, theirs in rounds),
        }

    return work


def lists(job: Job) -> Work:
    """All contacts by ``items()`` and by a loop written by hand, alternately."""
    django.setup()
    from django_infusionsoft.models import Credential

    ours, plain = Credential.objects.for_account(job["account"]).session(), _plain_session(job)
    url, size = job["api_url"] + CONTACTS_PATH, job["page_size"]
    for session in (ours, plain):
        session.get(url, params={"page_size": 1})  # connects

    def by_hand() -> int:
        return _count_by_hand(plain, url, size)

    def by_items() -> int:
        return sum(1 for _ in ours.items(CONTACTS_PATH, page_size=size))

    def seconds(read: Callable[[], int]) -> float:
        started = time.perf_counter()
        if (found := read()) != job["listed"]:
            raise RuntimeError(f"{read.__name__} has found {found} contacts.")
        return time.perf_counter() - started

    def work() -> dict[str, Any]:
        rounds = [(seconds(by_items), seconds(by_hand)) for _ in range(job["rounds"])]
        return {
            "ours": statistics.median(each for each, _ in rounds),
            "plain": statistics.median(each for _, each in rounds),
            "ratio": statistics.median(own / theirs for own, theirs in rounds),
        }

    return work


def items(job: Job) -> Work:
    """The first contacts of a list by ``items()``."""
    django.setup()
    from django_infusionsoft.models import Credential

    session = Credential.objects.for_account(job["account"]).session()

    def work() -> dict[str, Any]:
        found = session.items(CONTACTS_PATH, page_size=job["page_size"])
        return {"read": sum(1 for _ in islice(found, job["read"]))}

    return work


def async_calls(job: Job) -> Work:
    """Tasks of an event loop that share a session; and the bare client of httpx2."""
    django.setup()
    import asyncio

    import httpx2

    from django_infusionsoft.models import Credential

    credential = Credential.objects.for_account(job["account"])
    url, headers = job["api_url"] + API_PATH, _headers(job)

    async def seconds(get: Callable[[], Any]) -> float:
        gate = asyncio.Semaphore(job["tasks"])

        async def call() -> None:
            async with gate:
                (await get()).raise_for_status()

        started = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(job["async_calls"])))
        return time.perf_counter() - started

    async def rounds() -> list[tuple[float, float]]:
        limits = httpx2.Limits(max_connections=200, max_keepalive_connections=64)
        async with (
            credential.asession() as session,
            httpx2.AsyncClient(headers=headers, limits=limits) as plain,
        ):
            return [
                (
                    await seconds(lambda: session.get(API_PATH)),
                    await seconds(lambda: plain.get(url)),
                )
                for _ in range(job["rounds"])
            ]

    def work() -> dict[str, Any]:
        found = asyncio.run(rounds())
        return {
            "ours": statistics.median(each for each, _ in found),
            "plain": statistics.median(each for _, each in found),
            "ratio": statistics.median(own / theirs for own, theirs in found),
        }

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
    "async_calls": async_calls,
    "calls_in_threads": calls_in_threads,
    "calls_of_requests": calls_of_requests,
    "items": items,
    "lists": lists,
    "peers": peers,
}


def _count_by_hand(session: requests.Session, url: str, size: int) -> int:
    number, params = 0, {"page_size": str(size)}
    while True:
        response = session.get(url, params=params)
        response.raise_for_status()
        page = response.json()
        for _ in page["contacts"]:
            number += 1
        if not page["next_page_token"]:
            return number
        params["page_token"] = page["next_page_token"]


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


def _headers(job: Job) -> dict[str, str]:
    from django_infusionsoft.models import Credential

    access_token = Credential.objects.for_account(job["account"]).get_access_token()
    return {"Authorization": f"Bearer {access_token}"}


def _plain_session(job: Job) -> requests.Session:
    session = requests.Session()
    session.headers.update(_headers(job))
    return session


def _alternately(
    calls: Mapping[str, Callable[[], requests.Response]], number: int
) -> dict[str, float]:
    """Return the median seconds of each kind of call, timed in alternating blocks."""
    for call in calls.values():
        _block_seconds(call)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(number // BLOCK):
        for name, call in calls.items():
            seconds[name].append(_block_seconds(call))
    return {name: statistics.median(each) / BLOCK for name, each in seconds.items()}


def _block_seconds(call: Callable[[], requests.Response]) -> float:
    """Return the duration of a block of calls."""
    started = time.perf_counter()
    for _ in range(BLOCK):
        call().raise_for_status()
    return time.perf_counter() - started


if __name__ == "__main__":
    serve(WORKLOADS[sys.argv[1]])
