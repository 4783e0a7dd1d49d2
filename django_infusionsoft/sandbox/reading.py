"""What http.server does not do: read bodies, including chunked ones, and detect truncation."""

import re
from collections.abc import Iterator, Mapping
from io import BufferedIOBase, BufferedReader

MAX_BODY = 10_000_000
MAX_LINE = 65_536

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(;.*)?\r\n")


class MalformedError(Exception):
    """The request is malformed; `status` is sent before the connection is closed."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class DisconnectedError(Exception):
    """The client closed the connection between or within requests."""


class Stream(BufferedReader):
    """A client's data. The end of the stream does not end a line, and so no request's head."""

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n") and len(line) != size:
            raise DisconnectedError
        return line


def read_body(stream: BufferedIOBase, headers: Mapping[str, str]) -> bytes:
    """Return the body according to `headers` (names in lower case)."""
    coding = headers.get("transfer-encoding")
    if coding is None:
        return _exactly(stream, _length(headers.get("content-length", "0")))
    if coding.lower() != "chunked":
        raise MalformedError(501, "The sandbox reads no transfer coding but chunked.")
    return b"".join(_chunks(stream))


def _length(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise MalformedError(400, "Content-Length is not a number.")
    return _within_limit(int(text) if len(text) < 13 else MAX_BODY + 1)


def _within_limit(length: int) -> int:
    if length > MAX_BODY:
        raise MalformedError(413, f"The sandbox reads bodies of up to {MAX_BODY} bytes.")
    return length


def _chunks(stream: BufferedIOBase) -> Iterator[bytes]:
    """Yield the chunks, and read the trailer (RFC 9112 section 7.1)."""
    total = 0
    while size := _chunk_size(stream):
        total = _within_limit(total + size)
        yield _exactly(stream, size)
        if _exactly(stream, 2) != b"\r\n":
            raise MalformedError(400, "A chunk is longer than its size says.")
    while stream.readline(MAX_LINE) != b"\r\n":
        pass


def _chunk_size(stream: BufferedIOBase) -> int:
    found = _CHUNK_SIZE.fullmatch(stream.readline(MAX_LINE))
    if not found:
        raise MalformedError(400, "The size of a chunk is not a number.")
    return int(found[1], 16)


def _exactly(stream: BufferedIOBase, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise DisconnectedError
    return data
