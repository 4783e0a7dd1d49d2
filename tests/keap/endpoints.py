"""Token endpoints, and proxies in front of them, whose behaviour a test chooses."""

import datetime as dt
import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.test import override_settings

from django_infusionsoft.keap import transport

Serve = Callable[[socket.socket], None]

NOWHERE = "http://127.0.0.1:9/token"
SHORT_TIMEOUTS = {
    "INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS": 0.3,
    "INFUSIONSOFT_READ_TIMEOUT_SECONDS": 0.3,
}
ROUTES = ["direct", "forwarding proxy", "tunnel", "SOCKS"]

PAIR = b'{"access_token": "new-access", "refresh_token": "new-refresh", "expires_in": 86400}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(PAIR), PAIR)
REFUSAL = b'{"error": "invalid_request", "error_description": "Invalid Refresh Token"}'
REFUSED = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(REFUSAL), REFUSAL)


@contextmanager
def listening(serve: Serve) -> Iterator[int]:
    """Serve each connection in a thread, and yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def handle(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                serve(connection)

        def accept() -> None:
            with suppress(OSError):  # closed
                while True:
                    connection = listener.accept()[0]
                    threading.Thread(target=handle, args=[connection], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def read_head(connection: socket.socket) -> bytes:
    """Return the head of a request, with its empty line."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError
        head += byte
    return head


def naming(names: str) -> Serve:
    """Reply to requests without a body: over each connection with the next of the names."""
    unused = iter(names.encode())

    def serve(connection: socket.socket) -> None:
        name = bytes([next(unused)])
        while True:
            read_head(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + name)

    return serve


def in_child(function: Callable[[], bytes], fork: Callable[[], int] = os.fork) -> bytes:
    """Return what the function returns in a forked process."""
    reader, writer = os.pipe()
    if (child := fork()) == 0:
        try:
            os.write(writer, function())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, "rb") as pipe:  # noqa: PTH123
        return pipe.read()


def read_request(connection: socket.socket) -> bytes:
    """Read a whole request and return its body."""
    head = read_head(connection).lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return body


def behind_socks(connection: socket.socket) -> socket.socket:
    """Act as a SOCKS5 proxy until the connection is established."""
    _, methods = connection.recv(2)
    connection.recv(methods)
    connection.sendall(b"\x05\x00")
    kind = connection.recv(4)[3]
    connection.recv(4 if kind == 1 else connection.recv(1)[0])
    connection.recv(2)
    connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
    return connection


def behind_tunnel(connection: socket.socket, context: ssl.SSLContext) -> socket.socket:
    """Act as a proxy that accepts CONNECT, and as the TLS endpoint behind it."""
    assert read_head(connection).startswith(b"CONNECT ")
    connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    return context.wrap_socket(connection, server_side=True)


def certified(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return a TLS context for a server at 127.0.0.1, and the CA bundle that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    bundle, secret = folder / "bundle.pem", folder / "key.pem"
    bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bundle, secret)
    return context, bundle


def without_proxies(environment: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Remove the proxies of this machine, and share no connection with another test."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        environment.delenv(name, raising=False)
        environment.delenv(name.upper(), raising=False)
    environment.setattr(transport, "MAX_AGE_SECONDS", -1)
    return environment


@contextmanager
def route_to_keap(
    route: str, serve: Serve, environment: pytest.MonkeyPatch, folder: Path
) -> Iterator[None]:
    """Serve each connection to the token endpoint through this route."""
    context, bundle = certified(folder)

    def serve_in_tunnel(connection: socket.socket) -> None:
        with behind_tunnel(connection, context) as encrypted:
            serve(encrypted)

    routes: dict[str, Serve] = {
        "direct": serve,
        "forwarding proxy": serve,
        "tunnel": serve_in_tunnel,
        "SOCKS": lambda connection: serve(behind_socks(connection)),
    }
    with listening(routes[route]) as port:
        host, url = f"127.0.0.1:{port}", NOWHERE
        match route:
            case "direct":
                url = f"http://{host}/token"
            case "forwarding proxy":
                environment.setenv("http_proxy", f"http://{host}")
            case "tunnel":
                url = "https://127.0.0.1:9/token"
                environment.setenv("https_proxy", f"http://{host}")
                environment.setenv("REQUESTS_CA_BUNDLE", str(bundle))
            case "SOCKS":
                environment.setenv("all_proxy", f"socks5h://{host}")
        with override_settings(INFUSIONSOFT_TOKEN_URL=url, **SHORT_TIMEOUTS):
            yield
