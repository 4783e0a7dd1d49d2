"""API sessions: where the access token is sent, and what follows a 401."""

import io
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from django.test import override_settings
from requests.exceptions import InvalidURL

from django_infusionsoft.exceptions import (
    ApiError,
    ApiUnavailable,
    ConfigurationError,
    InfusionsoftError,
    ReauthorizationRequired,
    TemporarilyUnavailable,
)
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import threads

Connect = Callable[..., Credential]
CONTACT = b'{"given_name": "Nell", "email_addresses": [{"email": "nell@acme.example"}]}'


class OtherHost(ThreadingHTTPServer):
    """A host other than Keap's, which records the requests that it gets."""

    def __init__(self) -> None:
        self.headers_seen: list[dict[str, str]] = []
        self.ports_seen: list[int] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), _OtherHostHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _OtherHostHandler(BaseHTTPRequestHandler):
    server: OtherHost
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.headers_seen.append(dict(self.headers))
        self.server.ports_seen.append(self.client_address[1])
        self.send_response(self.server.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: Any) -> None:
        pass


class ReadOnce:
    """A body of known length that can be read only once, such as that of a pipe."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __len__(self) -> int:
        return len(CONTACT)

    def __iter__(self) -> Iterator[bytes]:
        content, self._content = self._content, b""
        yield content


@pytest.fixture
def other_host() -> Iterator[OtherHost]:
    with OtherHost() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def row(credential: Credential) -> Credential:
    return Credential.objects.get(pk=credential.pk)


def outcomes(sandbox: Sandbox) -> list[str]:
    return [request.outcome for request in sandbox.token_requests]


def contacts(sandbox: Sandbox, credential: Credential) -> list[str]:
    with row(credential).session() as session:
        return [each["given_name"] for each in session.get("v1/contacts").json()["contacts"]]


def unauthorized(times: int | None = 1) -> dict[str, Any]:
    """Return the arguments for planning a 401 response to any access token."""
    return {"fault": faults.answer(401, {"fault": {}}), "endpoint": "api", "times": times}


# The access token


def test_access_token_is_sent_only_in_the_header(credential: Credential) -> None:
    response = credential.session().get("v2/contacts", params={"page_size": 1})
    assert response.status_code == 200
    assert response.request.headers["Authorization"] == f"Bearer {credential.access_token}"
    assert credential.access_token not in str(response.request.url)
    assert response.request.body is None


def test_call_makes_no_query_when_the_access_token_is_valid(
    credential: Credential, django_assert_num_queries: Any
) -> None:
    loaded = row(credential)
    with django_assert_num_queries(0), loaded.session() as session:
        assert session.get("v2/contacts").ok
        assert session.get("v2/contacts").ok


def test_expired_access_token_is_refreshed_before_the_call(
    sandbox: Sandbox, expired: Credential
) -> None:
    response = expired.session().get("v2/contacts")
    assert (response.status_code, response.history) == (200, [])
    assert outcomes(sandbox) == ["rotated"]


def test_existing_session_uses_the_new_access_token(
    sandbox: Sandbox, credential: Credential
) -> None:
    with credential.session() as session:
        assert session.get("v2/contacts").ok
        credential.refresh()
        response = session.get("v2/contacts")
    assert response.request.headers["Authorization"] == f"Bearer {credential.access_token}"
    assert response.history == []


def test_repr_of_a_session_contains_no_access_token(credential: Credential) -> None:
    session = credential.session()
    shown = f"{session!r} {session.auth!r} {vars(session)}"
    assert credential.access_token not in shown


def test_authentication_given_by_the_caller_is_used(credential: Credential) -> None:
    response = credential.session().get("v2/contacts", auth=("user", "password"))
    assert response.status_code == 401
    assert response.request.headers["Authorization"].startswith("Basic ")


# URLs


@pytest.mark.parametrize("base_ends_with_a_slash", [True, False])
@pytest.mark.parametrize("url", ["v2/contacts", "/v2/contacts", "//v2/contacts"])
def test_relative_url_is_resolved_against_the_api_url(
    sandbox: Sandbox, credential: Credential, url: str, base_ends_with_a_slash: bool
) -> None:
    base = sandbox.api_url if base_ends_with_a_slash else sandbox.api_url.rstrip("/")
    with override_settings(INFUSIONSOFT_API_URL=base):
        response = credential.session().get(url)
    assert response.url == f"{sandbox.api_url}v2/contacts"
    assert response.ok


def test_relative_url_keeps_its_query_and_special_characters(credential: Credential) -> None:
    response = credential.session().get("v2/contacts/7:undo?filter=email==a@ex.test;x==1")
    parts = urlsplit(response.url)
    assert parts.path.endswith("/v2/contacts/7:undo")
    assert parts.query == "filter=email==a@ex.test;x==1"


def test_absolute_next_urls_of_v1_can_be_followed(credential: Credential) -> None:
    with credential.session() as session:
        first = session.get("v1/contacts", params={"limit": 1}).json()
        second = session.get(first["next"]).json()
    names = [page["contacts"][0]["given_name"] for page in (first, second)]
    assert names == ["Bea", "Otto"]


def test_prepared_request_is_resolved_and_authenticated(
    sandbox: Sandbox, credential: Credential
) -> None:
    with credential.session() as session:
        prepared = session.prepare_request(requests.Request("GET", "v2/contacts"))
        response = session.send(prepared)
    assert (response.url, response.status_code) == (f"{sandbox.api_url}v2/contacts", 200)


def test_url_is_resolved_against_the_current_setting(
    other_host: OtherHost, credential: Credential
) -> None:
    session = credential.session()
    with override_settings(INFUSIONSOFT_API_URL=f"{other_host.url}/api"):
        assert session.get("v2/contacts").url == f"{other_host.url}/api/v2/contacts"


@pytest.mark.parametrize(
    ("api_url", "url"),
    [
        ("https://api.keap.test/crm/rest/", "https://API.Keap.test/crm/rest/v1/contacts"),
        ("https://api.keap.test/crm/rest/", "https://api.keap.test:443/crm/rest/v1/contacts"),
        ("https://api.keap.test:443/crm/rest/", "https://api.keap.test/crm/rest/v1/contacts"),
        ("https://API.keap.test/crm/rest/", "https://api.keap.test/crm/rest/v1/contacts"),
    ],
)
def test_host_is_accepted_in_another_spelling(
    credential: Credential, api_url: str, url: str
) -> None:
    with override_settings(INFUSIONSOFT_API_URL=api_url), credential.session() as session:
        prepared = session.prepare_request(requests.Request("GET", url))
    assert prepared.headers["Authorization"] == f"Bearer {credential.access_token}"
    assert str(prepared.url).lower().startswith("https://api.keap.test")


FOREIGN_URLS = [
    "http://{other_host}/crm/rest/v2/contacts",
    "https://{keap}/crm/rest/v2/contacts",
    "HTTP://{other_host}/",
    " http://{other_host}/",
    "\thttp://{other_host}/",
    "/http://{other_host}/",
    "http://{keap}@{other_host}/",
    "http://{keap}:x@{other_host}/",
    "http://{keap}%2F@{other_host}/",
    "http://{keap}\\@{other_host}/",
    "http://{other_host}\\@{keap}/",
    "http://{keap_host}.{other_host}/",
    "http://{keap_host}\u3002{other_host}/",
    "http://{other_host}#@{keap}/",
    "http://{other_host}?@{keap}/",
    "http://user:password@{keap}/crm/rest/v2/contacts",
    "ht\ntp://{other_host}/",
    "ftp://{other_host}/",
    "ftp://{keap}/",
    "mailto:a@ex.test",
    "data:text/plain,x",
]


@pytest.mark.parametrize("template", FOREIGN_URLS)
def test_access_token_is_not_sent_to_another_host(
    sandbox: Sandbox, expired: Credential, other_host: OtherHost, template: str
) -> None:
    keap = urlsplit(sandbox.url)
    url = template.format(
        keap=keap.netloc, keap_host=keap.hostname, other_host=urlsplit(other_host.url).netloc
    )
    with (
        expired.session() as session,
        pytest.raises(ConfigurationError, match="INFUSIONSOFT_API_URL"),
    ):
        session.get(url)
    assert other_host.headers_seen == []
    assert outcomes(sandbox) == []


def test_request_to_another_host_cannot_be_prepared(
    credential: Credential, other_host: OtherHost
) -> None:
    request = requests.Request("GET", other_host.url)
    with credential.session() as session, pytest.raises(ConfigurationError):
        session.prepare_request(request)


@pytest.mark.parametrize(
    "url",
    [
        "http:/\\{other_host}/",
        "http:\\\\{other_host}/",
        "\\\\{other_host}/",
        "/\\{other_host}/",
        "////{other_host}/",
        "http:///{other_host}/",
        "{other_host}/",
        "@{other_host}/",
    ],
)
def test_url_is_resolved_at_keap_when_a_browser_would_leave_it(
    sandbox: Sandbox, credential: Credential, other_host: OtherHost, url: str
) -> None:
    with credential.session() as session, suppress(ConfigurationError, InvalidURL):
        response = session.get(url.format(other_host=urlsplit(other_host.url).netloc))
        assert response.url.startswith(f"{sandbox.url}/")
        assert response.status_code == 501
    assert other_host.headers_seen == []


@pytest.mark.parametrize("url", ["http://[::1/", "http://127.0.0.1:port/", "http://a\uff0fb/"])
def test_malformed_url_raises_invalid_url(credential: Credential, url: str) -> None:
    with credential.session() as session, pytest.raises(InvalidURL):
        session.get(url)


# Redirects


def redirect_to(url: str, status: int = 302) -> dict[str, Any]:
    return {"fault": faults.answer(status, headers={"Location": url}), "endpoint": "api"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_bearers_leaked_by_redirects_do_not_happen(
    sandbox: Sandbox, credential: Credential, other_host: OtherHost, method: str, status: int
) -> None:
    sandbox.plan(**redirect_to(other_host.url, status))
    response = credential.session().request(method, "v2/contacts")
    assert (response.status_code, response.history) == (status, [])
    assert other_host.headers_seen == []
    assert outcomes(sandbox) == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_of_a_write_is_not_followed(
    sandbox: Sandbox, credential: Credential, status: int
) -> None:
    sandbox.plan(**redirect_to("/crm/rest/v2/contacts", status))
    response = credential.session().post("v2/contacts", data=CONTACT)
    assert (response.status_code, response.history) == (status, [])
    sandbox.plan(**redirect_to("/crm/rest/v2/contacts", status))
    with pytest.raises(ApiError) as caught:
        credential.session().call("POST", "v2/contacts", data=CONTACT)
    assert caught.value.status == status
    assert contacts(sandbox, credential) == ["Bea", "Otto"]


def test_redirects_end_after_a_few(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.plan(times=None, **redirect_to("/crm/rest/v2/contacts"))
    response = credential.session().get("v2/contacts")
    assert (response.status_code, len(response.history)) == (302, 5)


@pytest.mark.parametrize("url", ["http://[", "http://127.0.0.1:port/", "//", ""])
def test_malformed_redirect_is_returned(
    sandbox: Sandbox, credential: Credential, url: str
) -> None:
    sandbox.plan(times=None, **redirect_to(url))
    assert credential.session().get("v2/contacts").status_code == 302


def test_redirect_is_returned_when_the_caller_asks_for_it(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(**redirect_to("/crm/rest/v1/contacts"))
    assert credential.session().get("v2/contacts", allow_redirects=False).status_code == 302


@pytest.mark.parametrize("redirected", [False, True])
def test_bearers_replaced_by_netrc_do_not_happen(
    sandbox: Sandbox,
    credential: Credential,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    redirected: bool,
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    if redirected:
        sandbox.plan(**redirect_to("/crm/rest/v1/contacts"))
    response = credential.session().get("v2/contacts")
    assert response.ok
    assert response.request.headers["Authorization"] == f"Bearer {credential.access_token}"


def test_access_token_is_sent_when_keap_redirects_to_itself(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(**redirect_to("/crm/rest/v1/contacts"))
    response = credential.session().get("v2/contacts")
    assert (response.status_code, urlsplit(response.url).path) == (200, "/crm/rest/v1/contacts")


def test_new_access_token_is_used_when_a_redirect_follows_a_401(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.switches.refresh_revokes_access_tokens = True
    sandbox.plan(**unauthorized())
    sandbox.plan(**redirect_to("/crm/rest/v1/contacts"))
    response = credential.session().get("v2/contacts")
    assert response.status_code == 200
    assert response.request.headers["Authorization"] == f"Bearer {credential.access_token}"
    assert outcomes(sandbox) == ["rotated"]


# 401


def test_request_is_repeated_with_a_refreshed_access_token(
    sandbox: Sandbox, credential: Credential
) -> None:
    rejected = credential.access_token
    sandbox.revoke_access_tokens("ab123")
    response = credential.session().get("v2/contacts")
    assert response.status_code == 200
    assert [each.status_code for each in response.history] == [401]
    assert response.request.headers["Authorization"] == f"Bearer {credential.access_token}"
    assert row(credential).access_token == credential.access_token != rejected
    assert outcomes(sandbox) == ["rotated"]


def test_newer_access_token_is_used_without_a_refresh(
    sandbox: Sandbox, credential: Credential
) -> None:
    stale = row(credential)
    sandbox.switches.refresh_revokes_access_tokens = True
    credential.refresh()
    response = stale.session().get("v2/contacts")
    assert (response.status_code, len(response.history)) == (200, 1)
    assert stale.access_token == credential.access_token
    assert outcomes(sandbox) == ["rotated"]


def test_second_401_is_returned_after_one_refresh_and_one_retry(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(**unauthorized(times=2))
    with credential.session() as session:
        assert session.get("v2/contacts").status_code == 401
        assert outcomes(sandbox) == ["rotated"]
        assert session.get("v2/contacts").status_code == 200
    assert outcomes(sandbox) == ["rotated"]


def test_endless_401_loops_do_not_happen(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.plan(**unauthorized(None))
    session = credential.session()
    for _ in range(5):
        assert session.get("v2/contacts").status_code == 401
    assert len(sandbox.token_requests) == 1


def test_second_401_is_returned_when_the_newer_access_token_is_rejected(
    sandbox: Sandbox, credential: Credential
) -> None:
    stale = row(credential)
    credential.refresh()
    sandbox.plan(**unauthorized(times=2))
    assert stale.session().get("v2/contacts").status_code == 401
    assert outcomes(sandbox) == ["rotated"]


@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_request_is_not_repeated_for_other_statuses(
    sandbox: Sandbox, credential: Credential, status: int
) -> None:
    sandbox.plan(faults.answer(status), endpoint="api")
    response = credential.session().get("v2/contacts")
    assert (response.status_code, response.history) == (status, [])
    assert outcomes(sandbox) == []


@pytest.mark.parametrize("stream", [False, True])
def test_connection_is_reused_for_the_repeat_after_a_401(
    credential: Credential, other_host: OtherHost, stream: bool
) -> None:
    other_host.status = 401
    with (
        override_settings(INFUSIONSOFT_API_URL=other_host.url),
        credential.session() as session,
    ):
        session.get("v2/contacts", stream=stream).close()
    first, second = other_host.ports_seen
    assert first == second


def test_account_must_be_reconnected_when_the_grant_was_revoked(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke("ab123")
    with pytest.raises(ReauthorizationRequired) as caught:
        credential.session().get("v2/contacts")
    assert caught.value.reason == "revoked"
    assert row(credential).status == "reauthorization_required"


def test_app_exception_is_raised_when_the_refresh_after_a_401_fails(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke_access_tokens("ab123")
    sandbox.plan(faults.error_503())
    with credential.session() as session:
        with pytest.raises(TemporarilyUnavailable):
            session.get("v2/contacts")
        assert session.get("v2/contacts").ok


def test_app_exception_is_raised_when_there_is_no_valid_access_token(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(faults.error_503())
    with expired.session() as session, pytest.raises(TemporarilyUnavailable):
        session.get("v2/contacts")


def test_app_exception_is_raised_when_the_credential_was_deleted(
    sandbox: Sandbox, credential: Credential
) -> None:
    orphan = row(credential)
    credential.delete()
    sandbox.revoke_access_tokens("ab123")
    with pytest.raises(InfusionsoftError, match="deleted"):
        orphan.session().get("v2/contacts")


# Request bodies


@pytest.fixture
def rejected(sandbox: Sandbox, credential: Credential) -> Credential:
    """A credential whose access token Keap no longer accepts."""
    sandbox.revoke_access_tokens("ab123")
    return credential


@pytest.mark.parametrize(
    "body",
    [
        {"json": {"given_name": "Nell", "email_addresses": [{"email": "nell@acme.example"}]}},
        {"data": CONTACT},
        {"data": CONTACT.decode()},
    ],
)
def test_body_is_sent_again_after_a_401(
    sandbox: Sandbox, rejected: Credential, body: dict[str, Any]
) -> None:
    assert rejected.session().post("v2/contacts", **body).status_code == 201
    assert contacts(sandbox, rejected) == ["Bea", "Otto", "Nell"]


def test_file_is_sent_again_from_its_initial_position(
    sandbox: Sandbox, rejected: Credential, tmp_path: Path
) -> None:
    path = tmp_path / "contact.json"
    path.write_bytes(b"junk" + CONTACT)
    with path.open("rb") as file:
        file.seek(4)
        assert rejected.session().post("v2/contacts", data=file).status_code == 201
    assert contacts(sandbox, rejected) == ["Bea", "Otto", "Nell"]


class Unseekable(io.BytesIO):
    """A stream that has a position but cannot seek."""

    seek = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(CONTACT)


@pytest.mark.parametrize("make", [ReadOnce, Unseekable])
def test_401_is_returned_when_the_body_cannot_be_sent_twice(
    sandbox: Sandbox, rejected: Credential, make: Callable[[bytes], Any]
) -> None:
    response = rejected.session().post("v2/contacts", data=make(CONTACT))
    assert (response.status_code, response.history) == (401, [])
    assert contacts(sandbox, rejected) == ["Bea", "Otto"]


def test_next_call_succeeds_when_the_body_could_not_be_sent_twice(
    sandbox: Sandbox, rejected: Credential
) -> None:
    with rejected.session() as session:
        assert session.post("v2/contacts", data=ReadOnce(CONTACT)).status_code == 401
        assert session.post("v2/contacts", data=ReadOnce(CONTACT)).status_code == 201


# Timeouts


def slow(sandbox: Sandbox) -> None:
    """Let the API take far longer than any timeout of these tests, but not forever."""
    sandbox.plan(faults.latency(5), endpoint="api", times=None)


def test_call_ends_after_the_timeout_of_the_settings(
    sandbox: Sandbox, credential: Credential
) -> None:
    slow(sandbox)
    with (
        override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.1),
        pytest.raises(ApiUnavailable, match="ReadTimeout"),
    ):
        credential.session().get("v2/contacts")


def test_call_ends_after_the_timeout_of_the_settings_when_timeout_is_none(
    sandbox: Sandbox, credential: Credential
) -> None:
    slow(sandbox)
    with (
        override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.1),
        pytest.raises(ApiUnavailable, match="ReadTimeout"),
    ):
        credential.session().get("v2/contacts", timeout=None)


def test_call_ends_after_the_timeout_of_the_caller(
    sandbox: Sandbox, credential: Credential
) -> None:
    slow(sandbox)
    with pytest.raises(ApiUnavailable, match="ReadTimeout"):
        credential.session().get("v2/contacts", timeout=0.1)


def test_prepared_request_ends_after_the_timeout_of_the_settings(
    sandbox: Sandbox, credential: Credential
) -> None:
    slow(sandbox)
    with credential.session() as session:
        prepared = session.prepare_request(requests.Request("GET", "v2/contacts"))
        with (
            override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.1),
            pytest.raises(ApiUnavailable, match="ReadTimeout"),
        ):
            session.send(prepared)


@pytest.mark.parametrize("first", [unauthorized(), redirect_to("/crm/rest/v2/contacts")])
def test_second_request_of_a_call_has_the_same_timeout(
    sandbox: Sandbox, credential: Credential, first: dict[str, Any]
) -> None:
    sandbox.plan(**first)
    slow(sandbox)
    with pytest.raises(ApiUnavailable, match="ReadTimeout"):
        credential.session().get("v2/contacts", timeout=0.1)


# The caller's hooks and headers


def test_hooks_of_a_call_get_the_response_to_the_repeat(
    sandbox: Sandbox, rejected: Credential
) -> None:
    seen: list[int] = []

    def record(response: requests.Response, **kwargs: Any) -> None:
        seen.append(response.status_code)

    rejected.session().get("v2/contacts", hooks={"response": record})
    assert seen == [200]


def test_hooks_of_the_session_get_every_response(sandbox: Sandbox, rejected: Credential) -> None:
    seen: list[int] = []
    with rejected.session() as session:
        session.hooks["response"].append(lambda each, **kwargs: seen.append(each.status_code))
        for _ in range(3):
            session.get("v2/contacts")
    assert seen == [200] * 3


def test_hook_that_raises_on_errors_does_not_get_the_first_401(
    sandbox: Sandbox, rejected: Credential
) -> None:
    with rejected.session() as session:
        session.hooks["response"].append(lambda response, **kwargs: response.raise_for_status())
        assert session.get("v2/contacts").ok
        assert session.get("v2/contacts").ok
        sandbox.plan(faults.answer(403), endpoint="api")
        with pytest.raises(requests.HTTPError):
            session.get("v2/contacts")


def test_headers_are_sent_with_the_repeat(sandbox: Sandbox, rejected: Credential) -> None:
    response = rejected.session().get("v2/contacts", headers={"X-Example": "1"})
    assert (response.request.headers["X-Example"], len(response.history)) == ("1", 1)


# Threads and pickling


def test_accounts_are_never_mixed_up_when_many_threads_call(
    transactional_db: None, sandbox: Sandbox, connect: Connect
) -> None:
    names = {"ab123": ["Bea", "Otto"], "ef789": ["Dev"]}
    for account in names:
        connect(account)
        sandbox.revoke_access_tokens(account)
    barrier = threading.Barrier(8)

    def call(account: str) -> list[str]:
        loaded = Credential.objects.for_account(account)
        barrier.wait(10)
        with loaded.session() as session:
            pages = [session.get("v1/contacts").json()["contacts"] for _ in range(5)]
        return [each["given_name"] for page in pages for each in page]

    with threads(8) as start:
        calls = [
            (account, start(lambda account=account: call(account)))  # type: ignore[misc]
            for account in [*names] * 4
        ]
    for account, done in calls:
        assert done.result() == names[account] * 5
    assert sorted(request.account for request in sandbox.token_requests) == ["ab123", "ef789"]
    assert sandbox.replays == 0


def test_pickled_session_contains_no_access_token(credential: Credential) -> None:
    session = credential.session()
    session.get("v1/account/profile")
    access_token = credential.access_token
    pickled = pickle.dumps(session)
    assert access_token.encode() not in pickled
    assert pickle.loads(pickled).get("v1/account/profile").ok  # noqa: S301  # pickled above


def test_deferred_access_token_is_loaded_when_needed(
    credential: Credential,
) -> None:
    deferred = Credential.objects.defer("access_token").get()
    assert deferred.session().get("v1/account/profile").ok
