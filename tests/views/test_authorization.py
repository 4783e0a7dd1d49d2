"""The authorize and callback views: every outcome, and the page that reports it."""

import html
import logging
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest
import time_machine
from django.conf import settings
from django.contrib.auth.models import User
from django.contrib.messages import get_messages
from django.db import OperationalError
from django.db.models.signals import pre_save
from django.http import HttpRequest
from django.test import Client, override_settings
from django.urls import reverse
from django.utils import timezone

from django_infusionsoft.connect import callbacks, profiles
from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.models import Application, ApplicationState, Callback, Credential
from django_infusionsoft.sandbox import Fault, Sandbox, faults
from django_infusionsoft.views.oauth_state import SESSION_KEY
from tests.support import failing_updates, threads
from tests.web import (
    HERE,
    authorize,
    client_for,
    go_to_keap,
    parameter,
    url_at_keap,
    user_who_may,
)

pytestmark = pytest.mark.django_db

AUTHORIZE = "/infusionsoft/authorize/"
CALLBACK = "/infusionsoft/callback/"
OTHER_KEY = "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q="
# URLs of other hosts, some written to look like URLs of this host.
EVIL = [
    "https://evil.test/",
    "http://evil.test/",
    "//evil.test/",
    "///evil.test/",
    "http:///evil.test/",
    "https:evil.test/",
    "/\\evil.test/",
    "\\\\evil.test/",
    "\x08//evil.test/",
    " https://evil.test/",
    "http://localhost@evil.test/",
    "http://localhost.evil.test/",
    "http://localhost:1/",
    "http://[",
    "javascript:alert(1)",
    "data:text/html,evil.test",
]


@pytest.fixture
def user() -> User:
    return user_who_may("connect_credential")


@pytest.fixture
def client(user: User, sandbox: Sandbox) -> Client:
    """The browser of a user with permission to connect accounts."""
    return client_for(user)


def text_of(response: Any) -> str:
    """Return the visible text of the page, without tags."""
    words = re.sub(r"<[^>]+>", " ", response.content.decode())
    return " ".join(html.unescape(words).split())


def messages_of(response: Any) -> list[str]:
    return [str(message) for message in get_messages(response.wsgi_request)]


def assert_error_page(response: Any, status: int, *words: str) -> None:
    """Assert an error page with these words and a link to start again; nothing is connected."""
    assert response.status_code == status
    for word in words:
        assert word in text_of(response)
    assert f'href="{AUTHORIZE}' in response.content.decode()
    assert not Credential.objects.exists()


# The authorize page


def test_get_shows_the_page_and_starts_no_authorization(client: Client, sandbox: Sandbox) -> None:
    response = client.get(AUTHORIZE)
    assert response.status_code == 200
    assert sandbox.url.removeprefix("http://") in text_of(response)
    assert f"{HERE}{CALLBACK}" in text_of(response)
    assert "Continue to Keap" in text_of(response)
    assert "_infusionsoft_states_1" not in client.session


def test_post_redirects_to_keap_with_the_documented_parameters_and_state(
    client: Client, sandbox: Sandbox
) -> None:
    response = client.post(AUTHORIZE)
    url = url_at_keap(response)
    assert f'href="{html.escape(url)}"' in response.content.decode()
    assert url.startswith(sandbox.authorize_url + "?")
    assert parameter(url, "client_id") == "sandbox-client"
    assert parameter(url, "redirect_uri") == f"{HERE}{CALLBACK}"
    assert parameter(url, "response_type") == "code"
    assert parameter(url, "scope") == "full"
    assert len(parameter(url, "state")) == 43
    assert url.count("=") == 5


def test_head_starts_no_authorization(client: Client) -> None:
    assert client.head(AUTHORIZE).status_code == 200


@pytest.mark.parametrize("method", ["put", "patch", "delete", "trace"])
@pytest.mark.parametrize("url", [AUTHORIZE, CALLBACK])
def test_other_methods_are_not_allowed(client: Client, url: str, method: str) -> None:
    assert getattr(client, method)(url).status_code == 405


def test_post_is_forbidden_without_a_csrf_token(user: User, sandbox: Sandbox) -> None:
    client = client_for(user, enforce_csrf_checks=True)
    assert client.post(AUTHORIZE).status_code == 403


@override_settings(MIDDLEWARE=[])
def test_post_is_forbidden_without_a_csrf_token_and_without_the_csrf_middleware(
    user: User, sandbox: Sandbox, rf: Any
) -> None:
    from django_infusionsoft.views import AuthorizeView

    request = rf.post(AUTHORIZE)
    request.user = user
    assert AuthorizeView.as_view()(request).status_code == 403


@pytest.mark.parametrize("url", [AUTHORIZE, CALLBACK, AUTHORIZE + "?credential=4711"])
def test_pages_are_neither_cached_nor_framed(client: Client, url: str) -> None:
    response = client.get(url)
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Frame-Options"] == "DENY"


def test_authorize_page_sends_the_referrer_only_to_its_own_origin(client: Client) -> None:
    assert client.get(AUTHORIZE).headers["Referrer-Policy"] == "same-origin"


def test_page_that_redirects_to_keap_and_callback_send_no_referrer(client: Client) -> None:
    responses = [client.post(AUTHORIZE), client.get(CALLBACK)]
    assert [each.headers["Referrer-Policy"] for each in responses] == ["no-referrer"] * 2
    assert responses[0].headers["Cache-Control"] == "no-store"


# Permissions


def test_anonymous_visitor_is_redirected_to_the_login_and_back(sandbox: Sandbox) -> None:
    response = client_for().get(AUTHORIZE + "?next=/here/")
    assert response.status_code == 302
    assert response.headers["Location"].startswith(reverse("admin:login"))
    assert parameter(response.headers["Location"], "next") == AUTHORIZE + "?next=/here/"


@pytest.mark.parametrize("url", [AUTHORIZE, CALLBACK])
def test_error_page_is_shown_without_the_connect_permission(url: str, sandbox: Sandbox) -> None:
    client = client_for(user_who_may("view_credential"))
    assert_error_page(
        client.get(url),
        403,
        "You are not allowed to connect Keap accounts",
        "Ask a site administrator",
    )


def test_post_is_forbidden_without_the_connect_permission(sandbox: Sandbox) -> None:
    client = client_for(user_who_may("view_credential"))
    assert client.post(AUTHORIZE).status_code == 403


def test_callback_shows_an_error_page_when_logged_out(client: Client, sandbox: Sandbox) -> None:
    url = sandbox.authorize(go_to_keap(client))
    response = client_for().get(url)
    assert_error_page(response, 403, "You are not logged in to this site", "start again")
    assert parameter(url, "code") not in response.content.decode()
    assert sandbox.token_requests == []


def test_login_required_middleware_redirects_no_callback(user: User, sandbox: Sandbox) -> None:
    login_required = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    with override_settings(MIDDLEWARE=[*settings.MIDDLEWARE, login_required]):
        url = sandbox.authorize(go_to_keap(client_for(user)))
        assert_error_page(client_for().get(url), 403, "You are not logged in to this site")
        assert client_for().get(AUTHORIZE).status_code == 302
    assert sandbox.token_requests == []


def test_nothing_is_connected_when_the_permission_was_removed_meanwhile(
    client: Client, user: User, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(go_to_keap(client))
    user.user_permissions.clear()
    assert_error_page(client.get(url), 403, "You are not allowed to connect")
    assert sandbox.token_requests == []


# The round trip


def test_round_trip_connects_the_account(client: Client, user: User, sandbox: Sandbox) -> None:
    response = authorize(client, sandbox)
    assert response.status_code == 200
    assert "Account ab123 is connected" in text_of(response)
    credential = Credential.objects.for_account("ab123")
    assert credential.authorized_by == user
    assert credential.account_name == "Acme Bakery"
    assert credential.application is None
    assert [event.kind for event in credential.events.all()] == ["connected"]
    assert credential.session().get("v2/contacts").ok


def test_callback_redirects_to_next_with_a_message(client: Client, sandbox: Sandbox) -> None:
    response = authorize(client, sandbox, next="/here/?a=b&c=d")
    assert response.headers["Location"] == "/here/?a=b&c=d"
    assert messages_of(response) == ["Account ab123 is connected."]


def test_callback_adds_no_message_without_next(client: Client, sandbox: Sandbox) -> None:
    assert messages_of(authorize(client, sandbox)) == []


def test_token_pair_is_stored_when_the_database_fails_once(
    transactional_db: None, client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.storage.database.RETRY_PAUSES", (0,))
    callback = sandbox.authorize(go_to_keap(client))
    with failing_updates("gone", statement="INSERT"):
        assert client.get(callback).status_code == 200
    assert Credential.objects.for_account("ab123").generation == 1


def test_error_page_is_shown_when_the_token_pair_cannot_be_stored(
    transactional_db: None, client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.storage.database.RETRY_PAUSES", ())
    callback = sandbox.authorize(go_to_keap(client))
    with failing_updates("gone", statement="INSERT"):
        assert_error_page(client.get(callback), 503, "could not be stored", "Start again in")


def test_code_is_not_exchanged_when_the_database_cannot_be_written(
    transactional_db: None, client: Client, sandbox: Sandbox
) -> None:
    callback = sandbox.authorize(go_to_keap(client))
    with failing_updates("read-only", statement="INSERT", table="callback"):
        assert_error_page(client.get(callback), 503, "could not be stored", "Start again in")
    assert sandbox.token_requests == []
    assert "Account ab123 is connected" in text_of(client.get(callback))


@pytest.mark.parametrize("error", [OperationalError, DatabaseBusy])
@pytest.mark.parametrize("step", ["claim", "reserve_exchange", "result_of"])
def test_error_page_is_shown_when_the_database_is_busy(
    client: Client,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: type[Exception],
) -> None:
    callback = sandbox.authorize(go_to_keap(client))
    if step == "result_of":  # in a repeated request
        client.get(callback)
        Credential.objects.all().delete()
    monkeypatch.setattr(callbacks, step, Mock(side_effect=error))
    assert_error_page(client.get(callback), 503, "could not be stored", "Start again in")


@pytest.mark.parametrize("scope", ["full", "absent"])
def test_account_is_read_from_the_profile_when_the_reply_does_not_name_it(
    client: Client, sandbox: Sandbox, scope: Any
) -> None:
    sandbox.switches.token_scope = scope
    assert "Account ab123 is connected" in text_of(authorize(client, sandbox))


@pytest.mark.django_db(transaction=True)
def test_token_pair_is_stored_before_the_profile_is_requested(
    client: Client, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(go_to_keap(client))
    gate = sandbox.hold("before", endpoint="api")
    with threads(1) as start:
        response = start(lambda: client.get(url))
        gate.wait_until_arrived()
        assert Credential.objects.for_account("ab123").account_name == ""
        gate.release()
    assert "Acme Bakery" in text_of(response.result())


@pytest.mark.parametrize(
    "fault",
    [faults.error_503(), faults.drop_before(), faults.html(), faults.empty(401)],
    ids=str,
)
def test_account_is_connected_when_its_profile_is_unavailable(
    client: Client, sandbox: Sandbox, fault: Fault
) -> None:
    sandbox.plan(fault, endpoint="api", times=None)
    assert "Account ab123 is connected" in text_of(authorize(client, sandbox))


def test_requested_application_is_used(client: Client, sandbox: Sandbox) -> None:
    Application.objects.create(name="default", client_id="x", client_secret="y", is_default=True)
    application = Application.objects.create(
        name="Main", client_id="sandbox-client", client_secret="sandbox-secret"
    )
    authorize(client, sandbox, application=application.pk)
    assert Credential.objects.get().application == application


def test_default_application_is_used_when_none_is_requested(
    client: Client, sandbox: Sandbox
) -> None:
    application = Application.objects.create(
        name="Main", client_id="sandbox-client", client_secret="sandbox-secret", is_default=True
    )
    authorize(client, sandbox)
    assert Credential.objects.get().application == application


# The state


def test_state_of_another_session_is_rejected(client: Client, sandbox: Sandbox) -> None:
    go_to_keap(client)
    url = sandbox.authorize(go_to_keap(client_for(user_who_may("connect_credential", name="eve"))))
    assert_error_page(client.get(url), 400, "attempt is no longer open", "start again")
    assert sandbox.token_requests == []


def test_missing_state_is_rejected(client: Client, sandbox: Sandbox) -> None:
    go_to_keap(client)
    assert_error_page(client.get(CALLBACK + "?code=x"), 400, "attempt is no longer open")
    assert sandbox.token_requests == []


def test_state_is_rejected_after_ten_minutes(client: Client, sandbox: Sandbox) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        url = sandbox.authorize(go_to_keap(client))
        clock.shift(601)
        assert_error_page(client.get(url), 400, "longer than ten minutes")
    assert sandbox.token_requests == []


def test_state_is_consumed_before_the_code_is_exchanged(client: Client, sandbox: Sandbox) -> None:
    sandbox.plan(faults.error_503(), endpoint="exchange")
    url = sandbox.authorize(go_to_keap(client))
    assert_error_page(client.get(url), 503)
    forget_results()
    assert_error_page(client.get(url), 400, "attempt is no longer open")
    assert len(sandbox.token_requests) == 1


def test_account_is_connected_when_its_profile_takes_too_long(
    client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "AFTER_EXCHANGE_SECONDS", 0.4)
    monkeypatch.setattr(profiles, "TIMEOUT_SECONDS", 60)
    sandbox.hold("before", endpoint="api")
    started_at = time.monotonic()
    assert "Account ab123 is connected" in text_of(authorize(client, sandbox))
    assert time.monotonic() - started_at < 30


def forget_results() -> None:
    """Let more than a minute pass."""
    Callback.objects.update(finished_at=timezone.now() - timedelta(seconds=61))


def test_reloaded_callback_shows_the_same_page_for_a_minute(
    client: Client, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(go_to_keap(client))
    first, second = client.get(url), client.get(url)
    assert second.status_code == 200
    assert second.content == first.content
    forget_results()
    response = client.get(url)
    assert response.status_code == 400
    assert "It has already been completed" in text_of(response)
    assert Credential.objects.get().generation == 1
    assert len(sandbox.token_requests) == 1


def test_reloaded_callback_redirects_to_next_with_the_message(
    client: Client, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(go_to_keap(client, next="/here/"))
    for response in (client.get(url), client.get(url)):
        assert response.headers["Location"] == "/here/"
        assert messages_of(response)[-1] == "Account ab123 is connected."


@pytest.mark.parametrize("query", ["error=access_denied", "code=nonsense", "code="])
def test_reloaded_callback_shows_the_same_error_page(client: Client, query: str) -> None:
    state = parameter(go_to_keap(client, next="/here/"), "state")
    url = f"{CALLBACK}?state={state}&{query}"
    first, second = client.get(url), client.get(url)
    assert second.status_code == first.status_code
    assert second.content == first.content
    assert "Start again" in text_of(second)


def test_reloaded_callback_says_that_the_attempt_was_interrupted(
    client: Client, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(go_to_keap(client))
    client.get(url)
    Credential.objects.all().delete()
    assert_error_page(client.get(url), 503, "attempt was interrupted", "start again")


def test_used_state_is_rejected_when_the_session_brings_it_back(
    client: Client, sandbox: Sandbox
) -> None:
    at_keap = go_to_keap(client)
    before = client.session[SESSION_KEY]
    client.get(sandbox.authorize(at_keap))
    session = client.session
    session[SESSION_KEY] = before
    session.save()
    assert client.get(sandbox.authorize(at_keap)).status_code == 400
    assert len(sandbox.token_requests) == 1


def test_second_consent_is_rejected_when_the_back_button_is_used(
    client: Client, sandbox: Sandbox
) -> None:
    at_keap = go_to_keap(client)
    client.get(sandbox.authorize(at_keap))
    assert client.get(sandbox.authorize(at_keap)).status_code == 400
    assert len(sandbox.token_requests) == 1


def test_two_tabs_can_connect_two_accounts_in_any_order(client: Client, sandbox: Sandbox) -> None:
    first, second = go_to_keap(client, next="/1/"), go_to_keap(client, next="/2/")
    response = client.get(sandbox.authorize(second, account="cd456"))
    assert response.headers["Location"] == "/2/"
    response = client.get(sandbox.authorize(first, account="ab123"))
    assert response.headers["Location"] == "/1/"
    assert Credential.objects.count() == 2


def test_state_is_rejected_for_another_user_in_the_same_browser(
    client: Client, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(go_to_keap(client))
    client.force_login(user_who_may("connect_credential", name="bob"))
    assert_error_page(client.get(url), 400, "attempt is no longer open")


def test_head_on_the_callback_does_not_consume_the_state(client: Client, sandbox: Sandbox) -> None:
    url = sandbox.authorize(go_to_keap(client))
    assert client.head(url).status_code == 405
    assert "Account ab123 is connected" in text_of(client.get(url))


# The next URL


@pytest.mark.parametrize("url", EVIL)
def test_next_is_ignored_when_it_leads_to_another_host(
    client: Client, sandbox: Sandbox, url: str
) -> None:
    assert "Cancel" not in text_of(client.get(AUTHORIZE, {"next": url}))
    response = authorize(client, sandbox, next=url)
    assert response.status_code == 200
    assert "evil" not in response.content.decode()


@pytest.mark.parametrize("url", ["/here/", f"{HERE}/here/", "here", "here/", "?a=b"])
def test_next_is_followed_when_it_leads_to_this_host(
    client: Client, sandbox: Sandbox, url: str
) -> None:
    assert authorize(client, sandbox, next=url).headers["Location"] == url


def test_next_is_ignored_when_it_leads_from_https_to_http(
    client: Client, sandbox: Sandbox
) -> None:
    query = {"next": "http://localhost/here/"}
    assert "Cancel" in text_of(client.get(AUTHORIZE, query))
    assert "Cancel" not in text_of(client.get(AUTHORIZE, query, secure=True))


# The redirect URI


@override_settings(INFUSIONSOFT_REDIRECT_URI="https://fixed.test/keap/")
def test_redirect_uri_of_the_settings_is_used_for_authorization_and_exchange(
    client: Client, sandbox: Sandbox
) -> None:
    at_keap = go_to_keap(client)
    assert parameter(at_keap, "redirect_uri") == "https://fixed.test/keap/"
    back = sandbox.authorize(at_keap)
    assert back.startswith("https://fixed.test/keap/?")
    client.get(CALLBACK + "?" + back.partition("?")[2])
    assert Credential.objects.exists()  # Keap compares it character by character


@override_settings(ALLOWED_HOSTS=["shop.test"])
def test_plain_http_redirect_uri_is_rejected_before_the_redirect_to_keap(
    client: Client,
) -> None:
    response = client.post(AUTHORIZE, SERVER_NAME="shop.test")
    assert_error_page(response, 503, "http://shop.test/infusionsoft/callback/", "https://")
    assert "INFUSIONSOFT_REDIRECT_URI" in text_of(response)


@override_settings(
    ALLOWED_HOSTS=["shop.test"], SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https")
)
def test_redirect_uri_is_https_behind_a_tls_proxy(client: Client) -> None:
    response = client.post(AUTHORIZE, HTTP_HOST="shop.test", HTTP_X_FORWARDED_PROTO="https")
    redirect_uri = parameter(url_at_keap(response), "redirect_uri")
    assert redirect_uri == "https://shop.test/infusionsoft/callback/"


@override_settings(INFUSIONSOFT_REDIRECT_URI="http://shop.test/callback/")
def test_plain_http_redirect_uri_of_the_settings_is_rejected(client: Client) -> None:
    assert_error_page(client.get(AUTHORIZE), 503, "INFUSIONSOFT_REDIRECT_URI must be an absolute")


# Denials and errors at Keap


def callback_with(client: Client, query: str) -> Any:
    state = parameter(go_to_keap(client, next="/here/"), "state")
    return client.get(f"{CALLBACK}?state={state}&{query}")


def test_error_page_links_back_when_access_was_denied(client: Client, sandbox: Sandbox) -> None:
    response = authorize(client, sandbox, decision="deny", next="/here/")
    assert_error_page(response, 403, "Access was denied at Keap", "Start again", "Back")
    assert 'href="/infusionsoft/authorize/?next=%2Fhere%2F"' in response.content.decode()
    assert 'href="/here/"' in response.content.decode()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        ("access_denied", 403, "Access was denied at Keap"),
        ("server_error", 503, "Keap is not responding"),
        ("temporarily_unavailable", 503, "Keap is not responding"),
        ("invalid_scope", 400, "Keap rejected the request"),
        ("unauthorized_client", 400, "Keap rejected the request"),
        ("", 400, "Keap rejected the request"),
        ("nonsense", 400, "Keap rejected the request"),
    ],
)
def test_error_page_is_shown_for_every_error_of_keap(
    client: Client, error: str, status: int, words: str
) -> None:
    assert_error_page(callback_with(client, f"error={error}"), status, words)


def test_error_text_from_the_query_is_never_shown(client: Client) -> None:
    query = "error=%3Cb%3Eevil%3C/b%3E&error_description=evil%3Cscript%3E&error_uri=evil"
    response = callback_with(client, query)
    assert_error_page(response, 400)
    assert "evil" not in response.content.decode()
    assert "<script" not in response.content.decode()


@pytest.mark.parametrize("query", ["", "code=", "code=a&code=b", "scope=full"])
def test_callback_is_rejected_without_exactly_one_code(
    client: Client, sandbox: Sandbox, query: str
) -> None:
    assert_error_page(callback_with(client, query), 400, "Keap sent no authorization code")
    assert sandbox.token_requests == []


def test_callback_is_rejected_when_the_state_is_repeated(client: Client, sandbox: Sandbox) -> None:
    url = sandbox.authorize(go_to_keap(client))
    response = client.get(f"{url}&state={parameter(url, 'state')}")
    assert_error_page(response, 400, "attempt is no longer open")
    assert client.get(url).status_code == 200


def test_error_takes_precedence_over_a_code(client: Client, sandbox: Sandbox) -> None:
    url = sandbox.authorize(go_to_keap(client))
    assert_error_page(client.get(url + "&error=access_denied"), 403)
    assert sandbox.token_requests == []


def test_error_page_is_shown_when_keap_rejects_the_code(client: Client) -> None:
    assert_error_page(
        callback_with(client, "code=nonsense"), 400, "Keap rejected the authorization code"
    )


def test_codes_of_one_user_stop_no_refresh_of_others(
    client: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.throttled(30), endpoint="exchange", times=None)
    for _ in range(10):
        assert callback_with(client, "code=nonsense").status_code == 503
    response = callback_with(client, "code=nonsense")
    assert response.status_code == 429
    assert response.headers["Retry-After"] == "60"
    assert "Too many attempts" in text_of(response)
    assert "Start again" in text_of(response)
    assert len(sandbox.token_requests) == 10
    credential.refresh()
    sandbox.clear_plan()
    other = client_for(user_who_may("connect_credential", name="bob"))
    assert "Account cd456 is connected" in text_of(authorize(other, sandbox, account="cd456"))


@pytest.mark.parametrize(
    "fault",
    [
        faults.throttled(30),
        faults.drop_after(),
        faults.error_502(),
        faults.answer(401, {"error": "invalid_client"}),
    ],
    ids=str,
)
def test_failed_exchange_does_not_block_the_application(
    client: Client, sandbox: Sandbox, credential: Credential, fault: Fault
) -> None:
    sandbox.plan(fault, endpoint="exchange")
    assert authorize(client, sandbox).status_code == 503
    assert not ApplicationState.objects.exclude(block_reason="").exists()
    credential.refresh()


def test_error_page_is_shown_when_the_code_has_expired(client: Client, sandbox: Sandbox) -> None:
    sandbox.switches.code_seconds = 0
    assert_error_page(authorize(client, sandbox), 400, "Keap rejected the authorization code")


@pytest.mark.parametrize(
    "fault",
    [
        faults.error_503(),
        faults.error_502(),
        faults.throttled(30),
        faults.html(),
        faults.empty(),
        faults.error_200(),
        faults.drop_before(),
        faults.drop_after(),
        faults.drop_midway(is_reset=True),
        faults.answer(200, {"access_token": 7}),
    ],
    ids=str,
)
def test_error_page_is_shown_when_keap_is_down(
    client: Client, sandbox: Sandbox, fault: Fault
) -> None:
    sandbox.plan(fault, endpoint="exchange")
    assert_error_page(
        authorize(client, sandbox), 503, "Keap is not responding", "in a few minutes"
    )


@override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.1)
def test_error_page_is_shown_when_keap_is_too_slow(client: Client, sandbox: Sandbox) -> None:
    gate = sandbox.hold(endpoint="exchange")
    assert_error_page(authorize(client, sandbox), 503, "Keap is not responding")
    gate.release()


def test_error_page_is_shown_when_keap_refuses_the_connection(
    client: Client, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(go_to_keap(client))
    with override_settings(INFUSIONSOFT_TOKEN_URL="http://127.0.0.1:9/token"):
        assert_error_page(client.get(url), 503, "Keap is not responding", "nothing was sent")


@pytest.mark.parametrize("query", ["error=access_denied", "error=x", "code=nonsense", "code="])
def test_link_to_start_again_keeps_next(client: Client, sandbox: Sandbox, query: str) -> None:
    response = callback_with(client, query)
    again = re.search(r'href="(/infusionsoft/authorize/[^"]*)"', response.content.decode())
    assert again
    at_keap = url_at_keap(client.post(html.unescape(again[1])))
    assert client.get(sandbox.authorize(at_keap)).headers["Location"] == "/here/"


# The site is not configured


@override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")
def test_error_page_is_shown_when_no_client_is_configured(client: Client) -> None:
    response = client.get(AUTHORIZE)
    assert_error_page(response, 503, "not configured", "add an application in the admin")


def test_error_page_is_shown_when_the_client_secret_is_wrong(
    client: Client, sandbox: Sandbox
) -> None:
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        response = authorize(client, sandbox)
    assert_error_page(response, 503, "not configured", "check the client id and the client secret")


@pytest.mark.parametrize("keys", [[], ["no-fernet-key"]])
def test_missing_encryption_key_is_reported_before_the_redirect_to_keap(
    client: Client, keys: list[str]
) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=keys):
        response = client.post(AUTHORIZE)
    assert_error_page(response, 503, "not configured", "infusionsoft_key")


def test_code_is_not_exchanged_when_the_encryption_key_is_missing(
    client: Client, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(go_to_keap(client))
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[]):
        assert_error_page(client.get(url), 503, "infusionsoft_key")
    assert sandbox.token_requests == []


@pytest.fixture
def application() -> Application:
    return Application.objects.create(
        name="Main", client_id="sandbox-client", client_secret="sandbox-secret", is_default=True
    )


@pytest.mark.parametrize("method", ["get", "post"])
def test_error_page_is_shown_when_no_key_decrypts_the_client_secret(
    client: Client, application: Application, method: str
) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]):
        response = getattr(client, method)(AUTHORIZE)
    assert_error_page(response, 503, "Application 'Main'", "INFUSIONSOFT_ENCRYPTION_KEYS")


# Deleted applications and credentials


@pytest.mark.parametrize("name", ["application", "credential"])
@pytest.mark.parametrize("value", ["4711", "", "x", "-1", "٣", "9" * 30])
def test_error_page_is_shown_for_an_unknown_application_or_credential(
    client: Client, name: str, value: str
) -> None:
    response = client.get(AUTHORIZE, {name: value})
    assert_error_page(response, 404, "does not exist any more")
    assert f'href="{AUTHORIZE}"' in response.content.decode()


def test_error_page_is_shown_when_the_application_was_deleted_meanwhile(
    client: Client, sandbox: Sandbox, application: Application
) -> None:
    url = sandbox.authorize(go_to_keap(client))
    application.delete()
    assert_error_page(client.get(url), 503, "The application has been deleted in the meantime")
    assert sandbox.token_requests == []


def test_account_is_connected_when_its_credential_was_deleted_meanwhile(
    client: Client, sandbox: Sandbox, credential: Credential
) -> None:
    url = sandbox.authorize(go_to_keap(client, credential=credential.pk, next="/here/"))
    credential.delete()
    assert messages_of(client.get(url)) == ["Account ab123 is connected."]


@pytest.mark.django_db(transaction=True)
def test_callback_succeeds_when_the_credential_is_deleted_during_the_profile_request(
    client: Client, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(go_to_keap(client))
    gate = sandbox.hold("before", endpoint="api")
    with threads(1) as start:
        response = start(lambda: client.get(url))
        gate.wait_until_arrived()
        Credential.objects.all().delete()
        gate.release()
    assert response.result().status_code == 200


# Reconnecting


def test_connecting_again_replaces_the_token_pair_in_the_same_row(
    client: Client, user: User, sandbox: Sandbox, credential: Credential
) -> None:
    before = credential.access_token
    authorize(client, sandbox, account="ab123")
    after = Credential.objects.get()
    assert (after.pk, after.generation) == (credential.pk, 2)
    assert after.access_token != before
    assert after.authorized_by == user
    assert after.session().get("v2/contacts").ok


def test_reconnect_page_names_the_account_to_choose(
    client: Client, credential: Credential
) -> None:
    response = client.get(AUTHORIZE, {"credential": credential.pk})
    assert "Reconnect ab123" in text_of(response)


def test_reconnecting_restores_an_account_that_must_be_reconnected(
    client: Client, sandbox: Sandbox, credential: Credential
) -> None:
    Credential.objects.update(status=Credential.Status.REAUTHORIZATION_REQUIRED)
    response = authorize(client, sandbox, credential=credential.pk, next="/here/")
    assert messages_of(response) == ["Account ab123 is connected."]
    assert Credential.objects.connected().get().get_access_token()


def test_reconnecting_keeps_the_row_when_the_account_stays_unidentified(
    client: Client, sandbox: Sandbox
) -> None:
    sandbox.switches.token_scope = "absent"
    sandbox.plan(faults.error_503(), endpoint="api", times=None)
    authorize(client, sandbox)
    unidentified = Credential.objects.get()
    assert unidentified.account is None
    assert f"Account #{unidentified.pk} is connected" in text_of(
        authorize(client, sandbox, credential=unidentified.pk)
    )
    assert Credential.objects.get().generation == 2


def test_reconnecting_uses_the_application_of_the_credential(
    client: Client, credential: Credential, application: Application
) -> None:
    application.client_id = "another"
    application.save()
    url = go_to_keap(client, credential=credential.pk)
    assert parameter(url, "client_id") == "sandbox-client"


def test_message_says_that_another_account_was_chosen(
    client: Client, sandbox: Sandbox, credential: Credential
) -> None:
    before = credential.access_token
    response = authorize(client, sandbox, account="cd456", credential=credential.pk, next="/here/")
    (message,) = messages_of(response)
    assert "account cd456" in message
    assert "Account ab123 is unchanged" in message
    assert Credential.objects.for_account("ab123").access_token == before
    assert Credential.objects.for_account("ab123").generation == 1
    assert Credential.objects.for_account("cd456").get_access_token()


def test_page_says_that_another_account_was_chosen_without_next(
    client: Client, sandbox: Sandbox, credential: Credential
) -> None:
    response = authorize(client, sandbox, account="cd456", credential=credential.pk)
    assert "Account cd456 is connected" in text_of(response)
    assert "Account ab123 is unchanged" in text_of(response)


# Secrets


def rejected_code(client: Client, sandbox: Sandbox) -> Any:
    sandbox.switches.code_seconds = 0
    return authorize(client, sandbox)


def keap_down(client: Client, sandbox: Sandbox) -> Any:
    sandbox.plan(faults.drop_after(), endpoint="exchange")
    return authorize(client, sandbox)


def wrong_client(client: Client, sandbox: Sandbox) -> Any:
    sandbox.plan(
        faults.answer(401, {"error": "invalid_client", "error_description": "sandbox-secret"}),
        endpoint="exchange",
    )
    return authorize(client, sandbox)


def denied(client: Client, sandbox: Sandbox) -> Any:
    return authorize(client, sandbox, decision="deny")


def unexpected_error(client: Client, sandbox: Sandbox) -> Any:
    """Fail between the reply and the save, so that Django shows its own error page."""

    def fail(**kwargs: Any) -> None:
        raise RuntimeError("unexpected")

    client.raise_request_exception = False
    pre_save.connect(fail, sender=Credential)
    try:
        response = authorize(client, sandbox)
    finally:
        pre_save.disconnect(fail, sender=Credential)
    assert response.status_code == 500
    return response


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "case", [authorize, rejected_code, keap_down, wrong_client, denied, unexpected_error]
)
def test_secrets_are_in_no_page_and_no_log(
    client: Client,
    sandbox: Sandbox,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    case: Callable[[Client, Sandbox], Any],
    debug: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = {"sandbox-secret"}
    get = client.get

    def recording_get(url: str) -> Any:
        secrets.update(parameter(url, name) for name in ("code", "state") if f"{name}=" in url)
        return get(url)

    monkeypatch.setattr(client, "get", recording_get)
    with override_settings(DEBUG=debug):
        response = case(client, sandbox)
    for grant in sandbox.live_grants:
        secrets |= {grant.refresh_token, *grant.access_tokens}
    shown = [response.content.decode(), str(response.headers), caplog.text, *messages_of(response)]
    shown += [str(vars(record)) for record in caplog.records]
    assert len(secrets) > 1
    assert [secret for secret in secrets if secret in " ".join(shown)] == []


def test_query_string_is_removed_from_the_request(client: Client, sandbox: Sandbox) -> None:
    url = sandbox.authorize(go_to_keap(client))
    uri = CALLBACK + "?" + url.partition("?")[2]
    request: HttpRequest = client.get(url, REQUEST_URI=uri, RAW_URI=uri).wsgi_request
    assert request.get_full_path() == CALLBACK
    assert parameter(url, "code") not in str(request.META) + str(request.GET) + repr(request)
