"""Connections to the token endpoint: kept alive, and bounded in time as a whole.

A timeout of urllib3's bounds one wait for one packet, and of the name server's answer there is no
bound at all. A lease needs to know how long a call can take.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Final

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError
from urllib3.response import BaseHTTPResponse

from django_infusionsoft.conf import conf

# A gateway may close a kept-alive connection that was idle for long, and a refresh sent into a
# closing connection may be lost with its answer. None gets old enough to have been idle longer.
MAX_AGE_SECONDS: Final = 15.0


def longest_call_seconds() -> float:
    """Return how long one call can take: to connect, for the head of the answer, for its body."""
    return conf.CONNECT_TIMEOUT_SECONDS + 2 * conf.READ_TIMEOUT_SECONDS


class _Bounded(HTTPConnection):
    """Sends nothing after a slow connect, and waits for the whole head of an answer once."""

    def connect(self) -> None:
        started = time.monotonic()
        super().connect()
        if time.monotonic() - started > conf.CONNECT_TIMEOUT_SECONDS:
            self.close()
            raise ConnectTimeoutError(self, "Connected too late to send anything.")

    def getresponse(self) -> Any:
        is_over = threading.Event()

        def cut_off(sock: socket.socket) -> None:
            is_over.set()
            with suppress(OSError):  # gone already
                # Past the methods of TLS, which are not for two threads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

        watch = threading.Timer(conf.READ_TIMEOUT_SECONDS, cut_off, [self.sock])
        watch.daemon = True
        watch.start()
        try:
            response = super().getresponse()
        finally:
            watch.cancel()
        if is_over.is_set():  # half a head can pass for a whole one
            response.close()
            raise TimeoutError
        return response


class _BoundedTLS(_Bounded, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Bounded


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _BoundedTLS


def _bound(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _bound(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        _bound(manager)
        return manager


class _Adapters:
    """One at a time, shared by the threads of a process and never by two processes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._adapter: HTTPAdapter | None = None
        self._made_at = 0.0
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # Not closed: the sockets belong to the parent. A new lock: a thread of the parent's that
        # held the old one does not exist here.
        self._lock = threading.Lock()
        self._adapter = None

    def current(self) -> HTTPAdapter:
        with self._lock:
            now = time.monotonic()
            if self._adapter is None or now - self._made_at > MAX_AGE_SECONDS:
                self._adapter = _Adapter(pool_maxsize=conf.REFRESH_CONCURRENCY, max_retries=0)
                self._made_at = now
            return self._adapter


_adapters = _Adapters()


def adapter() -> HTTPAdapter:
    """Return what to mount on a session: kept-alive connections, no retries."""
    return _adapters.current()


def read(response: BaseHTTPResponse, limit: int) -> bytes:
    """Return the body, or its first bytes beyond ``limit``.

    :raises TimeoutError: it has not come whole within ``READ_TIMEOUT_SECONDS``.
    """
    deadline = time.monotonic() + conf.READ_TIMEOUT_SECONDS
    content = b""
    # What has come so far at a time: whole chunks of a dripping body would take for ever.
    while len(content) <= limit and (chunk := response.read1(8192, decode_content=True)):
        content += chunk
        if time.monotonic() > deadline:
            raise TimeoutError
    return content
