"""The connections that all sessions of a process share."""

import ctypes
import gzip
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from django.test import override_settings
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection

from django_infusionsoft.api.connections import connections
from django_infusionsoft.exceptions import ApiError, ApiUnavailable, WriteUnconfirmed
from django_infusionsoft.keap import sent
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox
from tests.api.scripted import answering, reply
from tests.keap.endpoints import NOWHERE, certified, in_child, listening, read_head
from tests.processes import ROOT
from tests.support import threads


def test_connection_a_call_is_not_opened(credential: Credential) -> None:
    with answering() as received:
        for _ in range(50):
            with Credential.objects.for_account("ab123").session() as session:
                assert session.get("v2/contacts").ok
    assert set(received.connections) == {1}


@pytest.mark.django_db(transaction=True)
def test_threads_share_connections_one_at_a_time(credential: Credential) -> None:
    barrier = threading.Barrier(4)

    def call() -> None:
        session = credential.session()
        for _ in range(10):
            barrier.wait(10)
            session.get("v2/contacts")

    with answering() as received, threads(4) as start:
        for done in [start(call) for _ in range(4)]:
            done.result()
    assert len(received.requests) == 40
    assert len(set(received.connections)) <= 4


@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork])
def test_replies_mixed_up_after_a_fork_do_not_happen(
    credential: Credential, fork: Callable[[], int]
) -> None:
    session = credential.session()

    def name() -> bytes:
        return session.get("v2/contacts").content

    with answering(*map(reply, [200] * 3, [b"a", b"b", b"c"])) as received:
        assert [name(), in_child(name, fork=fork), name()] == [b"a", b"b", b"c"]
    assert received.connections == [1, 2, 1]


def test_connection_that_was_idle_for_long_is_not_used_again(
    credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering() as received:
        credential.session().get("v2/contacts")
        monkeypatch.setattr(sent, "MAX_IDLE_SECONDS", -1)
        credential.session().get("v2/contacts")
    assert received.connections == [1, 2]


def test_connection_that_a_tool_has_put_in_is_used(
    credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As VCR.py does for a while, with a class of its own."""

    class Recording:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.real = HTTPConnection(*args, **kwargs)

        def request(self, method: str, *args: Any, **kwargs: Any) -> None:
            seen.append(method)
            self.real.request(method, *args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    seen: list[str] = []
    monkeypatch.setattr(HTTPConnectionPool, "ConnectionCls", Recording)
    with answering():
        assert credential.session().get("v2/contacts").ok
    assert seen == ["GET"]


def test_adapter_of_the_caller_is_used(credential: Credential) -> None:
    class Adapter(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
            seen.append(request.method)
            return super().send(request, *args, **kwargs)

    seen: list[str | None] = []
    with credential.session() as session:
        session.mount("http://", Adapter())
        assert session.get("v2/contacts").ok
    assert seen == ["GET"]
    assert credential.session().get("v2/contacts").ok
    assert seen == ["GET"]


def test_broken_write_over_an_adapter_of_the_caller_is_unconfirmed(
    credential: Credential,
) -> None:
    session = credential.session()
    session.mount("http://", HTTPAdapter())
    with answering(None) as received, pytest.raises(WriteUnconfirmed):
        session.post("v2/contacts", json={})
    assert received.requests == ["POST"]


@pytest.mark.parametrize("where", ["session", "call"])
def test_proxy_of_the_caller_is_used(credential: Credential, where: str) -> None:
    session = credential.session(max_wait=1)
    proxies = {"http": NOWHERE}
    if where == "session":
        session.proxies = dict(proxies)
    with answering() as received, pytest.raises(ApiUnavailable, match="ProxyError"):
        session.get("v2/contacts", proxies=proxies if where == "call" else None)
    assert received.requests == []


def test_certificates_of_one_session_are_not_trusted_by_another(
    credential: Credential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # requests prefers them
        monkeypatch.delenv(name, raising=False)
    context, bundle = certified(tmp_path)

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as encrypted:
            while True:
                read_head(encrypted)
                encrypted.sendall(reply())

    trusting, other = credential.session(), credential.session()
    trusting.verify = str(bundle)
    with (
        listening(serve) as port,
        override_settings(INFUSIONSOFT_API_URL=f"https://127.0.0.1:{port}/"),
    ):
        for _ in range(2):
            assert trusting.get("v2/contacts").ok
            with pytest.raises(ApiUnavailable, match="SSLError"):
                other.post("v2/contacts", json={})
        assert other.get("v2/contacts", verify=str(bundle)).ok


def test_cookies_of_one_account_are_not_sent_for_another(
    connect_two: list[Credential],
) -> None:
    with answering(reply(Set_Cookie="a=b; Path=/")):
        first, second = (each.session() for each in connect_two)
        first.get("v2/contacts")
        assert "Cookie" in first.get("v2/contacts").request.headers
        assert "Cookie" not in second.get("v2/contacts").request.headers


def test_session_starts_as_one_of_requests_does(credential: Credential) -> None:
    ours, plain = vars(credential.session()), vars(requests.Session())
    assert ours.keys() >= plain.keys()
    assert ours["adapters"] == {"https://": connections, "http://": connections}
    for name in ("headers", "hooks", "params", "proxies", "cookies"):
        assert ours[name] is not vars(credential.session())[name]
        assert type(ours[name]) is type(plain[name])
    assert pickle.loads(pickle.dumps(connections)) is connections  # noqa: S301  # pickled here


def test_closed_process_leaves_no_warning(sandbox: Sandbox, credential: Credential) -> None:
    code = f"""
        import django
        from django.conf import settings
        settings.configure(INFUSIONSOFT_API_URL={sandbox.api_url!r})
        from django_infusionsoft.api.connections import connections
        from django_infusionsoft.keap.sent import Call, making
        from django_infusionsoft.keap.sessions import Session
        with Session(connections) as session, making(Call()):
            assert session.get("{sandbox.api_url}v2/contacts").status_code == 401
    """
    process = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")


# Limits of an answer


def dripping(connection: socket.socket) -> None:
    """Send a body for ever, a byte at a time."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:  # until the client has closed it
        time.sleep(0.05)
        connection.sendall(b" ")


@pytest.mark.parametrize(
    ("method", "error"), [("GET", ApiUnavailable), ("POST", WriteUnconfirmed)]
)
def test_missing_timeouts_do_not_happen_when_a_body_drips(
    credential: Credential, method: str, error: type[ApiError]
) -> None:
    session = credential.session(max_wait=2, response_timeout=0.3)
    with answering(*[dripping] * 20), pytest.raises(error):
        session.request(method, "v2/contacts")


def test_dripping_body_is_left_to_a_caller_who_streams(credential: Credential) -> None:
    session = credential.session(response_timeout=0.1, max_response_bytes=3)
    with (
        answering(dripping),
        session.get("v2/contacts", stream=True) as response,
    ):
        assert response.raw.read(8) == b" " * 8


@pytest.mark.parametrize("mounted", [False, True])
def test_answer_is_refused_when_it_is_too_large(credential: Credential, mounted: bool) -> None:
    session = credential.session(max_response_bytes=100)
    if mounted:
        session.mount("http://", HTTPAdapter())
    with answering(reply(body=b"x" * 101), reply(body=b"x" * 100)):
        with pytest.raises(ApiError, match="larger than 100 bytes") as caught:
            session.get("v2/contacts")
        assert len(session.get("v2/contacts").content) == 100
    assert caught.value.status == 200


def test_gzip_bomb_costs_no_more_than_the_limit(credential: Credential) -> None:
    bomb = gzip.compress(bytes(100_000_000))
    session = credential.session(max_response_bytes=2_000_000)
    with answering(reply(body=bomb, Content_Encoding="gzip")):
        session.get("v2/contacts", stream=True).close()
    with answering(reply(body=bomb, Content_Encoding="gzip")):
        tracemalloc.start()
        try:
            with pytest.raises(ApiError, match="larger"):
                session.get("v2/contacts")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize("compress", [None, gzip.compress])
def test_whole_body_is_read(
    credential: Credential, compress: Callable[[bytes], bytes] | None
) -> None:
    body = os.urandom(300_000)
    answer = reply(body=compress(body), Content_Encoding="gzip") if compress else reply(body=body)
    with answering(answer, answer) as received:
        assert credential.session().get("v2/contacts").content == body
        assert credential.session().get("v2/contacts").content == body
    assert received.connections == [1, 1]
