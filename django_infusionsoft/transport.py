"""Connections to the token endpoint: kept alive, and bounded in time as a whole.

A timeout of urllib3's bounds one wait for one packet, and of the name server's answer there is no
bound at all. A lease needs to know how long a call can take.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.response import BaseHTTPResponse

from django_infusionsoft.conf import conf

# A gateway may close a kept-alive connection that was idle for long, and a refresh sent into a
# closing connection may be lost with its answer. None gets old enough to have been idle longer.
MAX_AGE_SECONDS: Final = 15.0


# How long the thread lives that has nothing to watch.
IDLE_SECONDS: Final = 30.0
# An answer that came while this process was stopped is taken before it would be cut off.
GRACE_SECONDS: Final = 1.0

_call = threading.local()


def longest_call_seconds() -> float:
    """Return how long one call can take: to connect, for the head of the answer, for its body."""
    return conf.CONNECT_TIMEOUT_SECONDS + longest_answer_seconds()


def longest_answer_seconds() -> float:
    """Return how long a call can take once it is connected."""
    return 2 * conf.READ_TIMEOUT_SECONDS + GRACE_SECONDS


@contextmanager
def sending_until(moment: float) -> Iterator[None]:
    """Let this thread's calls in the block send nothing after ``moment``, as monotonic time."""
    _call.ends_at = moment
    try:
        yield
    finally:
        del _call.ends_at


class _Bounded(HTTPConnection):
    """Sends nothing after a slow connect, and waits for the whole head of an answer once."""

    def connect(self) -> None:
        started = time.monotonic()
        try:
            super().connect()
        except OSError as error:  # TLS included
            raise NewConnectionError(self, type(error).__name__) from error
        if time.monotonic() - started > conf.CONNECT_TIMEOUT_SECONDS:
            self.close()
            raise ConnectTimeoutError(self, "Connected too late to send anything.")

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is None:
            self.connect()
        # The last look before the wire: whatever took its time, or was stopped, was before this.
        if time.monotonic() > getattr(_call, "ends_at", math.inf):
            self.close()
            raise ConnectTimeoutError(self, "Too late to send anything.")
        try:
            _watch.be_there()
        except RuntimeError as error:  # no more threads
            self.close()
            raise NewConnectionError(self, "Nobody would end a wait.") from error
        super().request(*args, **kwargs)

    def getresponse(self) -> Any:
        wait = _Wait(self.sock, time.monotonic() + conf.READ_TIMEOUT_SECONDS)
        with suppress(RuntimeError):  # no more threads: the socket's own timeout has to do
            _watch.begin(wait)
            # Which passes over an answer that is there when it ends.
            self.timeout = None
        try:
            response = super().getresponse()
            with suppress(OSError):  # closed with the answer read whole
                wait.sock.settimeout(conf.READ_TIMEOUT_SECONDS)
        finally:
            _watch.end(wait)
        if wait.is_cut_off:  # half a head can pass for a whole one
            response.close()
            raise TimeoutError
        return response


@dataclass(eq=False, slots=True)
class _Wait:
    """A call that waits for the head of its answer."""

    sock: socket.socket
    ends_at: float
    """By ``time.monotonic()``."""
    has_grace: bool = False
    is_cut_off: bool = False


class _Watch:
    """A thread that ends the waits of a process that take too long."""

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._waits: set[_Wait] = set()
        self._thread: threading.Thread | None = None
        self._looks_at = self._asked_at = 0.0

    def be_there(self) -> None:
        """Start the thread if it does not run; ``RuntimeError`` where it cannot be."""
        with self._changed:
            self._start()

    def begin(self, wait: _Wait) -> None:
        """Watch a wait from now on; ``RuntimeError`` where nobody can."""
        with self._changed:
            self._start()  # it may have ended while this process was stopped
            self._waits.add(wait)
            if wait.ends_at < self._looks_at:
                self._changed.notify()

    def end(self, wait: _Wait) -> None:
        with self._changed:
            self._waits.discard(wait)

    def _start(self) -> None:
        self._asked_at = time.monotonic()
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, daemon=True)
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        with self._changed:
            while self._waits or time.monotonic() < self._asked_at + IDLE_SECONDS:
                now = time.monotonic()
                for wait in [each for each in self._waits if each.ends_at <= now]:
                    self._end(wait, now)
                ends = (each.ends_at for each in self._waits)
                self._looks_at = min(ends, default=now + IDLE_SECONDS)
                self._changed.wait(self._looks_at - now)
            self._thread = None

    def _end(self, wait: _Wait, now: float) -> None:
        # Whether this process was stopped for longer than the timeout cannot be told. If so, the
        # answer may be there, and the thread that waits for it needs a moment.
        if not wait.has_grace:
            wait.has_grace, wait.ends_at = True, now + GRACE_SECONDS
            return
        self._waits.discard(wait)
        wait.is_cut_off = True
        # Past the methods of TLS, which are not for two threads; TLS in TLS is no socket at all.
        sock = getattr(wait.sock, "socket", wait.sock)
        with suppress(OSError, TypeError):  # gone already
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


_watch = _Watch()


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
