"""Connections to the token endpoint: kept alive, and with proof of what was sent."""

import math
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Final, cast

import requests
from urllib3 import HTTPConnectionPool, PoolManager
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError
from urllib3.response import BaseHTTPResponse

from django_infusionsoft import elapsed
from django_infusionsoft.conf import conf
from django_infusionsoft.keap.sessions import HTTPAdapter, Session

Auth = Callable[[requests.PreparedRequest], requests.PreparedRequest]

# A gateway may close a kept-alive connection that has been idle for long. A refresh sent into a
# closing connection may be lost with its reply, so connections are not kept longer than this.
MAX_AGE_SECONDS: Final = 15.0
# The timeout for reading what has already arrived. A timeout of 0 would end the read too early.
SHORTEST_WAIT_SECONDS: Final = 0.001


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


class Call:
    """One request to the token endpoint, and whether any of it has been sent."""

    def __init__(self, *, until: float = math.inf) -> None:
        """:param until: the reading of ``elapsed.monotonic()`` after which nothing is sent."""
        self.sock: socket.socket  # once it is sent
        self.sent_at: float | None = None
        self._until = until
        self._lock = threading.Lock()

    @property
    def is_sent(self) -> bool:
        """Whether the server may have acted on the request. If false, it has not."""
        return self.sent_at is not None

    def start(self, sock: socket.socket) -> None:
        """Record that the first byte is about to be sent.

        :raises ConnectTimeoutError: it is too late to send anything.
        """
        with self._lock:
            now = elapsed.monotonic()
            if now > self._until:
                raise ConnectTimeoutError("Too late to send anything.")
            self.sock, self.sent_at = sock, now

    def give_up(self) -> None:
        """Prevent anything from being sent from now on, so that ``is_sent`` is final."""
        with self._lock:
            self._until = -math.inf


_current: ContextVar[Call] = ContextVar("django_infusionsoft_call")


@contextmanager
def making(call: Call) -> Iterator[None]:
    """Assign the request that this thread sends in the block to ``call``."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)


class _Connection(HTTPConnection):
    """Reports to the current call right before the first byte is sent."""

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        # Until here the request is only buffered. The CONNECT request to a proxy is sent without
        # this method.
        if self.sock is None:
            self.connect()
        _current.get().start(cast("socket.socket", self.sock))
        super().endheaders(*args, **kwargs)


@cache
def _reporting(pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
    """Return a pool of the same kind, such as a SOCKS proxy's, that uses ``_Connection``."""
    if issubclass(pool.ConnectionCls, _Connection):
        return pool
    connection = type("Connection", (_Connection, pool.ConnectionCls), {})
    return type(pool.__name__, (pool,), {"ConnectionCls": connection})


def _prepare(manager: PoolManager) -> None:
    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: _reporting(pools[scheme]) for scheme in pools}


class _Adapter(HTTPAdapter):
    """Sends to one URL, always with the same proxies and certificates."""

    _pool: Any = None

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        # Not each time: finding the pool takes a fifth of the time of sending.
        if self._pool is None:
            self._pool = super().get_connection_with_tls_context(*args, **kwargs)
        return self._pool

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _prepare(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        _prepare(manager)
        return manager


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


def read(response: BaseHTTPResponse, limit: int) -> bytes:
    """Return the body, or its first bytes beyond ``limit``.

    Data that has arrived is read, however late this process reads it.

    :raises HTTPError: the rest did not arrive within ``READ_TIMEOUT_SECONDS``.
    """
    sock, deadline = _current.get().sock, elapsed.monotonic() + conf.READ_TIMEOUT_SECONDS
    content, chunk = b"", b"more"
    while chunk and len(content) <= limit:
        if not response.closed:  # otherwise another call may be using the connection
            sock.settimeout(max(deadline - elapsed.monotonic(), SHORTEST_WAIT_SECONDS))
        # Only what has arrived so far: a whole chunk of a dripping body would take for ever.
        chunk = response.read1(8192, decode_content=True)
        content += chunk
    return content
