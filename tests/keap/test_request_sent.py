"""Whether a request was sent: directly, through an HTTP proxy, a tunnel and SOCKS."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings
from urllib3.response import HTTPResponse

from django_infusionsoft.exceptions import (
    ConfigurationError,
    InfusionsoftError,
    OutcomeUnknown,
    TemporarilyUnavailable,
)
from django_infusionsoft.keap import oauth, transport
from django_infusionsoft.keap.sent import Call
from django_infusionsoft.models import Credential
from tests.keap.endpoints import (
    ANSWER,
    NOWHERE,
    PAIR,
    ROUTES,
    SHORT_TIMEOUTS,
    Serve,
    listening,
    read_head,
    read_request,
    route_to_keap,
    without_proxies,
)

CLIENT = oauth.Client("sandbox-client", "sandbox-secret")

Open = Callable[..., None]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Use no proxy except the test's, and no connection of an earlier test."""
    return without_proxies(monkeypatch)


@pytest.fixture
def end_of_test() -> Iterator[threading.Event]:
    """Set when the test is over."""
    over = threading.Event()
    yield over
    over.set()


@pytest.fixture
def keap(environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Open]:
    """Open a route to a token endpoint: ``keap("tunnel", serve)``."""
    with ExitStack() as stack:
        yield lambda route, serve: stack.enter_context(
            route_to_keap(route, serve, environment, tmp_path)
        )


def failed_refresh() -> tuple[Call, InfusionsoftError]:
    """Return the call and its exception."""
    call = Call()
    with pytest.raises(InfusionsoftError) as caught:
        oauth.refresh(CLIENT, "old-refresh", call)
    return call, caught.value


every_route = pytest.mark.parametrize("route", ROUTES)


def answer(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(ANSWER)


@every_route
def test_token_pair_is_returned(keap: Open, route: str) -> None:
    keap(route, answer)
    call = Call()
    assert oauth.refresh(CLIENT, "old-refresh", call).refresh_token == "new-refresh"
    assert call.is_sent


@every_route
def test_outcome_is_unknown_when_the_connection_is_closed_after_the_request(
    keap: Open, route: str
) -> None:
    keap(route, read_request)
    call, error = failed_refresh()
    assert type(error) is OutcomeUnknown
    assert call.is_sent


@every_route
def test_outcome_is_unknown_when_no_reply_comes_after_the_request(
    keap: Open, route: str, end_of_test: threading.Event
) -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        end_of_test.wait(10)

    keap(route, serve)
    call, error = failed_refresh()
    assert type(error) is OutcomeUnknown
    assert call.is_sent


# Before the request


def close_at_once(connection: socket.socket) -> None: ...


def refuse_tunnel(connection: socket.socket) -> None:
    read_head(connection)
    connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")


def close_in_tunnel(connection: socket.socket) -> None:
    read_head(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    connection.recv(1)  # the first byte of the handshake


def refuse_socks(connection: socket.socket) -> None:
    connection.recv(3)
    connection.sendall(b"\x05\xff")


def never_reply(connection: socket.socket) -> None:
    while connection.recv(4096):  # until the client gives up
        pass


@pytest.mark.parametrize(
    ("url", "proxy", "serve"),
    [
        ("https://127.0.0.1:9/token", "http", close_at_once),
        ("https://127.0.0.1:9/token", "http", refuse_tunnel),
        ("https://127.0.0.1:9/token", "http", close_in_tunnel),
        ("https://127.0.0.1:9/token", "http", never_reply),
        (NOWHERE, "socks5h", close_at_once),
        (NOWHERE, "socks5h", refuse_socks),
        (NOWHERE, "socks5h", never_reply),
    ],
)
def test_nothing_was_sent_when_a_proxy_does_not_connect(
    environment: pytest.MonkeyPatch, url: str, proxy: str, serve: Serve
) -> None:
    with (
        listening(serve) as port,
        override_settings(INFUSIONSOFT_TOKEN_URL=url, **SHORT_TIMEOUTS),
    ):
        environment.setenv("all_proxy", f"{proxy}://127.0.0.1:{port}")
        call, error = failed_refresh()
    assert type(error) is TemporarilyUnavailable
    assert "nothing was sent" in str(error)
    assert not call.is_sent


@pytest.mark.parametrize("proxy", ["http", "socks5h"])
def test_nothing_was_sent_when_a_proxy_refuses_connections(
    environment: pytest.MonkeyPatch, proxy: str
) -> None:
    environment.setenv("all_proxy", f"{proxy}://127.0.0.1:9")
    with override_settings(INFUSIONSOFT_TOKEN_URL="http://127.0.0.1:10/token"):
        call, error = failed_refresh()
    assert type(error) is TemporarilyUnavailable
    assert not call.is_sent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REQUESTS_CA_BUNDLE", "/nowhere/bundle.pem"),
        ("all_proxy", "socks9://127.0.0.1:9"),
        ("all_proxy", "http://"),
        ("all_proxy", "http://[::1"),
    ],
)
def test_configuration_error_is_raised_when_the_environment_is_invalid(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(name, value)
    with override_settings(INFUSIONSOFT_TOKEN_URL="https://127.0.0.1:9/token"):
        call, error = failed_refresh()
    assert type(error) is ConfigurationError
    assert "nothing was sent" in str(error)
    assert not call.is_sent


def test_nothing_is_sent_after_the_call_was_given_up(keap: Open) -> None:
    keap("direct", answer)
    call = Call()
    call.give_up()
    with pytest.raises(TemporarilyUnavailable, match="nothing was sent"):
        oauth.refresh(CLIENT, "old-refresh", call)
    assert not call.is_sent


def test_nothing_is_sent_after_the_deadline(keap: Open) -> None:
    keap("direct", answer)
    with pytest.raises(TemporarilyUnavailable, match="nothing was sent"):
        oauth.refresh(CLIENT, "old-refresh", Call(until=time.monotonic() - 1))


# Connections


def test_second_address_is_used_when_the_first_does_not_respond(
    keap: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the first address takes longer than the connect timeout."""
    keap("direct", answer)
    getaddrinfo = socket.getaddrinfo
    with socket.socket() as dead, ExitStack() as stack:
        dead.bind(("127.0.0.1", 0))
        dead.listen(0)
        while True:  # until its backlog is full and connections time out
            pending = stack.enter_context(socket.socket())
            pending.settimeout(0.2)
            try:
                pending.connect(dead.getsockname())
            except TimeoutError:
                break

        def return_two_addresses(*args: Any, **kwargs: Any) -> Any:
            working = getaddrinfo(*args, **kwargs)
            return [(*working[0][:4], dead.getsockname()), *working]

        monkeypatch.setattr(socket, "getaddrinfo", return_two_addresses)
        pair = oauth.refresh(CLIENT, "old-refresh")
    assert pair.refresh_token == "new-refresh"


def test_connection_is_reopened_when_it_was_closed_meanwhile(
    keap: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = threading.Event()

    def answer_once(connection: socket.socket) -> None:
        answer(connection)
        connection.close()
        closed.set()

    monkeypatch.setattr(transport, "MAX_AGE_SECONDS", 15)
    keap("direct", answer_once)
    for _ in range(2):
        assert oauth.refresh(CLIENT, "old-refresh").refresh_token == "new-refresh"
        assert closed.wait(5)
        closed.clear()


# Slow reads and replies


@pytest.mark.parametrize("is_chunked", [True, False])
def test_received_body_is_read_when_this_process_is_slow(
    keap: Open, monkeypatch: pytest.MonkeyPatch, is_chunked: bool
) -> None:
    read1 = HTTPResponse.read1

    def read_slowly(self: HTTPResponse, *args: Any, **kwargs: Any) -> bytes:
        time.sleep(0.2)  # like a process that was suspended
        return read1(self, *args, **kwargs)

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (PAIR[:9], PAIR[9:]))
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + chunks + b"0\r\n\r\n" if is_chunked else ANSWER)

    monkeypatch.setattr(HTTPResponse, "read1", read_slowly)
    keap("direct", serve)
    with override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.1):
        assert oauth.refresh(CLIENT, "old-refresh").refresh_token == "new-refresh"


def drip(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:  # until the client is gone
        time.sleep(0.02)
        connection.sendall(b"H")


@pytest.mark.parametrize(
    "call_keap",
    [
        lambda: oauth.probe(CLIENT),
        lambda: oauth.exchange_code(CLIENT, code="c", redirect_uri="https://site.example/"),
    ],
    ids=["probe", "exchange"],
)
def test_call_times_out_when_the_head_arrives_byte_by_byte(
    keap: Open, call_keap: Callable[[], object]
) -> None:
    keap("direct", drip)
    started = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        call_keap()
    assert time.monotonic() - started < 4


# The credential


@pytest.mark.django_db
def test_unanswered_attempt_is_counted_when_a_proxy_loses_the_reply(
    keap: Open, expired: Credential
) -> None:
    keap("forwarding proxy", read_request)
    with pytest.raises(OutcomeUnknown):
        expired.refresh()
    assert Credential.objects.get().unanswered_attempts == 1


@pytest.mark.django_db
def test_no_unanswered_attempt_is_counted_when_the_environment_is_invalid(
    environment: pytest.MonkeyPatch, expired: Credential
) -> None:
    environment.setenv("all_proxy", "http://")
    for _ in range(3):
        with pytest.raises(ConfigurationError):
            expired.refresh()
    row = Credential.objects.get()
    assert (row.status, row.unanswered_attempts, row.lease_until) == ("connected", 0, None)


@override_settings(INFUSIONSOFT_TOKEN_URL="ftp://nowhere")
def test_call_that_is_given_up_has_an_outcome_when_the_url_has_become_invalid() -> None:
    assert isinstance(oauth.give_up(Call()), TemporarilyUnavailable)
