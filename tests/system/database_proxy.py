"""A proxy between a process and its database that can be cut off."""

import re
import selectors
import socket
import sqlite3
import threading
from contextlib import closing, suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class DatabaseProxy:
    """Forwards connections to a database server: ``url`` works until ``cut()``.

    SQLite has no server, so ``cut()`` takes the file's write lock instead.
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
        self.restore()
        self.cut()
        if self._listener is not None:
            self._listener.close()
        self.restore()

    @property
    def url(self) -> str:
        if self._listener is None:
            return self._direct_url
        port = self._listener.getsockname()[1]
        return re.sub(rf"@[^/]*:{self._parts.port}/", f"@127.0.0.1:{port}/", self._direct_url)

    def cut(self) -> None:
        """Close every connection and accept no new one."""
        self._is_cut = True
        if self._listener is None:
            path = self._direct_url.removeprefix("sqlite:///")
            self._lock = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._lock.execute("PRAGMA busy_timeout = 5000")
            self._lock.execute("BEGIN IMMEDIATE")
        while self._sockets:
            _close(self._sockets.pop())

    def restore(self) -> None:
        self._is_cut = False
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                if self._is_cut:
                    _close(client)
                    continue
                server = socket.create_connection((self._parts.hostname, self._parts.port))
                self._sockets += [client, server]
                threading.Thread(target=_forward, args=[client, server], daemon=True).start()


def _forward(client: socket.socket, server: socket.socket) -> None:
    with (
        closing(client),
        closing(server),
        selectors.DefaultSelector() as selector,
        suppress(OSError),
    ):
        selector.register(client, selectors.EVENT_READ, server)
        selector.register(server, selectors.EVENT_READ, client)
        while True:
            for key, _ in selector.select():
                data = key.fileobj.recv(65_536)  # type: ignore[union-attr]
                if not data:
                    return
                key.data.sendall(data)


def _close(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
