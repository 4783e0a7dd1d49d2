"""The sandbox on the wire: sockets, threads, and faults as a client meets them."""

import errno
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

from .faults import HEADER, NO_FAULT, Fault, Gate, JsonEdit, named
from .journal import TokenRequest
from .messages import Reply, Request, json_reply
from .plan import Plan
from .routes import Routes, is_token_request
from .wire import DisconnectedError, MalformedError, head, read_request

BACKLOG = 512
JOIN_SECONDS = 10.0
ACCEPT_SECONDS = 1.0  # where closing a listener doesn't wake accept(), stopping takes so long

AccessLog = Callable[[str], None]


class StoppedError(Exception):
    """The server is stopping; what waited in it ends without a reply."""


class Server:
    """Listens, and gives each connection a thread of its own until the client closes it."""

    def __init__(
        self, routes: Routes, plan: Plan, host: str, port: int, access_log: AccessLog | None
    ) -> None:
        self._routes = routes
        self._plan = plan
        self._access_log = access_log
        self._is_stopping = threading.Event()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._gates: set[Gate] = set()
        self._lock = threading.Lock()
        self._listener = _listen(host, port)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(
            target=self._accept, name=f"keap-sandbox-{self.port}", daemon=True
        )

    def start(self) -> None:
        self._acceptor.start()

    def stop(self) -> None:
        """Close every socket and join every thread, whatever they are waiting for."""
        self._is_stopping.set()
        with suppress(OSError):  # not every system shuts a listening socket down
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._acceptor.is_alive():
            self._acceptor.join(JOIN_SECONDS)
        with self._lock:
            connections, gates = dict(self._connections), set(self._gates)
        for gate in gates:
            gate.release()
        for connection in connections.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in connections:
            thread.join(JOIN_SECONDS)

    def _accept(self) -> None:
        while not self._is_stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                self._is_stopping.wait(0.05)  # out of file descriptors, perhaps for a moment
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._lock:
                self._connections[thread] = connection
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as stream:
                while self._serve_one(connection, stream):
                    pass
        except (OSError, DisconnectedError, StoppedError):
            pass  # the client went away, or we do
        finally:
            with self._lock:
                self._connections.pop(threading.current_thread(), None)

    def _serve_one(self, connection: socket.socket, stream: BinaryIO) -> bool:
        """Answer one request; return whether the connection stays open."""
        try:
            request, is_kept = read_request(stream, connection.sendall)
        except MalformedError as error:
            content = {"message": str(error)}
            reply = json_reply(content, status=error.status)
            connection.sendall(head(reply, is_kept=False) + reply.body)
            return False
        began_at = time.perf_counter()
        status = _Exchange(self, connection, request, is_kept).run()
        if self._access_log is not None:
            took = (time.perf_counter() - began_at) * 1000
            # The path alone: a query may hold codes or tokens.
            shown = status or "no reply"
            self._access_log(f"{request.method} {request.path} {shown} {took:.1f} ms")
        return is_kept and status != 0

    # For exchanges

    def process(self, request: Request, entry: TokenRequest | None) -> Reply:
        try:
            return self._routes.answer(request, entry)
        # A fault of the sandbox itself must not look like a reply that was lost.
        except Exception:  # noqa: BLE001
            traceback.print_exc(file=sys.stderr)
            return json_reply({"message": "The sandbox itself failed; see stderr."}, status=500)

    def entry(self, request: Request) -> TokenRequest | None:
        return self._routes.token_endpoint.entry(request) if is_token_request(request) else None

    def note_unprocessed(self, entry: TokenRequest) -> None:
        self._routes.token_endpoint.note_unprocessed(entry)

    def fault_for(self, request: Request) -> Fault:
        """Return what the request asked for or, failing that, what is planned for it.

        ValueError when it asks for a fault that doesn't exist.
        """
        if asked := request.headers.get(HEADER):
            return named(asked)
        if not len(self._plan):
            return NO_FAULT
        return self._plan.take(self._routes.endpoint(request), self._routes.account(request))

    def wait(self, seconds: float) -> None:
        """Let time pass; StoppedError when the server stops meanwhile."""
        if seconds and self._is_stopping.wait(seconds):
            raise StoppedError

    def watch(self, gate: Gate) -> None:
        """Remember a gate, so that stopping opens it."""
        with self._lock:
            self._gates.add(gate)
        if self._is_stopping.is_set():
            raise StoppedError

    def check(self) -> None:
        if self._is_stopping.is_set():
            raise StoppedError


class _Exchange:
    """One request and its reply, with the fault that befalls them."""

    def __init__(
        self, server: Server, connection: socket.socket, request: Request, is_kept: bool
    ) -> None:
        self._server = server
        self._connection = connection
        self._request = request
        self._is_kept = is_kept
        self._entry = server.entry(request)
        self._is_noted = False
        self._fault = NO_FAULT

    def run(self) -> int:
        """Return the status that was sent; 0 when the reply was dropped."""
        try:
            self._fault = self._server.fault_for(self._request)
        except ValueError as error:
            self._fault = Fault(reply=json_reply({"message": str(error)}, status=400))
        if self._entry is not None:
            self._entry.fault = str(self._fault)
        try:
            return self._run(self._fault)
        except (OSError, StoppedError):
            if self._entry is not None:
                self._entry.is_delivered = False
            raise
        finally:
            self._note_unprocessed()

    def _run(self, fault: Fault) -> int:
        self._wait_before(fault)
        if fault.drop == "before":
            self._note_unprocessed()
            return self._drop()
        reply = self._reply(fault)
        self._wait_after(fault)
        if fault.drop == "after":
            return self._drop()
        if self._entry is not None:
            # Before the fact: whoever has the reply finds it noted.
            self._entry.status = reply.status
            self._entry.is_delivered = not fault.drop
        self._send(reply, fault)
        return self._drop() if fault.drop else reply.status

    def _wait_before(self, fault: Fault) -> None:
        if fault.gate is not None:
            self._server.watch(fault.gate)
            fault.gate.pass_before()
            self._server.check()
        self._server.wait(fault.latency_before)

    def _wait_after(self, fault: Fault) -> None:
        if fault.gate is not None:
            fault.gate.pass_after()
            self._server.check()
        self._server.wait(fault.latency_after)

    def _reply(self, fault: Fault) -> Reply:
        if fault.reply is not None and not fault.is_processed:
            self._note_unprocessed()
            return fault.reply
        self._is_noted = True
        reply = self._server.process(self._request, self._entry)
        if fault.reply is not None:
            return fault.reply
        return _edited(reply, fault.edit) if fault.edit is not None else reply

    def _send(self, reply: Reply, fault: Fault) -> None:
        start, body = head(reply, is_kept=self._is_kept), reply.body
        if self._request.method == "HEAD":
            body = b""
        if fault.drop == "midway":
            body = body[: len(body) // 2]
        if not fault.drip_interval:
            self._connection.sendall(start + body)  # one segment: no Nagle stall
            return
        self._connection.sendall(start)
        for at in range(0, len(body), fault.drip_bytes):
            self._server.wait(fault.drip_interval)
            self._connection.sendall(body[at : at + fault.drip_bytes])

    def _note_unprocessed(self) -> None:
        if self._entry is not None and not self._is_noted:
            self._is_noted = True
            self._server.note_unprocessed(self._entry)

    def _drop(self) -> int:
        if self._fault.is_reset:
            # Lingering for zero seconds makes close() send RST.
            linger = struct.pack("ii", 1, 0)
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            # A process that was forked meanwhile holds a copy, which close() would spare.
            self._connection.shutdown(socket.SHUT_RDWR)
        return 0


def _edited(reply: Reply, edit: JsonEdit) -> Reply:
    content = reply.json()
    changed = edit(content)
    edited = json_reply(content if changed is None else changed, status=reply.status)
    return Reply(reply.status, reply.headers, edited.body)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.settimeout(ACCEPT_SECONDS)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"Port {port} on {host} is taken: choose another, or stop what uses it."
            raise OSError(error.errno, message) from error
        raise
    return listener
