"""Connections to the token endpoint: kept alive, and with proof of what was sent."""

import os
import threading
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

import requests
from urllib3.response import BaseHTTPResponse

from django_infusionsoft import elapsed
from django_infusionsoft.conf import conf
from django_infusionsoft.keap.reading import read
from django_infusionsoft.keap.sent import MAX_IDLE_SECONDS, Call, TracingAdapter
from django_infusionsoft.keap.sessions import Session

Auth = Callable[[requests.PreparedRequest], requests.PreparedRequest]

# A refresh sent into a closing connection may be lost with its reply: see MAX_IDLE_SECONDS.
MAX_AGE_SECONDS: Final = MAX_IDLE_SECONDS


def longest_call_seconds() -> float:
    """Return how long one call can take: to connect, then to read the headers and the body.

    Not included: further addresses of a host whose first address is dead, a slow name server, and
    headers that arrive byte by byte.
    """
    return conf.CONNECT_TIMEOUT_SECONDS + longest_answer_seconds()


def longest_answer_seconds() -> float:
    """Return how long a call can take once it is connected."""
    return 2 * conf.READ_TIMEOUT_SECONDS


def lease_seconds() -> float:
    """Return how long a lease lasts.

    Twice the longest call: claims wait for a free thread, and a host may have dead addresses.
    """
    return 2 * longest_call_seconds()


class _Adapter(TracingAdapter):
    """Sends to one URL, always with the same proxies and certificates."""

    _pool: Any = None

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        # Not each time: finding the pool takes a fifth of the time of sending.
        if self._pool is None:
            self._pool = super().get_connection_with_tls_context(*args, **kwargs)
        return self._pool


class _Adapters:
    """One adapter at a time, shared by all threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._url, self._made_at = "", 0.0

    def current(self, url: str) -> tuple[_Adapter, Any]:
        """Return the adapter for a URL, and the proxies and certificates of the environment."""
        with self._lock:
            now = elapsed.monotonic()
            if url != self._url or now - self._made_at > MAX_AGE_SECONDS:
                self._adapter = _Adapter(pool_maxsize=conf.REFRESH_CONCURRENCY, max_retries=0)
                # Not for each request: reading the environment takes long.
                self._settings = Session().merge_environment_settings(url, {}, True, None, None)
                self._url, self._made_at = url, now
            return self._adapter, self._settings


@cache
def _adapters_of(process_id: int) -> _Adapters:
    """Return a process's own adapters: its parent's sockets belong to the parent.

    Those are kept, since closing them is not a child's business. So is their lock, whose thread
    may not exist in the child.
    """
    return _Adapters()


def post(
    url: str, body: str, *, headers: Mapping[str, str], auth: Auth | None
) -> requests.Response:
    """Send one request, without cookies, retries and redirects; the reply's body is unread.

    Not by a session, which would keep cookies, and takes more time.

    :raises Exception: nothing was sent, or no reply was received; of many types.
    """
    adapter, settings = _adapters_of(os.getpid()).current(url)
    request = requests.Request("POST", url, headers=headers, data=body, auth=auth).prepare()
    timeout = conf.CONNECT_TIMEOUT_SECONDS, conf.READ_TIMEOUT_SECONDS
    return adapter.send(request, timeout=timeout, **settings)


def read_reply(response: BaseHTTPResponse, call: Call, limit: int) -> bytes | None:
    """Return the body of a call's reply; ``None`` if it has more than ``limit`` bytes.

    :raises HTTPError: the rest did not arrive within ``READ_TIMEOUT_SECONDS``.
    """
    ends_at = elapsed.monotonic() + conf.READ_TIMEOUT_SECONDS
    return read(response, limit, ends_at=ends_at, sock=call.sock)
