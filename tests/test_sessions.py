"""API clients on a credential: where the access token goes, and what follows a 401."""

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

from django_infusionsoft.exceptions import (
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


class Stranger(ThreadingHTTPServer):
    """A host that is not Keap. It writes down what it is sent."""

    def __init__(self) -> None:
        self.headers_seen: list[dict[str, str]] = []
        self.ports_seen: list[int] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), _StrangersHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _StrangersHandler(BaseHTTPRequestHandler):
    server: Stranger
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


class Sized:
    """A body of a known length that can be read only once, such as a pipe's."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __len__(self) -> int:
        return len(CONTACT)

    def __iter__(self) -> Iterator[bytes]:
        content, self._content = self._content, b""
        yield content


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    with Stranger() as server:
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
    """Return what to plan for an API that says 401 whatever the access token is."""
    return {"fault": faults.answer(401, {"fault": {}}), "endpoint": "api", "times": times}


# The access token


def test_access_token_travels_in_the_header_alone(credential: Credential) -> None:
    response = credential.session().get("v2/contacts", params={"page_size": 1})
    assert response.status_code == 200
    assert response.request.headers["Authorization"] == f"Bearer {credential.access_token}"
    assert credential.access_token not in str(response.request.url)
    assert response.request.body is None


def test_call_with_a_fresh_access_token_makes_no_query(
    credential: Credential, django_assert_num_queries: Any
) -> None:
    loaded = row(credential)
    with django_assert_num_queries(0), loaded.session() as session:
        assert session.get("v2/contacts").ok
        assert session.get("v2/contacts").ok


def test_access_token_that_has_ended_is_refreshed_before_the_call(
    sandbox: Sandbox, expired: Credential
) -> None:
    response = expired.session().get("v2/contacts")
    assert (response.status_code, response.history) == (200, [])
    assert outcomes(sandbox) == ["rotated"]


def test_session_that_is_kept_takes_the_new_access_token(
    sandbox: Sandbox, credential: Credential
) -> None:
    with credential.session() as session:
        assert session.get("v2/contacts").ok
        credential.refresh()
        response = session.get("v2/contacts")
    assert response.request.headers["Authorization"] == f"Bearer {credential.access_token}"
    assert response.history == []


def test_no_access_token_shows_in_the_text_of_a_session(credential: Credential) -> None:
    session = credential.session()
    shown = f"{session!r} {session.auth!r} {vars(session)}"
    assert credential.access_token not in shown


def test_callers_own_authentication_is_used_when_he_names_one(credential: Credential) -> None:
    response = credential.session().get("v2/contacts", auth=("me", "mine"))
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


def test_relative_url_keeps_its_query_and_odd_characters(credential: Credential) -> None:
    response = credential.session().get("v2/contacts/7:undo?filter=email==a@ex.test;x==1")
    parts = urlsplit(response.url)
    assert parts.path.endswith("/v2/contacts/7:undo")
    assert parts.query == "filter=email==a@ex.test;x==1"


def test_pages_are_followed_by_the_absolute_urls_of_v1(credential: Credential) -> None:
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


def test_url_is_resolved_by_the_setting_of_the_moment(
    stranger: Stranger, credential: Credential
) -> None:
    session = credential.session()
    with override_settings(INFUSIONSOFT_API_URL=f"{stranger.url}/api"):
        assert session.get("v2/contacts").url == f"{stranger.url}/api/v2/contacts"


@pytest.mark.parametrize(
    ("api_url", "url"),
    [
        ("https://api.keap.test/crm/rest/", "https://API.Keap.test/crm/rest/v1/contacts"),
        ("https://api.keap.test/crm/rest/", "https://api.keap.test:443/crm/rest/v1/contacts"),
        ("https://api.keap.test:443/crm/rest/", "https://api.keap.test/crm/rest/v1/contacts"),
        ("https://API.keap.test/crm/rest/", "https://api.keap.test/crm/rest/v1/contacts"),
    ],
)
def test_same_host_in_another_spelling_is_accepted(
    credential: Credential, api_url: str, url: str
) -> None:
    with override_settings(INFUSIONSOFT_API_URL=api_url), credential.session() as session:
        prepared = session.prepare_request(requests.Request("GET", url))
    assert prepared.headers["Authorization"] == f"Bearer {credential.access_token}"
    assert str(prepared.url).lower().startswith("https://api.keap.test")


FOREIGN_URLS = [
    "http://{stranger}/crm/rest/v2/contacts",
    "https://{keap}/crm/rest/v2/contacts",
    "HTTP://{stranger}/",
    " http://{stranger}/",
    "\thttp://{stranger}/",
    "/http://{stranger}/",
    "http://{keap}@{stranger}/",
    "http://{keap}:x@{stranger}/",
    "http://{keap}%2F@{stranger}/",
    "http://{keap}\\@{stranger}/",
    "http://{stranger}\\@{keap}/",
    "http://{keap_host}.{stranger}/",
    "http://{keap_host}\u3002{stranger}/",
    "http://{stranger}#@{keap}/",
    "http://{stranger}?@{keap}/",
    "http://me:mine@{keap}/crm/rest/v2/contacts",
    "ht\ntp://{stranger}/",
    "ftp://{stranger}/",
    "ftp://{keap}/",
    "mailto:a@ex.test",
    "data:text/plain,x",
]


@pytest.mark.parametrize("template", FOREIGN_URLS)
def test_access_token_is_not_sent_when_the_url_is_of_another_host(
    sandbox: Sandbox, expired: Credential, stranger: Stranger, template: str
) -> None:
    keap = urlsplit(sandbox.url)
    url = template.format(
        keap=keap.netloc, keap_host=keap.hostname, stranger=urlsplit(stranger.url).netloc
    )
    with (
        expired.session() as session,
        pytest.raises(ConfigurationError, match="INFUSIONSOFT_API_URL"),
    ):
        session.get(url)
    assert stranger.headers_seen == []
    assert outcomes(sandbox) == []


def test_access_token_is_not_in_a_prepared_request_of_another_host(
    credential: Credential, stranger: Stranger
) -> None:
    request = requests.Request("GET", stranger.url)
    with credential.session() as session, pytest.raises(ConfigurationError):
        session.prepare_request(request)


@pytest.mark.parametrize(
    "url",
    [
        "http:/\\{stranger}/",
        "http:\\\\{stranger}/",
        "\\\\{stranger}/",
        "/\\{stranger}/",
        "////{stranger}/",
        "http:///{stranger}/",
        "{stranger}/",
        "@{stranger}/",
    ],
)
def test_url_stays_at_keap_when_a_browser_would_leave(
    sandbox: Sandbox, credential: Credential, stranger: Stranger, url: str
) -> None:
    with credential.session() as session, suppress(ConfigurationError):
        response = session.get(url.format(stranger=urlsplit(stranger.url).netloc))
        assert response.url.startswith(f"{sandbox.url}/")
        assert response.status_code == 404
    assert stranger.headers_seen == []


@pytest.mark.parametrize("url", ["http://[::1/", "http://127.0.0.1:port/", "http://a\uff0fb/"])
def test_url_that_is_none_is_an_invalid_url(credential: Credential, url: str) -> None:
    with credential.session() as session, pytest.raises(requests.exceptions.InvalidURL):
        session.get(url)


# Redirects


def redirect_to(url: str, status: int = 302) -> dict[str, Any]:
    return {"fault": faults.answer(status, headers={"Location": url}), "endpoint": "api"}


@pytest.mark.parametrize("status", [200, 401])
def test_access_token_is_not_sent_when_keap_redirects_to_another_host(
    sandbox: Sandbox, credential: Credential, stranger: Stranger, status: int
) -> None:
    stranger.status = status
    sandbox.plan(**redirect_to(stranger.url))
    response = credential.session().get("v2/contacts")
    assert (response.status_code, response.url) == (status, stranger.url)
    assert [headers.get("Authorization") for headers in stranger.headers_seen] == [None]
    assert outcomes(sandbox) == []


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


def test_newer_access_token_is_taken_over_without_a_refresh(
    sandbox: Sandbox, credential: Credential
) -> None:
    stale = row(credential)
    sandbox.switches.refresh_revokes_access_tokens = True
    credential.refresh()
    response = stale.session().get("v2/contacts")
    assert (response.status_code, len(response.history)) == (200, 1)
    assert stale.access_token == credential.access_token
    assert outcomes(sandbox) == ["rotated"]


def test_second_401_is_returned_after_one_refresh_and_one_repeat(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(**unauthorized(times=2))
    with credential.session() as session:
        assert session.get("v2/contacts").status_code == 401
        assert outcomes(sandbox) == ["rotated"]
        assert session.get("v2/contacts").status_code == 200
    assert outcomes(sandbox) == ["rotated"]


def test_pair_is_refreshed_once_when_the_api_says_401_to_everything(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(**unauthorized(None))
    session = credential.session()
    for _ in range(5):
        assert session.get("v2/contacts").status_code == 401
    assert len(sandbox.token_requests) == 1


def test_second_401_is_returned_when_the_newer_access_token_is_refused_too(
    sandbox: Sandbox, credential: Credential
) -> None:
    stale = row(credential)
    credential.refresh()
    sandbox.plan(**unauthorized(times=2))
    assert stale.session().get("v2/contacts").status_code == 401
    assert outcomes(sandbox) == ["rotated"]


@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503])
def test_nothing_is_repeated_when_the_status_is_another(
    sandbox: Sandbox, credential: Credential, status: int
) -> None:
    sandbox.plan(faults.answer(status), endpoint="api")
    response = credential.session().get("v2/contacts")
    assert (response.status_code, response.history) == (status, [])
    assert outcomes(sandbox) == []


@pytest.mark.parametrize("stream", [False, True])
def test_connection_is_used_again_when_a_401_is_followed_by_a_repeat(
    credential: Credential, stranger: Stranger, stream: bool
) -> None:
    stranger.status = 401
    with (
        override_settings(INFUSIONSOFT_API_URL=stranger.url),
        credential.session() as session,
    ):
        session.get("v2/contacts", stream=stream).close()
    first, second = stranger.ports_seen
    assert first == second


def test_credential_is_marked_when_keap_has_ended_the_grant(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke("ab123")
    with pytest.raises(ReauthorizationRequired) as caught:
        credential.session().get("v2/contacts")
    assert caught.value.reason == "revoked"
    assert row(credential).status == "reauthorization_required"


def test_exception_is_ours_when_the_refresh_after_a_401_cannot_be_made(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke_access_tokens("ab123")
    sandbox.plan(faults.error_503())
    with credential.session() as session:
        with pytest.raises(TemporarilyUnavailable):
            session.get("v2/contacts")
        assert session.get("v2/contacts").ok


def test_exception_is_ours_when_there_is_no_access_token_at_all(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(faults.error_503())
    with expired.session() as session, pytest.raises(TemporarilyUnavailable):
        session.get("v2/contacts")


def test_exception_is_ours_when_the_credential_was_deleted(
    sandbox: Sandbox, credential: Credential
) -> None:
    orphan = row(credential)
    credential.delete()
    sandbox.revoke_access_tokens("ab123")
    with pytest.raises(InfusionsoftError, match="deleted"):
        orphan.session().get("v2/contacts")


# Bodies


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


def test_file_is_sent_again_from_where_it_stood(
    sandbox: Sandbox, rejected: Credential, tmp_path: Path
) -> None:
    path = tmp_path / "contact.json"
    path.write_bytes(b"junk" + CONTACT)
    with path.open("rb") as file:
        file.seek(4)
        assert rejected.session().post("v2/contacts", data=file).status_code == 201
    assert contacts(sandbox, rejected) == ["Bea", "Otto", "Nell"]


class Deaf(io.BytesIO):
    """A stream that knows where it stands and cannot go back."""

    seek = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(CONTACT)


@pytest.mark.parametrize("make", [Sized, Deaf])
def test_401_is_returned_when_the_body_cannot_be_sent_twice(
    sandbox: Sandbox, rejected: Credential, make: Callable[[bytes], Any]
) -> None:
    response = rejected.session().post("v2/contacts", data=make(CONTACT))
    assert (response.status_code, response.history) == (401, [])
    assert contacts(sandbox, rejected) == ["Bea", "Otto"]


def test_callers_repeat_succeeds_when_the_body_could_not_be_sent_twice(
    sandbox: Sandbox, rejected: Credential
) -> None:
    with rejected.session() as session:
        assert session.post("v2/contacts", data=Sized(CONTACT)).status_code == 401
        assert session.post("v2/contacts", data=Sized(CONTACT)).status_code == 201


def test_redirected_request_is_repeated_without_the_body_that_it_lost(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(**redirect_to("/crm/rest/v2/contacts", 303))
    sandbox.plan(**unauthorized())
    response = credential.session().post("v2/contacts", data=io.BytesIO(CONTACT))
    assert (response.status_code, response.request.method) == (200, "GET")


# Time


def slow(sandbox: Sandbox) -> None:
    """Let the API take far longer than any timeout here, and not for ever."""
    sandbox.plan(faults.latency(5), endpoint="api", times=None)


def test_call_ends_after_the_timeout_of_the_settings(
    sandbox: Sandbox, credential: Credential
) -> None:
    slow(sandbox)
    with (
        override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.1),
        pytest.raises(requests.ReadTimeout),
    ):
        credential.session().get("v2/contacts")


def test_call_ends_after_the_timeout_of_the_settings_when_none_is_asked_for(
    sandbox: Sandbox, credential: Credential
) -> None:
    slow(sandbox)
    with (
        override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.1),
        pytest.raises(requests.ReadTimeout),
    ):
        credential.session().get("v2/contacts", timeout=None)


def test_call_ends_after_the_timeout_that_the_caller_names(
    sandbox: Sandbox, credential: Credential
) -> None:
    slow(sandbox)
    with pytest.raises(requests.ReadTimeout, match=r"read timeout=0\.1"):
        credential.session().get("v2/contacts", timeout=0.1)


def test_prepared_request_ends_after_the_timeout_of_the_settings(
    sandbox: Sandbox, credential: Credential
) -> None:
    slow(sandbox)
    with credential.session() as session:
        prepared = session.prepare_request(requests.Request("GET", "v2/contacts"))
        with (
            override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.1),
            pytest.raises(requests.ReadTimeout),
        ):
            session.send(prepared)


@pytest.mark.parametrize("first", [unauthorized(), redirect_to("/crm/rest/v2/contacts")])
def test_second_request_of_a_call_has_the_timeout_of_the_first(
    sandbox: Sandbox, credential: Credential, first: dict[str, Any]
) -> None:
    sandbox.plan(**first)
    slow(sandbox)
    with pytest.raises(requests.ReadTimeout, match=r"read timeout=0\.1"):
        credential.session().get("v2/contacts", timeout=0.1)


# The caller's own


def test_callers_hooks_see_the_answer_to_the_repeat(
    sandbox: Sandbox, rejected: Credential
) -> None:
    seen: list[int] = []

    def see(response: requests.Response, **kwargs: Any) -> None:
        seen.append(response.status_code)

    rejected.session().get("v2/contacts", hooks={"response": see})
    assert seen == [200]


def test_callers_hooks_of_the_session_see_every_call(
    sandbox: Sandbox, rejected: Credential
) -> None:
    seen: list[int] = []
    with rejected.session() as session:
        session.hooks["response"].append(lambda each, **kwargs: seen.append(each.status_code))
        for _ in range(3):
            session.get("v2/contacts")
    assert seen == [200] * 3


def test_callers_hook_that_raises_on_errors_does_not_meet_the_first_401(
    sandbox: Sandbox, rejected: Credential
) -> None:
    with rejected.session() as session:
        session.hooks["response"].append(lambda response, **kwargs: response.raise_for_status())
        assert session.get("v2/contacts").ok
        assert session.get("v2/contacts").ok
        sandbox.plan(faults.answer(403), endpoint="api")
        with pytest.raises(requests.HTTPError):
            session.get("v2/contacts")


def test_callers_headers_are_sent_with_the_repeat(sandbox: Sandbox, rejected: Credential) -> None:
    response = rejected.session().get("v2/contacts", headers={"X-Mine": "1"})
    assert (response.request.headers["X-Mine"], len(response.history)) == ("1", 1)


# Threads


def test_accounts_never_mix_when_many_threads_call(
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


def test_pickled_session_holds_no_secret(credential: Credential) -> None:
    session = credential.session()
    session.get("v1/account/profile")
    access_token = credential.access_token
    pickled = pickle.dumps(session)
    assert access_token.encode() not in pickled
    assert pickle.loads(pickled).get("v1/account/profile").ok  # noqa: S301  # our own


def test_access_token_that_was_left_out_is_loaded_when_it_is_needed(
    credential: Credential,
) -> None:
    deferred = Credential.objects.defer("access_token").get()
    assert deferred.session().get("v1/account/profile").ok
