"""Proof of whether a request was sent: directly, or through any kind of proxy."""

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Final, cast

import requests
from urllib3 import HTTPConnectionPool, PoolManager
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError

from django_infusionsoft import elapsed
from django_infusionsoft.keap.sessions import HTTPAdapter

# A gateway may close a kept-alive connection that has been idle for long. A request sent into a
# closing connection may be lost with its reply, so connections are not kept longer than this.
MAX_IDLE_SECONDS: Final = 15.0


class Call:
    """One request, and whether any of it has been sent."""

    def __init__(self, *, until: float = math.inf) -> None:
        """:param until: the reading of ``elapsed.monotonic()`` after which nothing is sent."""
        self.sock: socket.socket  # once it is sent
        self.sent_at: float | None = None
        self.is_traced = False  # by a connection of this module, which reports what it sends
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


_current: ContextVar[Call | None] = ContextVar("django_infusionsoft_call", default=None)


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

    _used_at = 0.0

    @property
    def is_connected(self) -> bool:
        """Whether the pool may use it again."""
        is_idle = elapsed.monotonic() - self._used_at > MAX_IDLE_SECONDS
        return super().is_connected and not is_idle

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        # Until here the request is only buffered. The CONNECT request to a proxy is sent without
        # this method.
        if self.sock is None:
            self.connect()
        self._used_at = elapsed.monotonic()
        if call := _current.get():
            call.start(cast("socket.socket", self.sock))
        super().endheaders(*args, **kwargs)


@cache
def _reporting(connection: type[Any]) -> type[Any]:
    """Return a class of connections that report, unless a tool for tests has put in another."""
    if not issubclass(connection, HTTPConnection):
        return connection
    return type("Connection", (_Connection, connection), {})


@cache
def _tracing(pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
    """Return a pool of the same kind, such as a SOCKS proxy's, whose connections report."""
    if hasattr(pool, "has_reporting_connections"):
        return pool
    # Looked up on use: tools for tests replace the class of the connections for a while.
    connection = property(lambda self: _reporting(pool.ConnectionCls))
    names = {"ConnectionCls": connection, "has_reporting_connections": True}
    return type(pool.__name__, (pool,), names)


def _prepare(manager: PoolManager) -> None:
    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: _tracing(pools[scheme]) for scheme in pools}


class TracingAdapter(HTTPAdapter):
    """Reports to the call of a block with ``making(call)``."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _prepare(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        _prepare(manager)
        return manager

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> Any:
        if call := _current.get():
            call.is_traced = True
        return super().get_connection_with_tls_context(request, *args, **kwargs)
