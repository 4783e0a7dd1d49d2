"""The sandbox's server: http.server, with errors in JSON, which can be stopped immediately."""

import errno
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from email.errors import MissingHeaderBodySeparatorDefect
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

from .exchange import Exchange, Shared, StoppedError, head
from .messages import Request, json_reply
from .reading import DisconnectedError, MalformedError, Stream, read_body

JOIN_SECONDS = 10.0

AccessLog = Callable[[str], None]


# Not HTTPServer, which looks up the name of its host in the DNS.
class Server(ThreadingTCPServer):
    """Serves each connection in its own thread until the client closes it."""

    allow_reuse_address = True
    request_queue_size = 512

    def __init__(self, shared: Shared, host: str, port: int, access_log: AccessLog | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.shared = shared
        self.access_log = access_log
        self._connections: dict[socket.socket, Thread] = {}
        self._lock = Lock()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            message = f"Port {port} on {host} is in use: choose another, or free it."
            raise OSError(error.errno, message) from error
        self.port: int = self.socket.getsockname()[1]
        self._acceptor = Thread(
            target=self.serve_forever, name=f"keap-sandbox-{self.port}", daemon=True
        )

    def start(self) -> None:
        self._acceptor.start()

    def stop(self) -> None:
        """Close all sockets and join all threads, including waiting ones."""
        self.shared.stop()
        with suppress(OSError):  # not every system shuts a listening socket down
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes the acceptor
        if self._acceptor.is_alive():
            self.shutdown()
            self._acceptor.join(JOIN_SECONDS)
        self.server_close()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in connections.values():
            thread.join(JOIN_SECONDS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the connection's thread, and store both for stop()."""
        arguments = (request, client_address)
        thread = Thread(target=self.process_request_thread, args=arguments, daemon=True)
        with self._lock:
            self._connections[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """Close the connection without shutting it down first, which would prevent a reset."""
        with self._lock:
            self._connections.pop(request, None)
        self.close_request(request)


class _Handler(BaseHTTPRequestHandler):
    """Reads the requests of one connection, one after another."""

    server: Server
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # in 0.9 not even an error has a status line
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.rfile = Stream(self.rfile.detach())

    def handle(self) -> None:
        # The client has disconnected, or the server is stopping.
        with suppress(OSError, DisconnectedError, StoppedError):
            super().handle()

    def _serve(self) -> None:
        """Reply to the request whose head has been read."""
        try:
            request = self._request()
        except MalformedError as error:
            self.send_error(error.status, str(error))
            return
        began_at = time.perf_counter()
        is_kept = not self.close_connection
        status = Exchange(self.server.shared, self.connection, request, is_kept=is_kept).run()
        if status == 0:
            self.close_connection = True
        if self.server.access_log is not None:
            took = f"{(time.perf_counter() - began_at) * 1000:.1f} ms"
            # Only the path: a query may contain codes or tokens.
            self.server.access_log(f"{self.command} {request.path} {status or 'no reply'} {took}")

    do_DELETE = do_GET = do_HEAD = do_OPTIONS = do_PATCH = do_POST = do_PUT = _serve  # noqa: N815

    def _request(self) -> Request:
        if any(isinstance(it, MissingHeaderBodySeparatorDefect) for it in self.headers.defects):
            raise MalformedError(400, "A header line has no colon.")
        try:
            urlsplit(self.path)
        except ValueError:
            raise MalformedError(400, "The target of the request is not a URL.") from None
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.command, self.path, headers, read_body(self.rfile, headers))

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Reject a malformed request, and close the connection."""
        self.close_connection = True
        text = message or self.responses[code][0]
        reply = json_reply({"message": text}, status=code)
        self.wfile.write(head(reply, is_kept=False) + reply.body)
