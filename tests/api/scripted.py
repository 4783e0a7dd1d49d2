"""An API that gives the answers of a script, one for each request."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from django.test import override_settings

from tests.keap.endpoints import listening, read_head

Answer = bytes | Callable[[socket.socket], None] | None


def reply(status: int = 200, body: bytes = b"{}", **headers: str) -> bytes:
    """Return an answer; in names of headers, ``_`` is a hyphen."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status} -", f"Content-Length: {len(body)}", *lines])
    return f"{head}\r\n\r\n".encode() + body


def then_close(answer: bytes) -> Callable[[socket.socket], None]:
    """Close the connection after an answer, which says nothing of it."""

    def send(connection: socket.socket) -> None:
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    return send


@dataclass
class Received:
    """What the API has received."""

    requests: list[str] = field(default_factory=list)
    """The method of each request, when it had arrived with its body."""
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    """For each request, the number of its connection."""
    url: str = ""


@contextmanager
def answering(*answers: Answer, otherwise: bytes = reply()) -> Iterator[Received]:
    """Answer each request; ``None`` closes the connection instead.

    :param otherwise: after the last answer.
    """
    received, left = Received(), list(answers)
    opened: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        opened.append(connection)
        number = len(opened)
        with suppress(ConnectionError):
            while True:
                head, body = _read(connection)
                received.requests.append(head.split(b" ")[0].decode())
                received.heads.append(head)
                received.bodies.append(body)
                received.connections.append(number)
                answer = left.pop(0) if left else otherwise
                if answer is None:
                    return
                if isinstance(answer, bytes):
                    connection.sendall(answer)
                else:
                    answer(connection)

    with listening(serve) as port:
        received.url = f"http://127.0.0.1:{port}/"
        with override_settings(INFUSIONSOFT_API_URL=received.url):
            yield received
        for each in opened:
            each.close()


def _read(connection: socket.socket) -> tuple[bytes, bytes]:
    head = read_head(connection)
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    body, length = b"", int(lengths[0].split(b":")[1]) if lengths else 0
    while len(body) < length:
        body += connection.recv(length - len(body))
    return head, body
