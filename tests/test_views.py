"""Off to Keap and back: every way it can go, and the page that says so."""

import html
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import time_machine
from django.contrib.auth.models import User
from django.contrib.messages import get_messages
from django.db.models.signals import pre_save
from django.http import HttpRequest
from django.test import Client, override_settings
from django.urls import reverse
from django.utils import timezone

from django_infusionsoft.models import Application, Credential
from django_infusionsoft.sandbox import Fault, Sandbox, faults
from tests.support import failing_updates, threads
from tests.visits import HERE, depart, parameter, travel, user_who_may, visitor

pytestmark = pytest.mark.django_db

AUTHORIZE = "/infusionsoft/authorize/"
CALLBACK = "/infusionsoft/callback/"
OTHER_KEY = "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q="
# All that stands in the way of an address on this host, and is none.
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
    """The browser of somebody who may connect accounts."""
    return visitor(user)


def text_of(response: Any) -> str:
    """Return what a person reads: words, without tags."""
    words = re.sub(r"<[^>]+>", " ", response.content.decode())
    return " ".join(html.unescape(words).split())


def messages_of(response: Any) -> list[str]:
    return [str(message) for message in get_messages(response.wsgi_request)]


def assert_problem(response: Any, status: int, *words: str) -> None:
    """A page that says these words and where to start again; and nothing is connected."""
    assert response.status_code == status
    for word in words:
        assert word in text_of(response)
    assert f'href="{AUTHORIZE}' in response.content.decode()
    assert not Credential.objects.exists()


# The authorize page


def test_get_shows_what_will_happen_and_starts_nothing(client: Client, sandbox: Sandbox) -> None:
    response = client.get(AUTHORIZE)
    assert response.status_code == 200
    assert sandbox.url.removeprefix("http://") in text_of(response)
    assert f"{HERE}{CALLBACK}" in text_of(response)
    assert "Continue to Keap" in text_of(response)
    assert "_infusionsoft_states_1" not in client.session


def test_post_sends_to_keap_with_the_four_documented_parameters_and_state(
    client: Client, sandbox: Sandbox
) -> None:
    url = depart(client)
    assert url.startswith(sandbox.authorize_url + "?")
    assert parameter(url, "client_id") == "sandbox-client"
    assert parameter(url, "redirect_uri") == f"{HERE}{CALLBACK}"
    assert parameter(url, "response_type") == "code"
    assert parameter(url, "scope") == "full"
    assert len(parameter(url, "state")) == 43
    assert url.count("=") == 5


def test_head_starts_nothing(client: Client) -> None:
    assert client.head(AUTHORIZE).status_code == 200


@pytest.mark.parametrize("method", ["put", "patch", "delete", "trace"])
@pytest.mark.parametrize("url", [AUTHORIZE, CALLBACK])
def test_other_methods_are_refused(client: Client, url: str, method: str) -> None:
    assert getattr(client, method)(url).status_code == 405


def test_form_of_another_site_is_refused(user: User, sandbox: Sandbox) -> None:
    client = visitor(user, enforce_csrf_checks=True)
    assert client.post(AUTHORIZE).status_code == 403


@override_settings(MIDDLEWARE=[])
def test_form_of_another_site_is_refused_without_djangos_middleware(
    user: User, sandbox: Sandbox, rf: Any
) -> None:
    from django_infusionsoft.views import AuthorizeView

    request = rf.post(AUTHORIZE)
    request.user = user
    assert AuthorizeView.as_view()(request).status_code == 403


@pytest.mark.parametrize("url", [AUTHORIZE, CALLBACK, AUTHORIZE + "?credential=4711"])
def test_pages_are_kept_by_nobody_and_framed_by_nobody(client: Client, url: str) -> None:
    response = client.get(url)
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Frame-Options"] == "DENY"


def test_authorize_page_lets_its_own_form_name_its_origin(client: Client) -> None:
    assert client.get(AUTHORIZE).headers["Referrer-Policy"] == "same-origin"


def test_no_address_of_ours_goes_along_to_keap_or_away_from_the_callback(client: Client) -> None:
    responses = [client.post(AUTHORIZE), client.get(CALLBACK)]
    assert [each.headers["Referrer-Policy"] for each in responses] == ["no-referrer"] * 2
    assert responses[0].headers["Cache-Control"] == "no-store"


# Who may


def test_anonymous_visitor_logs_in_first_and_comes_back(sandbox: Sandbox) -> None:
    response = visitor().get(AUTHORIZE + "?next=/here/")
    assert response.status_code == 302
    assert response.headers["Location"].startswith(reverse("admin:login"))
    assert parameter(response.headers["Location"], "next") == AUTHORIZE + "?next=/here/"


@pytest.mark.parametrize("url", [AUTHORIZE, CALLBACK])
def test_user_without_permission_is_told_so(url: str, sandbox: Sandbox) -> None:
    client = visitor(user_who_may("view_credential"))
    assert_problem(client.get(url), 403, "You may not connect Keap accounts", "Ask somebody")


def test_user_without_permission_cannot_start(sandbox: Sandbox) -> None:
    client = visitor(user_who_may("view_credential"))
    assert client.post(AUTHORIZE).status_code == 403


def test_anonymous_callback_shows_a_page_and_redirects_nowhere(
    client: Client, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(depart(client))
    response = visitor().get(url)
    assert_problem(response, 403, "You are not logged in here", "start again")
    assert parameter(url, "code") not in response.content.decode()
    assert sandbox.token_requests == []


def test_permission_lost_at_keap_connects_nothing(
    client: Client, user: User, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(depart(client))
    user.user_permissions.clear()
    assert_problem(client.get(url), 403, "You may not connect")
    assert sandbox.token_requests == []


# There and back


def test_round_trip_connects_the_account(client: Client, user: User, sandbox: Sandbox) -> None:
    response = travel(client, sandbox)
    assert response.status_code == 200
    assert "Account ab123 is connected" in text_of(response)
    credential = Credential.objects.for_account("ab123")
    assert credential.authorized_by == user
    assert credential.account_name == "Acme Bakery"
    assert credential.application is None
    assert [event.kind for event in credential.events.all()] == ["connected"]
    assert credential.session().get("v2/contacts").ok


def test_round_trip_ends_where_next_says_with_a_message(client: Client, sandbox: Sandbox) -> None:
    response = travel(client, sandbox, next="/here/?a=b&c=d")
    assert response.headers["Location"] == "/here/?a=b&c=d"
    assert messages_of(response) == ["Account ab123 is connected."]


def test_page_without_next_leaves_no_message_for_later(client: Client, sandbox: Sandbox) -> None:
    assert messages_of(travel(client, sandbox)) == []


def test_pair_is_stored_when_the_database_fails_for_a_moment(
    transactional_db: None, client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.database.RETRY_PAUSES", (0,))
    callback = sandbox.authorize(depart(client))
    with failing_updates("gone"):
        assert client.get(callback).status_code == 200
    assert Credential.objects.for_account("ab123").generation == 1


def test_page_says_so_when_the_pair_cannot_be_stored(
    transactional_db: None, client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.database.RETRY_PAUSES", ())
    callback = sandbox.authorize(depart(client))
    with failing_updates("gone"):
        assert_problem(client.get(callback), 503, "could not be stored", "start again")


@pytest.mark.parametrize("scope", ["full", "absent"])
def test_account_that_the_reply_does_not_tell_is_asked_for(
    client: Client, sandbox: Sandbox, scope: Any
) -> None:
    sandbox.switches.token_scope = scope
    assert "Account ab123 is connected" in text_of(travel(client, sandbox))


@pytest.mark.django_db(transaction=True)
def test_pair_is_stored_before_keap_is_asked_for_the_profile(
    client: Client, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(depart(client))
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
def test_account_is_connected_although_its_profile_cannot_be_had(
    client: Client, sandbox: Sandbox, fault: Fault
) -> None:
    sandbox.plan(fault, endpoint="api", times=None)
    assert "Account ab123 is connected" in text_of(travel(client, sandbox))


def test_application_of_the_request_is_used(client: Client, sandbox: Sandbox) -> None:
    Application.objects.create(name="default", client_id="x", client_secret="y", is_default=True)
    ours = Application.objects.create(
        name="ours", client_id="sandbox-client", client_secret="sandbox-secret"
    )
    travel(client, sandbox, application=ours.pk)
    assert Credential.objects.get().application == ours


def test_default_application_is_used_where_the_request_names_none(
    client: Client, sandbox: Sandbox
) -> None:
    ours = Application.objects.create(
        name="ours", client_id="sandbox-client", client_secret="sandbox-secret", is_default=True
    )
    travel(client, sandbox)
    assert Credential.objects.get().application == ours


# The state


def test_state_from_elsewhere_connects_nothing(client: Client, sandbox: Sandbox) -> None:
    depart(client)
    url = sandbox.authorize(depart(visitor(user_who_may("connect_credential", name="eve"))))
    assert_problem(client.get(url), 400, "not waiting for an answer", "start again")
    assert sandbox.token_requests == []


def test_missing_state_connects_nothing(client: Client, sandbox: Sandbox) -> None:
    depart(client)
    assert_problem(client.get(CALLBACK + "?code=x"), 400, "not waiting for an answer")
    assert sandbox.token_requests == []


def test_state_older_than_ten_minutes_connects_nothing(client: Client, sandbox: Sandbox) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        url = sandbox.authorize(depart(client))
        clock.shift(601)
        assert_problem(client.get(url), 400, "longer than ten minutes")
    assert sandbox.token_requests == []


def test_state_is_spent_before_the_code_is_exchanged(client: Client, sandbox: Sandbox) -> None:
    sandbox.plan(faults.error_503(), endpoint="exchange")
    url = sandbox.authorize(depart(client))
    assert_problem(client.get(url), 503)
    assert_problem(client.get(url), 400, "not waiting for an answer")
    assert len(sandbox.token_requests) == 1


def test_callback_reloaded_says_that_nothing_has_changed(client: Client, sandbox: Sandbox) -> None:
    url = sandbox.authorize(depart(client))
    client.get(url)
    response = client.get(url)
    assert response.status_code == 400
    assert "It was completed already" in text_of(response)
    assert Credential.objects.get().generation == 1
    assert len(sandbox.token_requests) == 1


def test_consent_given_twice_by_the_back_button_connects_once(
    client: Client, sandbox: Sandbox
) -> None:
    at_keap = depart(client)
    client.get(sandbox.authorize(at_keap))
    assert client.get(sandbox.authorize(at_keap)).status_code == 400
    assert len(sandbox.token_requests) == 1


def test_two_tabs_connect_two_accounts_in_any_order(client: Client, sandbox: Sandbox) -> None:
    first, second = depart(client, next="/1/"), depart(client, next="/2/")
    response = client.get(sandbox.authorize(second, account="cd456"))
    assert response.headers["Location"] == "/2/"
    response = client.get(sandbox.authorize(first, account="ab123"))
    assert response.headers["Location"] == "/1/"
    assert Credential.objects.count() == 2


def test_another_user_in_the_same_browser_cannot_finish(client: Client, sandbox: Sandbox) -> None:
    url = sandbox.authorize(depart(client))
    client.force_login(user_who_may("connect_credential", name="bob"))
    assert_problem(client.get(url), 400, "not waiting for an answer")


def test_head_on_the_callback_spends_nothing(client: Client, sandbox: Sandbox) -> None:
    url = sandbox.authorize(depart(client))
    assert client.head(url).status_code == 405
    assert "Account ab123 is connected" in text_of(client.get(url))


# Where to go afterwards


@pytest.mark.parametrize("url", EVIL)
def test_next_leads_to_no_other_site(client: Client, sandbox: Sandbox, url: str) -> None:
    assert "Cancel" not in text_of(client.get(AUTHORIZE, {"next": url}))
    response = travel(client, sandbox, next=url)
    assert response.status_code == 200
    assert "evil" not in response.content.decode()


@pytest.mark.parametrize("url", ["/here/", f"{HERE}/here/", "here", "here/", "?a=b"])
def test_next_leads_anywhere_on_this_site(client: Client, sandbox: Sandbox, url: str) -> None:
    assert travel(client, sandbox, next=url).headers["Location"] == url


def test_next_does_not_lead_from_https_to_http(client: Client, sandbox: Sandbox) -> None:
    query = {"next": "http://localhost/here/"}
    assert "Cancel" in text_of(client.get(AUTHORIZE, query))
    assert "Cancel" not in text_of(client.get(AUTHORIZE, query, secure=True))


# The redirect URI


@override_settings(INFUSIONSOFT_REDIRECT_URI="https://fixed.test/keap/")
def test_redirect_uri_of_the_settings_is_used_in_both_requests(
    client: Client, sandbox: Sandbox
) -> None:
    at_keap = depart(client)
    assert parameter(at_keap, "redirect_uri") == "https://fixed.test/keap/"
    back = sandbox.authorize(at_keap)
    assert back.startswith("https://fixed.test/keap/?")
    client.get(CALLBACK + "?" + back.partition("?")[2])
    assert Credential.objects.exists()  # Keap compares it to the letter


@override_settings(ALLOWED_HOSTS=["shop.test"])
def test_redirect_uri_on_plain_http_is_refused_before_anybody_is_sent_away(
    client: Client,
) -> None:
    response = client.post(AUTHORIZE, SERVER_NAME="shop.test")
    assert_problem(response, 503, "http://shop.test/infusionsoft/callback/", "https://")
    assert "INFUSIONSOFT_REDIRECT_URI" in text_of(response)


@override_settings(
    ALLOWED_HOSTS=["shop.test"], SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https")
)
def test_redirect_uri_behind_a_proxy_is_https(client: Client) -> None:
    response = client.post(AUTHORIZE, HTTP_HOST="shop.test", HTTP_X_FORWARDED_PROTO="https")
    redirect_uri = parameter(response.headers["Location"], "redirect_uri")
    assert redirect_uri == "https://shop.test/infusionsoft/callback/"


@override_settings(INFUSIONSOFT_REDIRECT_URI="http://shop.test/callback/")
def test_redirect_uri_of_the_settings_on_plain_http_is_refused(client: Client) -> None:
    assert_problem(client.get(AUTHORIZE), 503, "INFUSIONSOFT_REDIRECT_URI must be an absolute")


# Keap says no, or nothing


def keap_answers(client: Client, query: str) -> Any:
    state = parameter(depart(client, next="/here/"), "state")
    return client.get(f"{CALLBACK}?state={state}&{query}")


def test_denial_is_told_and_leads_back(client: Client, sandbox: Sandbox) -> None:
    response = travel(client, sandbox, decision="deny", next="/here/")
    assert_problem(response, 403, "Access was denied at Keap", "Start again", "Back")
    assert 'href="/infusionsoft/authorize/?next=%2Fhere%2F"' in response.content.decode()
    assert 'href="/here/"' in response.content.decode()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        ("access_denied", 403, "Access was denied at Keap"),
        ("server_error", 503, "Keap does not answer"),
        ("temporarily_unavailable", 503, "Keap does not answer"),
        ("invalid_scope", 400, "Keap refused the request"),
        ("unauthorized_client", 400, "Keap refused the request"),
        ("", 400, "Keap refused the request"),
        ("nonsense", 400, "Keap refused the request"),
    ],
)
def test_error_of_keap_is_a_page(client: Client, error: str, status: int, words: str) -> None:
    assert_problem(keap_answers(client, f"error={error}"), status, words)


def test_text_of_an_error_is_shown_nowhere(client: Client) -> None:
    query = "error=%3Cb%3Eevil%3C/b%3E&error_description=evil%3Cscript%3E&error_uri=evil"
    response = keap_answers(client, query)
    assert_problem(response, 400)
    assert "evil" not in response.content.decode()
    assert "<script" not in response.content.decode()


@pytest.mark.parametrize("query", ["", "code=", "code=a&code=b", "scope=full"])
def test_answer_without_one_code_is_told(client: Client, sandbox: Sandbox, query: str) -> None:
    assert_problem(keap_answers(client, query), 400, "Keap sent no code")
    assert sandbox.token_requests == []


def test_repeated_state_is_no_state(client: Client, sandbox: Sandbox) -> None:
    url = sandbox.authorize(depart(client))
    response = client.get(f"{url}&state={parameter(url, 'state')}")
    assert_problem(response, 400, "not waiting for an answer")
    assert client.get(url).status_code == 200


def test_error_beside_a_code_is_an_error(client: Client, sandbox: Sandbox) -> None:
    url = sandbox.authorize(depart(client))
    assert_problem(client.get(url + "&error=access_denied"), 403)
    assert sandbox.token_requests == []


def test_refused_code_is_told(client: Client) -> None:
    assert_problem(keap_answers(client, "code=nonsense"), 400, "Keap refused the code")


def test_code_that_is_too_old_is_told(client: Client, sandbox: Sandbox) -> None:
    sandbox.switches.code_seconds = 0
    assert_problem(travel(client, sandbox), 400, "Keap refused the code")


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
def test_keap_being_down_is_told(client: Client, sandbox: Sandbox, fault: Fault) -> None:
    sandbox.plan(fault, endpoint="exchange")
    assert_problem(travel(client, sandbox), 503, "Keap does not answer", "in a few minutes")


@override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.1)
def test_keap_being_too_slow_is_told(client: Client, sandbox: Sandbox) -> None:
    gate = sandbox.hold(endpoint="exchange")
    assert_problem(travel(client, sandbox), 503, "Keap does not answer")
    gate.release()


def test_keap_refusing_connections_is_told(client: Client, sandbox: Sandbox) -> None:
    url = sandbox.authorize(depart(client))
    with override_settings(INFUSIONSOFT_TOKEN_URL="http://127.0.0.1:9/token"):
        assert_problem(client.get(url), 503, "Keap does not answer", "nothing was sent")


@pytest.mark.parametrize("query", ["error=access_denied", "error=x", "code=nonsense", "code="])
def test_problem_keeps_what_was_to_be_done(client: Client, sandbox: Sandbox, query: str) -> None:
    response = keap_answers(client, query)
    again = re.search(r'href="(/infusionsoft/authorize/[^"]*)"', response.content.decode())
    assert again
    at_keap = client.post(html.unescape(again[1])).headers["Location"]
    assert client.get(sandbox.authorize(at_keap)).headers["Location"] == "/here/"


# The site is not set up


@override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")
def test_missing_client_is_told(client: Client) -> None:
    response = client.get(AUTHORIZE)
    assert_problem(response, 503, "not set up", "add an application in the admin")


def test_wrong_client_secret_is_told(client: Client, sandbox: Sandbox) -> None:
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        response = travel(client, sandbox)
    assert_problem(response, 503, "not set up", "check the client id and the client secret")


@pytest.mark.parametrize("keys", [[], ["no-fernet-key"]])
def test_missing_encryption_key_is_told_before_anybody_is_sent_away(
    client: Client, keys: list[str]
) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=keys):
        response = client.post(AUTHORIZE)
    assert_problem(response, 503, "not set up", "infusionsoft_key")


def test_encryption_key_lost_at_keap_leaves_the_code_unspent(
    client: Client, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(depart(client))
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[]):
        assert_problem(client.get(url), 503, "infusionsoft_key")
    assert sandbox.token_requests == []


@pytest.fixture
def application() -> Application:
    return Application.objects.create(
        name="ours", client_id="sandbox-client", client_secret="sandbox-secret", is_default=True
    )


@pytest.mark.parametrize("method", ["get", "post"])
def test_application_whose_secret_no_key_opens_is_told(
    client: Client, application: Application, method: str
) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]):
        response = getattr(client, method)(AUTHORIZE)
    assert_problem(response, 503, "Application 'ours'", "INFUSIONSOFT_ENCRYPTION_KEYS")


# Something has been deleted


@pytest.mark.parametrize("name", ["application", "credential"])
@pytest.mark.parametrize("value", ["4711", "", "x", "-1", "٣", "9" * 30])
def test_link_to_something_that_is_not_there_is_told(
    client: Client, name: str, value: str
) -> None:
    response = client.get(AUTHORIZE, {name: value})
    assert_problem(response, 404, "has been deleted")
    assert f'href="{AUTHORIZE}"' in response.content.decode()


def test_application_deleted_meanwhile_is_told(
    client: Client, sandbox: Sandbox, application: Application
) -> None:
    url = sandbox.authorize(depart(client))
    application.delete()
    assert_problem(client.get(url), 503, "The application has been deleted meanwhile")
    assert sandbox.token_requests == []


def test_credential_deleted_meanwhile_is_connected_anew(
    client: Client, sandbox: Sandbox, credential: Credential
) -> None:
    url = sandbox.authorize(depart(client, credential=credential.pk, next="/here/"))
    credential.delete()
    assert messages_of(client.get(url)) == ["Account ab123 is connected."]


@pytest.mark.django_db(transaction=True)
def test_credential_deleted_while_keap_is_asked_for_its_profile_is_no_error(
    client: Client, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(depart(client))
    gate = sandbox.hold("before", endpoint="api")
    with threads(1) as start:
        response = start(lambda: client.get(url))
        gate.wait_until_arrived()
        Credential.objects.all().delete()
        gate.release()
    assert response.result().status_code == 200


# Again


def test_connecting_again_replaces_the_pair_in_the_same_row(
    client: Client, user: User, sandbox: Sandbox, credential: Credential
) -> None:
    before = credential.access_token
    travel(client, sandbox, account="ab123")
    after = Credential.objects.get()
    assert (after.pk, after.generation) == (credential.pk, 2)
    assert after.access_token != before
    assert after.authorized_by == user
    assert after.session().get("v2/contacts").ok


def test_reconnecting_names_the_account_to_be_chosen(
    client: Client, credential: Credential
) -> None:
    response = client.get(AUTHORIZE, {"credential": credential.pk})
    assert "Connect ab123 again" in text_of(response)


def test_reconnecting_mends_a_credential_that_needs_a_person(
    client: Client, sandbox: Sandbox, credential: Credential
) -> None:
    Credential.objects.update(status=Credential.Status.REAUTHORIZATION_REQUIRED)
    response = travel(client, sandbox, credential=credential.pk, next="/here/")
    assert messages_of(response) == ["Account ab123 is connected."]
    assert Credential.objects.connected().get().get_access_token()


def test_reconnecting_a_nameless_credential_keeps_to_its_row_while_keap_tells_no_name(
    client: Client, sandbox: Sandbox
) -> None:
    sandbox.switches.token_scope = "absent"
    sandbox.plan(faults.error_503(), endpoint="api", times=None)
    travel(client, sandbox)
    nameless = Credential.objects.get()
    assert nameless.account is None
    assert f"Account #{nameless.pk} is connected" in text_of(
        travel(client, sandbox, credential=nameless.pk)
    )
    assert Credential.objects.get().generation == 2


def test_reconnecting_uses_the_credentials_own_application(
    client: Client, credential: Credential, application: Application
) -> None:
    application.client_id = "another"
    application.save()
    url = depart(client, credential=credential.pk)
    assert parameter(url, "client_id") == "sandbox-client"


def test_another_account_chosen_is_connected_beside_and_said(
    client: Client, sandbox: Sandbox, credential: Credential
) -> None:
    before = credential.access_token
    response = travel(client, sandbox, account="cd456", credential=credential.pk, next="/here/")
    (message,) = messages_of(response)
    assert "account cd456" in message
    assert "Account ab123 is as it was" in message
    assert Credential.objects.for_account("ab123").access_token == before
    assert Credential.objects.for_account("ab123").generation == 1
    assert Credential.objects.for_account("cd456").get_access_token()


def test_another_account_chosen_is_said_on_the_page_where_there_is_no_next(
    client: Client, sandbox: Sandbox, credential: Credential
) -> None:
    response = travel(client, sandbox, account="cd456", credential=credential.pk)
    assert "Account cd456 is connected" in text_of(response)
    assert "Account ab123 is as it was" in text_of(response)


# Secrets


def refused_code(client: Client, sandbox: Sandbox) -> Any:
    sandbox.switches.code_seconds = 0
    return travel(client, sandbox)


def keap_down(client: Client, sandbox: Sandbox) -> Any:
    sandbox.plan(faults.drop_after(), endpoint="exchange")
    return travel(client, sandbox)


def wrong_client(client: Client, sandbox: Sandbox) -> Any:
    sandbox.plan(
        faults.answer(401, {"error": "invalid_client", "error_description": "sandbox-secret"}),
        endpoint="exchange",
    )
    return travel(client, sandbox)


def denied(client: Client, sandbox: Sandbox) -> Any:
    return travel(client, sandbox, decision="deny")


def unexpected_error(client: Client, sandbox: Sandbox) -> Any:
    """Fail between the reply and the row: the page that Django itself shows."""

    def fail(**kwargs: Any) -> None:
        raise RuntimeError("unexpected")

    client.raise_request_exception = False
    pre_save.connect(fail, sender=Credential)
    try:
        response = travel(client, sandbox)
    finally:
        pre_save.disconnect(fail, sender=Credential)
    assert response.status_code == 500
    return response


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "way", [travel, refused_code, keap_down, wrong_client, denied, unexpected_error]
)
def test_secrets_are_in_no_page_and_no_log(
    client: Client,
    sandbox: Sandbox,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[Client, Sandbox], Any],
    debug: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = {"sandbox-secret"}
    get = client.get

    def noting(url: str) -> Any:
        secrets.update(parameter(url, name) for name in ("code", "state") if f"{name}=" in url)
        return get(url)

    monkeypatch.setattr(client, "get", noting)
    with override_settings(DEBUG=debug):
        response = way(client, sandbox)
    for grant in sandbox.live_grants:
        secrets |= {grant.refresh_token, *grant.access_tokens}
    told = [response.content.decode(), str(response.headers), caplog.text, *messages_of(response)]
    told += [str(vars(record)) for record in caplog.records]
    assert len(secrets) > 1
    assert [secret for secret in secrets if secret in " ".join(told)] == []


def test_query_is_taken_out_of_the_request_for_whoever_looks_later(
    client: Client, sandbox: Sandbox
) -> None:
    url = sandbox.authorize(depart(client))
    uri = CALLBACK + "?" + url.partition("?")[2]
    request: HttpRequest = client.get(url, REQUEST_URI=uri, RAW_URI=uri).wsgi_request
    assert request.get_full_path() == CALLBACK
    assert parameter(url, "code") not in str(request.META) + str(request.GET) + repr(request)
