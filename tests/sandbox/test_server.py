"""The sandbox's HTTP server: starting, stopping, keep-alive and malformed requests."""

import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import requests

import django_infusionsoft.sandbox as package
from django_infusionsoft.sandbox import Account, Client, KeapUser, Sandbox, faults


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def send_raw(sandbox: Sandbox, data: bytes) -> bytes:
    """Send bytes and return everything received until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=10) as connection:
        connection.sendall(data)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received


def test_public_names_are_sorted_and_exist() -> None:
    assert package.__all__ == sorted(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)


def test_settings_point_at_the_sandbox(sandbox: Sandbox) -> None:
    base = f"http://127.0.0.1:{sandbox.port}"
    assert sandbox.settings == {
        "INFUSIONSOFT_CLIENT_ID": "sandbox-client",
        "INFUSIONSOFT_CLIENT_SECRET": "sandbox-secret",
        "INFUSIONSOFT_AUTHORIZE_URL": f"{base}/app/oauth/authorize",
        "INFUSIONSOFT_TOKEN_URL": f"{base}/token",
        "INFUSIONSOFT_API_URL": f"{base}/crm/rest/",
        "INFUSIONSOFT_REFRESH_RATE": 0,
    }


def test_settings_name_the_first_client() -> None:
    with Sandbox(clients=[Client("first", "one"), Client("second", "two")]) as sandbox:
        assert sandbox.settings["INFUSIONSOFT_CLIENT_ID"] == "first"
        assert sandbox.settings["INFUSIONSOFT_CLIENT_SECRET"] == "one"


def test_accounts_can_be_given_by_app_id_or_object() -> None:
    with Sandbox(accounts=["aa111", Account("bb222", "Bee")]) as sandbox:
        assert [each.title for each in sandbox.accounts] == ["aa111", "Bee"]


def test_accounts_and_users_are_mutually_exclusive() -> None:
    user = KeapUser("eve@example.test", (Account("ab123"),))
    with pytest.raises(ValueError, match="not both"):
        Sandbox(accounts=["ab123"], users=[user])


def test_secrets_are_not_in_reprs() -> None:
    assert "sandbox-secret" not in repr(Client())
    assert "'sandbox'" not in repr(KeapUser("eve@example.test", ()))


def test_stop_ends_threads_and_closes_sockets() -> None:
    before = set(threading.enumerate())
    sandbox = Sandbox()
    sandbox.start()
    idle = [socket.create_connection(("127.0.0.1", sandbox.port)) for _ in range(20)]
    requests.get(sandbox.url, timeout=10)
    sandbox.stop()
    assert set(threading.enumerate()) <= before
    for connection in idle:
        with closing(connection):
            assert connection.recv(1) == b""
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", sandbox.port), timeout=10)


def test_stop_works_without_start() -> None:
    Sandbox().stop()


def test_stop_can_be_called_twice(sandbox: Sandbox) -> None:
    sandbox.stop()
    sandbox.stop()


def test_port_can_be_reused_after_stop() -> None:
    with Sandbox() as first:
        requests.get(first.url, timeout=10)
    with Sandbox(port=first.port) as second:
        assert requests.get(second.url, timeout=10).status_code == 200


def test_error_names_the_port_when_it_is_in_use(sandbox: Sandbox) -> None:
    with pytest.raises(OSError, match=f"Port {sandbox.port} on 127.0.0.1 is in use"):
        Sandbox(port=sandbox.port)


def test_sandboxes_do_not_share_state(sandbox: Sandbox) -> None:
    sandbox.issue("ab123")
    with Sandbox() as other:
        assert other.live_grants == []


def test_connection_is_kept_alive(sandbox: Sandbox) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=10)) as client:
        client.connect()
        first = client.sock
        for _ in range(3):
            client.request("GET", "/crm/rest/v2/contacts")
            client.getresponse().read()
        assert client.sock is first


def test_reply_is_sent_in_one_segment(sandbox: Sandbox) -> None:
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=10) as connection:
        connection.sendall(b"POST /token HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        received = connection.recv(65536)
    assert received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert received.endswith(b"}")


@pytest.mark.parametrize("end", [b"HTTP/1.0\r\n", b"HTTP/1.1\r\nConnection: close\r\n"])
def test_connection_is_closed_when_requested(sandbox: Sandbox, end: bytes) -> None:
    reply = send_raw(sandbox, b"GET /crm/ " + end + b"\r\n")
    assert reply.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" in reply


def test_pipelined_requests_are_answered_in_order(sandbox: Sandbox) -> None:
    one = b"GET /crm/ HTTP/1.1\r\n\r\n"
    two = b"GET /nowhere HTTP/1.1\r\nConnection: close\r\n\r\n"
    reply = send_raw(sandbox, one + two)
    assert reply.index(b"401 Unauthorized") < reply.index(b"404 Not Found")


def test_head_has_no_body(sandbox: Sandbox) -> None:
    reply = send_raw(sandbox, b"HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    assert reply.endswith(b"\r\n\r\n")


def test_expected_continue_is_sent(sandbox: Sandbox) -> None:
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=10) as connection:
        connection.sendall(
            b"POST /token HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n989681\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n989680\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 201, 431),
    ],
)
def test_malformed_request_is_rejected_and_the_connection_closed(
    sandbox: Sandbox, data: bytes, status: int
) -> None:
    reply = send_raw(sandbox, data)
    assert reply.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["message"]


def test_chunked_body_is_read(sandbox: Sandbox) -> None:
    token = sandbox.issue("ab123")["refresh_token"]
    pieces = [b"grant_type=refresh_", b"token&refresh_token=", token.encode()]
    reply = requests.post(
        sandbox.token_url,
        data=iter(pieces),
        auth=("sandbox-client", "sandbox-secret"),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        timeout=10,
    )
    assert reply.request.headers["Transfer-Encoding"] == "chunked"
    assert reply.status_code == 200


def test_request_after_a_chunked_body_is_read_correctly(sandbox: Sandbox) -> None:
    chunks = b"3;name=value\r\na=b\r\n0\r\nTrailer: x\r\n\r\n"
    one = b"POST /token HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    two = b"GET /nowhere HTTP/1.1\r\nConnection: close\r\n\r\n"
    reply = send_raw(sandbox, one + two)
    assert reply.index(b"400 Bad Request") < reply.index(b"404 Not Found")


@pytest.mark.parametrize("method", ["DELETE", "OPTIONS", "PATCH", "PUT"])
def test_other_methods_reach_the_endpoints(sandbox: Sandbox, method: str) -> None:
    reply = requests.request(method, sandbox.token_url, timeout=10)
    assert (reply.status_code, reply.headers["Allow"]) == (405, "POST")


def test_error_in_the_sandbox_is_a_500_with_a_traceback_on_stderr(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox.plan(faults.edited(lambda reply: 1 // 0))
    reply = requests.post(sandbox.token_url, timeout=10)
    assert reply.status_code == 500
    assert "see stderr" in reply.json()["message"]
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    "data",
    [
        b"POST /token HTTP/1.1",
        b"POST /token HTTP/1.1\r\nHost: x\r\n",
        b"POST /token HTTP/1.1\r\nContent-Length: 100\r\n\r\ngrant_type=",
        b"POST /token HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /token HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
    ],
)
def test_incomplete_request_is_not_processed(sandbox: Sandbox, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    assert sandbox.token_requests == []


def test_line_breaks_in_parameters_do_not_reach_the_headers(sandbox: Sandbox) -> None:
    target = b"/app/oauth/authorize?client_id=%0d%0aX-Evil:1&%0d%0aX-Evil:1=a&%0d%0aX-Evil:1=b"
    reply = send_raw(sandbox, b"GET " + target + b" HTTP/1.1\r\nConnection: close\r\n\r\n")
    head, _, _ = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nX-Evil" not in head


def test_access_log_omits_the_query_string() -> None:
    lines: list[str] = []
    with Sandbox(access_log=lines.append) as sandbox:
        token = sandbox.issue("ab123")["access_token"]
        requests.get(f"{sandbox.api_url}v2/contacts?access_token={token}", timeout=10)
    [line] = lines
    assert line.startswith("GET /crm/rest/v2/contacts 401 ")
    assert token not in line


def test_ipv6_loopback_is_served() -> None:
    try:
        sandbox = Sandbox(host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with sandbox:
        assert requests.get(sandbox.url, timeout=10).status_code == 200


def test_a_hundred_clients_can_connect_at_once(sandbox: Sandbox) -> None:
    connections = [
        socket.create_connection(("127.0.0.1", sandbox.port), timeout=10) for _ in range(100)
    ]
    for connection in connections:
        connection.sendall(b"GET /crm/ HTTP/1.1\r\nConnection: close\r\n\r\n")
    for connection in connections:
        with closing(connection):
            assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_pages_work_without_django_settings() -> None:
    program = """
import sys, requests
from django.conf import settings
from django_infusionsoft.sandbox import Sandbox
with Sandbox() as sandbox:
    sandbox.issue("ab123")
    page = requests.get(sandbox.url, timeout=10)
assert page.status_code == 200 and "Acme Bakery" in page.text, page.text
assert not settings.configured
others = [n for n in sys.modules if n.startswith("django_infusionsoft.") and ".sandbox" not in n]
assert not others, others
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30, env={})


def test_pages_work_with_configured_django_settings() -> None:
    program = """
import requests
from django.conf import settings
settings.configure(USE_THOUSAND_SEPARATOR=True, LANGUAGE_CODE="de")
import django
django.setup()
from django_infusionsoft.sandbox import Sandbox
with Sandbox(accounts=[f"bn{number}" for number in range(2000)]) as sandbox:
    for account in sandbox.accounts:
        sandbox.issue(account.app_id)
    page = requests.get(sandbox.url, timeout=10)
assert page.status_code == 200 and "Total grants: 2000" in page.text, page.text
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30, env={})
