"""HTTP/1.1 on a byte stream: just enough, and quick (keep-alive, Content-Length).

http.server's own reader goes through the email package and costs more than everything
else the sandbox does for a refresh; benchmarks would then measure that.
"""

from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import BinaryIO

from .messages import Reply, Request

MAX_LINE = 65_536
MAX_HEADERS = 200
MAX_BODY = 10_000_000

_REASONS = {status.value: status.phrase for status in HTTPStatus}


class MalformedError(Exception):
    """Not a request we read; `status` is what to answer before closing."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class DisconnectedError(Exception):
    """The client closed the connection between or within requests."""


def read_request(stream: BinaryIO, send: Callable[[bytes], object]) -> tuple[Request, bool]:
    """Return the next request and whether the connection stays open after its reply.

    `send` writes bytes to the client at once; it is used for `100 Continue`.
    """
    line = _line(stream)
    if line in (b"\r\n", b"\n"):  # RFC 9112 2.2: ignore one empty line before a request
        line = _line(stream)
    parts = line.decode("latin-1").split()
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise MalformedError(400, "This is not an HTTP/1.1 request.")
    method, target, version = parts
    headers = _headers(stream)
    if "transfer-encoding" in headers:
        raise MalformedError(411, "The sandbox needs a Content-Length.")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise MalformedError(400, "Content-Length is not a number.")
    if int(length[:12]) > MAX_BODY:
        raise MalformedError(413, f"The sandbox reads bodies of up to {MAX_BODY} bytes.")
    if headers.get("expect", "").lower() == "100-continue":
        send(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = stream.read(int(length)) if length != "0" else b""
    if len(body) < int(length):
        raise DisconnectedError
    options = headers.get("connection", "").lower()
    is_kept = "keep-alive" in options if version == "HTTP/1.0" else "close" not in options
    return Request(method, target, headers, body), is_kept


def head(reply: Reply, *, is_kept: bool) -> bytes:
    """Return the status line and headers, up to and with the empty line."""
    phrase = _REASONS.get(reply.status, "Unknown")
    lines = [f"HTTP/1.1 {reply.status} {phrase}", f"Date: {formatdate(usegmt=True)}"]
    names = {name.lower() for name in reply.headers}
    if "server" not in names:
        lines.append("Server: keap-sandbox")
    if "content-length" not in names and "transfer-encoding" not in names:
        lines.append(f"Content-Length: {len(reply.body)}")
    if not is_kept:
        lines.append("Connection: close")
    lines += [_header_line(name, value) for name, value in reply.headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _header_line(name: str, value: str) -> str:
    line = f"{name}: {value}"
    if "\r" in line or "\n" in line:
        raise ValueError(f"Header {name} has a line break in it.")
    return line


def _headers(stream: BinaryIO) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADERS):
        line = _line(stream)
        if line in (b"\r\n", b"\n"):
            return headers
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon:
            raise MalformedError(400, "A header line has no colon.")
        name, value = name.strip().lower(), value.strip()
        separator = "; " if name == "cookie" else ", "
        headers[name] = f"{headers[name]}{separator}{value}" if name in headers else value
    raise MalformedError(431, f"More than {MAX_HEADERS} header lines.")


def _line(stream: BinaryIO) -> bytes:
    line = stream.readline(MAX_LINE + 1)
    if not line:
        raise DisconnectedError
    if len(line) > MAX_LINE:
        raise MalformedError(414, "A line of the request is too long.")
    return line
