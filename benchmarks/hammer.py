"""What the sandbox can do: the cheapest client there is, bytes on a few kept sockets."""

from __future__ import annotations

import re
import socket
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.timed import Job, Work, serve

LENGTH: Final = re.compile(rb"\r\nContent-Length: *(\d+)\r\n", re.IGNORECASE)
TIMEOUT_SECONDS: Final = 30.0


def prepare(job: Job) -> Work:
    requests = iter([_request(job, each) for each in job["refresh_tokens"]])
    concurrency = job["concurrency"]

    def work() -> dict[str, Any]:
        with ThreadPoolExecutor(concurrency) as pool:
            counts = [pool.submit(_send_all, job, requests) for _ in range(concurrency)]
        return {"refreshed": sum(count.result() for count in counts)}

    return work


def _request(job: Job, refresh_token: str) -> bytes:
    parts = urlsplit(job["token_url"])
    basic = b64encode(f"{job['client_id']}:{job['client_secret']}".encode()).decode()
    body = f"grant_type=refresh_token&refresh_token={refresh_token}"
    return (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Basic {basic}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
        f"{body}"
    ).encode()


def _send_all(job: Job, requests: Iterator[bytes]) -> int:
    parts, count = urlsplit(job["token_url"]), 0
    with socket.create_connection((parts.hostname, parts.port or 80), TIMEOUT_SECONDS) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in requests:
            sock.sendall(request)
            count += _reply(sock).startswith(b"HTTP/1.1 200")
    return count


def _reply(sock: socket.socket) -> bytes:
    reply = b""
    while True:
        part = sock.recv(65536)
        if not part:
            return b""
        reply += part
        head, end, body = reply.partition(b"\r\n\r\n")
        length = LENGTH.search(head + b"\r\n")
        if end and length and len(body) >= int(length[1]):
            return reply


if __name__ == "__main__":
    serve(prepare)
