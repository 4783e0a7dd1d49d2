"""One request and its reply on a socket, with the fault applied to them."""

import socket
import struct
import sys
import threading
import traceback
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler

from .faults import HEADER, NO_FAULT, Fault, named
from .journal import TokenRequest
from .messages import Reply, Request, json_reply
from .plan import Plan
from .quota import quota_headers
from .routes import Routes, is_token_request


class StoppedError(Exception):
    """The server is stopping: the request gets no reply."""


@dataclass(frozen=True)
class Shared:
    """The state shared by the exchanges of all connections."""

    routes: Routes
    plan: Plan
    is_stopping: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Wake all waiting exchanges, so that they end."""
        self.is_stopping.set()
        self.plan.release_gates()


class Exchange:
    """Replies to one request; every write goes to the socket immediately."""

    def __init__(
        self, shared: Shared, connection: socket.socket, request: Request, *, is_kept: bool
    ) -> None:
        self._shared = shared
        self._connection = connection
        self._request = request
        self._is_kept = is_kept
        self._entry: TokenRequest | None = None
        if is_token_request(request):
            self._entry = shared.routes.token_endpoint.entry(request)
        self._api_entry = shared.routes.note_api_request(request)

    def run(self) -> int:
        """Reply, and return the status that was sent; 0 if the reply was dropped."""
        fault = self._fault()
        if self._entry is not None:
            self._entry.fault = str(fault)
        if self._api_entry is not None:
            self._api_entry.fault = str(fault)
        try:
            return self._run(fault)
        except (OSError, StoppedError):
            if self._entry is not None:
                self._entry.is_delivered = False
            raise
        finally:
            self._note_unprocessed()

    def _fault(self) -> Fault:
        """Return the fault that the request asks for, or else the planned one."""
        if asked := self._request.headers.get(HEADER):
            try:
                return named(asked)
            except ValueError as error:
                return Fault(reply=json_reply({"message": str(error)}, status=400))
        if not len(self._shared.plan):
            return NO_FAULT
        routes, request = self._shared.routes, self._request
        return self._shared.plan.take(routes.endpoint(request), routes.account(request))

    def _run(self, fault: Fault) -> int:
        if fault.gate is not None:
            fault.gate.pass_before()
        self._wait(fault.latency_before)
        if fault.drop == "before":
            self._note_unprocessed()
            return self._drop(fault)
        reply = self._reply(fault)
        if fault.gate is not None:
            fault.gate.pass_after()
        self._wait(fault.latency_after)
        if fault.drop == "after":
            return self._drop(fault)
        if self._entry is not None:
            # Before sending: a client that has the reply must find it in the journal.
            self._entry.status = reply.status
            self._entry.is_delivered = not fault.drop
        if self._api_entry is not None:
            self._api_entry.status = reply.status
        self._send(reply, fault)
        return self._drop(fault) if fault.drop else reply.status

    def _reply(self, fault: Fault) -> Reply:
        if fault.reply is not None and not fault.is_processed:
            self._note_unprocessed()
            return self._shared.routes.in_place(self._request, fault.reply)
        try:
            return self._processed(fault)
        # A bug in the sandbox must not look like a lost reply.
        except Exception:  # noqa: BLE001
            traceback.print_exc(file=sys.stderr)
            return json_reply({"message": "The sandbox itself failed; see stderr."}, status=500)

    def _processed(self, fault: Fault) -> Reply:
        reply = self._shared.routes.answer(self._request, self._entry)
        if fault.reply is not None:
            headers = {**quota_headers(reply), **fault.reply.headers}
            return replace(fault.reply, headers=headers)
        if fault.edit is None:
            return reply
        content = reply.json()
        changed = fault.edit(content)
        edited = json_reply(content if changed is None else changed, status=reply.status)
        return Reply(reply.status, reply.headers, edited.body)

    def _send(self, reply: Reply, fault: Fault) -> None:
        start, body = head(reply, is_kept=self._is_kept), reply.body
        if self._request.method == "HEAD":
            body = b""
        if fault.drop == "midway":
            body = body[: len(body) // 2]
        if not fault.drip_interval:
            self._connection.sendall(start + body)  # one segment
            return
        self._connection.sendall(start)
        for at in range(0, len(body), fault.drip_bytes):
            self._wait(fault.drip_interval)
            self._connection.sendall(body[at : at + fault.drip_bytes])

    def _wait(self, seconds: float) -> None:
        if self._shared.is_stopping.wait(seconds):
            raise StoppedError

    def _note_unprocessed(self) -> None:
        if self._entry is not None and not self._entry.number:
            self._shared.routes.token_endpoint.note_unprocessed(self._entry)

    def _drop(self, fault: Fault) -> int:
        if fault.is_reset:
            # With a linger time of zero, close() sends RST.
            linger = struct.pack("ii", 1, 0)
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            # close() alone would not affect copies in processes forked in the meantime.
            self._connection.shutdown(socket.SHUT_RDWR)
        return 0


def head(reply: Reply, *, is_kept: bool) -> bytes:
    """Return the status line and headers, including the empty line."""
    phrase, _ = BaseHTTPRequestHandler.responses.get(reply.status, ("Unknown", ""))
    lines = [f"HTTP/1.1 {reply.status} {phrase}", f"Date: {formatdate(usegmt=True)}"]
    names = {name.lower() for name in reply.headers}
    if "server" not in names:
        lines.append("Server: keap-sandbox")
    if "content-length" not in names and "transfer-encoding" not in names:
        lines.append(f"Content-Length: {len(reply.body)}")
    if not is_kept:
        lines.append("Connection: close")
    # Values must not contain line breaks.
    lines += [f"{name}: {' '.join(value.splitlines())}" for name, value in reply.headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
