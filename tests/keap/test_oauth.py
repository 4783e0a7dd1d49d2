"""The OAuth client: the requests that it sends, and how it classifies the replies."""

import base64
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import override_settings

from django_infusionsoft.exceptions import (
    ClientRejected,
    ConfigurationError,
    GatewayFailed,
    GrantRejected,
    InfusionsoftError,
    OutcomeUnknown,
    TemporarilyUnavailable,
)
from django_infusionsoft.keap import oauth, transport
from django_infusionsoft.keap.oauth import Client, TokenPair
from django_infusionsoft.sandbox import Fault, Sandbox, faults

CLIENT = Client("sandbox-client", "sandbox-secret")
REDIRECT_URI = "https://site.example/callback/"


def refresh_token(sandbox: Sandbox) -> str:
    return str(sandbox.issue("ab123")["refresh_token"])


# Requests


@contextmanager
def recorder() -> Iterator[list[dict[str, Any]]]:
    """A token endpoint that records its requests and grants all of them."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # the name that http.server calls
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append(
                {
                    "headers": dict(self.headers),
                    "form": parse_qs(body.decode()),
                    "client": self.client_address,
                }
            )
            reply = b'{"access_token": "a", "refresh_token": "r", "expires_in": 5}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.send_header("Set-Cookie", "name=value")
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with override_settings(
            INFUSIONSOFT_TOKEN_URL=f"http://127.0.0.1:{server.server_port}/token"
        ):
            yield requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_refresh_sends_basic_authentication_and_only_two_fields() -> None:
    with recorder() as requests:
        oauth.refresh(Client("id", "sec:ret/+=é"), "the-token")
    (request,) = requests
    assert request["form"] == {"grant_type": ["refresh_token"], "refresh_token": ["the-token"]}
    kind, credentials = request["headers"]["Authorization"].split()
    assert kind == "Basic"
    assert base64.b64decode(credentials).decode() == "id:sec:ret/+=é"
    assert request["headers"]["Content-Type"] == "application/x-www-form-urlencoded"


def test_exchange_sends_the_client_in_the_body_and_no_authentication(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else")
    monkeypatch.setenv("NETRC", str(netrc))
    with recorder() as requests:
        oauth.exchange_code(Client("id", "s&cret"), code="c", redirect_uri=REDIRECT_URI)
    (request,) = requests
    assert "Authorization" not in request["headers"]
    assert request["form"] == {
        "grant_type": ["authorization_code"],
        "client_id": ["id"],
        "client_secret": ["s&cret"],
        "code": ["c"],
        "redirect_uri": [REDIRECT_URI],
    }


def test_connection_is_reused_by_the_next_call_in_another_thread() -> None:
    with recorder() as requests:
        oauth.refresh(CLIENT, "one")
        thread = threading.Thread(target=oauth.refresh, args=(CLIENT, "two"))
        thread.start()
        thread.join()
    assert requests[0]["client"] == requests[1]["client"]


def test_no_cookie_is_sent_when_an_earlier_reply_has_set_one() -> None:
    with recorder() as requests:
        oauth.refresh(CLIENT, "one")
        oauth.refresh(CLIENT, "two")
    assert "Cookie" not in requests[1]["headers"]


def test_connection_is_not_reused_when_it_is_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "MAX_AGE_SECONDS", 0)
    with recorder() as requests:
        oauth.refresh(CLIENT, "one")
        oauth.refresh(CLIENT, "two")
    assert requests[0]["client"] != requests[1]["client"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_connection_is_not_shared_with_a_forked_process() -> None:
    with recorder() as requests:
        oauth.refresh(CLIENT, "parent")
        if (pid := os.fork()) == 0:
            try:
                oauth.refresh(CLIENT, "child")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        oauth.refresh(CLIENT, "parent again")
    parent, child, again = (request["client"] for request in requests)
    assert parent == again != child


def test_authorization_url_has_the_documented_parameters_and_the_state() -> None:
    url = oauth.authorization_url(CLIENT, redirect_uri=REDIRECT_URI, state="xyz")
    parts = urlsplit(url)
    assert parts._replace(query="").geturl() == (
        "https://accounts.infusionsoft.com/app/oauth/authorize"
    )
    assert parse_qs(parts.query) == {
        "response_type": ["code"],
        "client_id": ["sandbox-client"],
        "redirect_uri": [REDIRECT_URI],
        "scope": ["full"],
        "state": ["xyz"],
    }


# Replies


def test_refresh_returns_the_token_pair_and_the_account(sandbox: Sandbox) -> None:
    pair = oauth.refresh(CLIENT, refresh_token(sandbox))
    assert (pair.account, pair.expires_in) == ("ab123", 86_400)
    assert len(pair.access_token) == 28
    assert pair.refresh_token in {grant.refresh_token for grant in sandbox.live_grants}


def test_exchange_returns_the_token_pair_when_access_was_allowed(sandbox: Sandbox) -> None:
    url = oauth.authorization_url(CLIENT, redirect_uri=REDIRECT_URI, state="xyz")
    callback = parse_qs(urlsplit(sandbox.authorize(url, account="cd456")).query)
    pair = oauth.exchange_code(CLIENT, code=callback["code"][0], redirect_uri=REDIRECT_URI)
    assert pair.account == "cd456"


def reply(**changes: Any) -> Fault:
    """A valid reply with changes; ``None`` removes a field."""
    fields = {
        "access_token": "a1",
        "token_type": "bearer",
        "expires_in": 86_400,
        "refresh_token": "r1",
        "scope": "full|ab123.infusionsoft.com",
    }
    content = {name: v for name, v in {**fields, **changes}.items() if v is not None}
    return faults.answer(200, content)


VALID_JSON = '{"access_token": "a1", "refresh_token": "r1", "expires_in": 86400}'

ACCEPTED = {
    "expires_in as a string": (reply(expires_in="86400"), 86_400),
    "expires_in as a fraction": (reply(expires_in=3599.9), 3599),
    "expires_in missing": (reply(expires_in=None), 3600),
    "expires_in zero": (reply(expires_in=0), 3600),
    "expires_in negative": (reply(expires_in=-1), 3600),
    "expires_in nonsense": (reply(expires_in="soon"), 3600),
    "expires_in a list": (reply(expires_in=[1]), 3600),
    "expires_in true": (reply(expires_in=True), 3600),
    "expires_in infinite": (faults.answer(200, VALID_JSON.replace("86400", "1e999")), 3600),
    "expires_in huge": (reply(expires_in=10**30), oauth.MAX_LIFETIME_SECONDS),
    "scope missing": (reply(scope=None), 86_400),
    "scope odd": (reply(scope=["full"]), 86_400),
    "token_type missing": (reply(token_type=None), 86_400),
    "unknown fields": (reply(error=None, more={"a": [1]}), 86_400),
    "content type text/plain": (
        faults.answer(200, VALID_JSON, headers={"Content-Type": "text/plain"}),
        86_400,
    ),
    "byte order mark": (faults.answer(200, b"\xef\xbb\xbf" + VALID_JSON.encode()), 86_400),
}


@pytest.mark.parametrize(("fault", "lifetime"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_token_pair_is_accepted_when_other_fields_are_invalid(
    sandbox: Sandbox, fault: Fault, lifetime: int
) -> None:
    sandbox.plan(fault)
    pair = oauth.refresh(CLIENT, refresh_token(sandbox))
    assert (pair.access_token, pair.refresh_token, pair.expires_in) == ("a1", "r1", lifetime)


def test_refresh_token_is_none_when_the_reply_has_none(sandbox: Sandbox) -> None:
    sandbox.plan(reply(refresh_token=None))
    assert oauth.refresh(CLIENT, refresh_token(sandbox)).refresh_token is None


def test_exchange_raises_when_the_reply_has_no_refresh_token(sandbox: Sandbox) -> None:
    sandbox.plan(reply(refresh_token=None))
    with pytest.raises(ConfigurationError, match="no refresh token"):
        oauth.exchange_code(CLIENT, code="c", redirect_uri=REDIRECT_URI)


def error(status: int, code: str, description: str = "") -> Fault:
    return faults.answer(status, {"error": code, "error_description": description})


def fault_reply(status: int, code: str) -> Fault:
    return faults.answer(status, {"fault": {"faultstring": "x", "detail": {"errorcode": code}}})


# One reply of each kind, and replies that need a case of their own.
OUTCOMES: dict[str, tuple[Fault, type[InfusionsoftError]]] = {
    "400 today": (error(400, "invalid_request", "Invalid Refresh Token"), GrantRejected),
    "401 empty": (faults.empty(401), ClientRejected),
    "403 fault": (
        fault_reply(403, "keymanagement.service.invalid_client-client_id_not_approved"),
        ClientRejected,
    ),
    "503": (faults.error_503(), TemporarilyUnavailable),
    "200 deep": (faults.answer(200, "[" * 100_000), GatewayFailed),
    "drop after rotating": (faults.drop_after(), OutcomeUnknown),
    "200 refresh token a list": (reply(refresh_token=["r"]), OutcomeUnknown),
}


@pytest.mark.parametrize(("fault", "expected"), OUTCOMES.values(), ids=OUTCOMES.keys())
def test_outcome_of_a_refresh_is_classified(
    sandbox: Sandbox, fault: Fault, expected: type[InfusionsoftError]
) -> None:
    presented = refresh_token(sandbox)
    sandbox.plan(fault)
    with pytest.raises(InfusionsoftError) as caught:
        oauth.refresh(CLIENT, presented)
    assert type(caught.value) is expected
    assert presented not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert sandbox.presentations(presented) == 1


def test_rejection_has_the_reason_expired_when_the_refresh_token_is_too_old(
    sandbox: Sandbox,
) -> None:
    presented = refresh_token(sandbox)
    sandbox.clock.advance(46 * 86_400)
    with pytest.raises(GrantRejected) as caught:
        oauth.refresh(CLIENT, presented)
    assert caught.value.reason == "expired"


def test_outcome_is_unknown_when_the_reply_times_out(sandbox: Sandbox) -> None:
    presented = refresh_token(sandbox)
    sandbox.hold()
    with override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.1), pytest.raises(OutcomeUnknown):
        oauth.refresh(CLIENT, presented)
    assert sandbox.presentations(presented) == 1


def test_outcome_is_unknown_when_the_body_arrives_too_slowly(sandbox: Sandbox) -> None:
    presented = refresh_token(sandbox)
    sandbox.plan(faults.drip(0.05))
    with (
        override_settings(
            INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.2, INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS=0.2
        ),
        pytest.raises(OutcomeUnknown),
    ):
        oauth.refresh(CLIENT, presented)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("17", 17),
        ("0", 0),
        ("99999999", 86_400),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2999 07:28:00 GMT", 86_400),
        ("soon", None),
        ("-5", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(
    sandbox: Sandbox, header: str, seconds: float | None
) -> None:
    sandbox.plan(faults.answer(503, "", headers={"Retry-After": header}))
    with pytest.raises(TemporarilyUnavailable) as caught:
        oauth.refresh(CLIENT, "r")
    assert caught.value.retry_after == seconds


def test_nothing_was_sent_when_the_connection_is_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/token"
        with (
            override_settings(INFUSIONSOFT_TOKEN_URL=url),
            pytest.raises(TemporarilyUnavailable, match="nothing was sent") as caught,
        ):
            oauth.refresh(CLIENT, "r")
    assert not isinstance(caught.value, OutcomeUnknown)


def test_nothing_was_sent_when_the_host_name_is_unknown() -> None:
    with (
        override_settings(INFUSIONSOFT_TOKEN_URL="https://keap.invalid/token"),
        pytest.raises(TemporarilyUnavailable, match="nothing was sent"),
    ):
        oauth.refresh(CLIENT, "r")


def test_nothing_is_sent_when_the_url_is_plain_http() -> None:
    with (
        override_settings(INFUSIONSOFT_TOKEN_URL="http://192.0.2.1/token"),
        pytest.raises(ConfigurationError),
    ):
        oauth.refresh(CLIENT, "r")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (error(400, "invalid_request", "Invalid Authorization Code"), GrantRejected),
        (error(400, "invalid_request", "Invalid redirect_uri : x"), ConfigurationError),
        (error(400, "invalid_grant"), GrantRejected),
        (error(401, "invalid_client"), ClientRejected),
        (faults.error_502(), GatewayFailed),
        (faults.drop_after(), OutcomeUnknown),
    ],
)
def test_outcome_of_an_exchange_is_classified(
    sandbox: Sandbox, fault: Fault, expected: type[InfusionsoftError]
) -> None:
    sandbox.plan(fault)
    with pytest.raises(InfusionsoftError) as caught:
        oauth.exchange_code(CLIENT, code="c", redirect_uri=REDIRECT_URI)
    assert type(caught.value) is expected


# Secrets


def test_log_contains_no_secret_at_debug_level(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("requests_oauthlib", "oauthlib", "urllib3", "django_infusionsoft"):
        caplog.set_level(logging.DEBUG, logger=name)
    presented = refresh_token(sandbox)
    pair = oauth.refresh(CLIENT, presented)
    with pytest.raises(GrantRejected):
        oauth.exchange_code(CLIENT, code="the-code", redirect_uri=REDIRECT_URI)
    secrets = [presented, pair.access_token, pair.refresh_token, CLIENT.client_secret, "the-code"]
    assert "urllib3" in {record.name.split(".")[0] for record in caplog.records}
    assert not [secret for secret in secrets if str(secret) in caplog.text]


def test_reprs_contain_no_secret() -> None:
    pair = TokenPair(access_token="aaa", refresh_token="rrr", expires_in=5, account="ab123")
    assert "aaa" not in repr(pair)
    assert "rrr" not in repr(pair)
    assert "sandbox-secret" not in repr(CLIENT)


@pytest.mark.parametrize(
    ("scope", "account"),
    [
        ("full|ab123.infusionsoft.com", "ab123"),
        ("full|AB123.Infusionsoft.com ", "ab123"),
        ("full|ab123", "ab123"),
        ("full", None),
        ("full|", None),
        ("full|<script>", None),
        ("full|" + "a" * 300, None),
        (None, None),
        (5, None),
    ],
)
def test_account_is_read_from_the_scope(scope: object, account: str | None) -> None:
    assert oauth.account_in_scope(scope) == account
