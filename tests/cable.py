"""What lies between a process and its database, and can be cut."""

import re
import selectors
import socket
import sqlite3
import threading
from contextlib import closing, suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Cable:
    """A way to a database server for other processes: ``url`` works until ``cut()``.

    For SQLite, which has no server, somebody else holds the file's write lock from then on.
    """

    def __init__(self, database_url: str) -> None:
        self._direct_url = database_url
        self._parts = urlsplit(database_url)
        self._is_cut = False
        self._sockets: list[socket.socket] = []
        self._lock: sqlite3.Connection | None = None
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        if self._parts.port is not None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.mend()
        self.cut()
        if self._listener is not None:
            self._listener.close()
        self.mend()

    @property
    def url(self) -> str:
        if self._listener is None:
            return self._direct_url
        port = self._listener.getsockname()[1]
        return re.sub(rf"@[^/]*:{self._parts.port}/", f"@127.0.0.1:{port}/", self._direct_url)

    def cut(self) -> None:
        """Drop every connection and let in no new one."""
        self._is_cut = True
        if self._listener is None:
            path = self._direct_url.removeprefix("sqlite:///")
            self._lock = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._lock.execute("PRAGMA busy_timeout = 5000")
            self._lock.execute("BEGIN IMMEDIATE")
        while self._sockets:
            _hang_up(self._sockets.pop())

    def mend(self) -> None:
        self._is_cut = False
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = listener.accept()
                if self._is_cut:
                    _hang_up(near)
                    continue
                far = socket.create_connection((self._parts.hostname, self._parts.port))
                self._sockets += [near, far]
                threading.Thread(target=_pass_on, args=[near, far], daemon=True).start()


def _pass_on(near: socket.socket, far: socket.socket) -> None:
    with closing(near), closing(far), selectors.DefaultSelector() as selector, suppress(OSError):
        selector.register(near, selectors.EVENT_READ, far)
        selector.register(far, selectors.EVENT_READ, near)
        while True:
            for key, _ in selector.select():
                data = key.fileobj.recv(65_536)  # type: ignore[union-attr]
                if not data:
                    return
                key.data.sendall(data)


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
