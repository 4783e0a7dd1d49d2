"""The admin's actions on one account: connect, refresh, test, disconnect; their permissions."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client, override_settings
from django.urls import path

from django_infusionsoft.choices import BlockReason
from django_infusionsoft.models import Application, Credential
from django_infusionsoft.sandbox import Fault, Sandbox, faults
from tests.support import keap_with, row
from tests.web import (
    DISCONNECTED,
    LIST,
    LOST,
    MAY,
    OTHER_KEY,
    REVOKE,
    account,
    action_url,
    authorize,
    change_url,
    client_for,
    confirmation_form,
    links,
    messages_of,
    page,
    parameter,
    plain,
    stop,
    user_who_may,
    users_of_events,
)

pytestmark = pytest.mark.django_db

Connect = Callable[..., Credential]
VERBS = ["refresh", "test", "disconnect"]
BACK = f"next={LIST.replace('/', '%2F')}"

# A site with an admin and without our URLs
urlpatterns = [path("admin/", admin.site.urls)]


@pytest.fixture
def user() -> User:
    return User.objects.create_superuser("operator")


@pytest.fixture
def operator(user: User) -> Client:
    """The browser of a superuser."""
    return client_for(user)


# Connect


def test_button_leads_to_keap_when_there_is_one_client(operator: Client) -> None:
    add = f"{LIST}add/"
    assert f'<a href="{add}" class="addlink">Connect a Keap account</a>' in page(operator, LIST)
    location = operator.get(add).headers["Location"]
    assert location == f"/infusionsoft/authorize/?{BACK}"
    assert "Continue to Keap" in page(operator, location)


def test_connecting_returns_to_the_list_and_records_the_user(
    operator: Client, sandbox: Sandbox
) -> None:
    next_url = parameter(operator.get(f"{LIST}add/").headers["Location"], "next")
    response = authorize(operator, sandbox, next=next_url)
    assert response.headers["Location"] == LIST
    html = page(operator, LIST)
    assert "Account ab123 is connected." in html
    assert users_of_events("connected") == ["operator"]
    assert "by operator" in page(operator, change_url(Credential.objects.get()))


@override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")
def test_button_leads_to_keap_with_the_only_application(
    operator: Client, second: Application
) -> None:
    assert operator.get(f"{LIST}add/").status_code == 302


@override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")
def test_authorize_view_reports_a_missing_client(operator: Client) -> None:
    location = operator.get(f"{LIST}add/").headers["Location"]
    response = operator.get(location)
    assert (response.status_code, "INFUSIONSOFT_CLIENT_ID" in response.content.decode()) == (
        503,
        True,
    )


def choices(client: Client) -> list[str]:
    """Return the clients that the page offers, each followed by its problem."""
    (listed,) = re.findall(
        r'<ul class="infusionsoft-choices">.*?</ul>', page(client, f"{LIST}add/"), re.DOTALL
    )
    return [plain(each) for each in re.findall("<li>.*?</li>", listed, re.DOTALL)]


def test_page_offers_a_choice_when_there_are_several_clients(
    operator: Client, second: Application
) -> None:
    Application.objects.create(name="First", client_id="first", client_secret="x")
    assert choices(operator) == [
        "Client in the settings default",
        "First",
        "Second",
    ]
    html = page(operator, f"{LIST}add/")
    assert "This site has several clients at Keap." in plain(html)
    authorize = "/infusionsoft/authorize/?application="
    assert (f"{authorize}settings&{BACK}", "Client in the settings") in links(html)
    assert (f"{authorize}{second.pk}&{BACK}", "Second") in links(html)
    assert (LIST, "Back to the list") in links(html)


def test_default_application_is_offered_first(operator: Client, second: Application) -> None:
    second.is_default = True
    second.save()
    assert choices(operator) == [
        "Second default",
        "Client in the settings",
    ]


@override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")
def test_no_choice_is_marked_default_when_there_is_no_default(
    operator: Client, second: Application
) -> None:
    Application.objects.create(name="First", client_id="first", client_secret="x")
    assert choices(operator) == ["First", "Second"]


def test_choice_shows_the_problem_of_a_client(operator: Client, second: Application) -> None:
    stop(second, BlockReason.REJECTED)
    settings_client, other = choices(operator)
    assert "rejects" not in settings_client
    assert other.startswith("Second Keap rejects the client (since ")


@pytest.mark.parametrize("of_settings", [True, False])
def test_account_is_connected_with_the_chosen_client(
    operator: Client, second: Application, of_settings: bool
) -> None:
    second.is_default = of_settings
    second.save()
    with keap_with(["ab123"]) as sandbox:
        chosen = "settings" if of_settings else second.pk
        authorize(operator, sandbox, application=chosen, next=LIST)
    credential = Credential.objects.get()
    assert credential.application == (None if of_settings else second)


def test_choice_needs_the_same_number_of_queries_for_many_clients(
    operator: Client, second: Application, django_assert_num_queries: Any
) -> None:
    for count in (1, 30):
        Application.objects.bulk_create(
            Application(name="more", client_id=f"{count}.{number}", client_secret="x")
            for number in range(count)
        )
        stop(Application.objects.order_by("pk").last())
        with django_assert_num_queries(4):
            page(operator, f"{LIST}add/")


def test_reconnecting_keeps_the_credential_and_returns_to_its_page(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    here = change_url(credential)
    url = f"/infusionsoft/authorize/?credential={credential.pk}&next={here.replace('/', '%2F')}"
    assert (url, "Reconnect") in links(page(operator, here))
    response = authorize(operator, sandbox, credential=credential.pk, next=here)
    assert response.headers["Location"] == here
    assert users_of_events("reconnected") == ["operator"]


# A site that does not include our URLs


@pytest.mark.urls(__name__)
def test_pages_have_no_link_to_keap_when_the_site_lacks_our_urls(operator: Client) -> None:
    credential = account(**LOST)
    page(operator, LIST)
    html = page(operator, change_url(credential))
    assert "Reconnect</a>" not in html
    assert "infusionsoft/authorize" not in html


@pytest.mark.urls(__name__)
def test_adding_is_forbidden_when_the_site_lacks_our_urls(operator: Client) -> None:
    assert operator.get(f"{LIST}add/").status_code == 403


@pytest.mark.urls(__name__)
def test_list_has_no_connect_button_when_the_site_lacks_our_urls(operator: Client) -> None:
    account()
    assert "Connect a Keap account" not in page(operator, LIST)


@pytest.mark.urls(__name__)
def test_rejected_refresh_has_no_link_when_the_site_lacks_our_urls(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke("ab123")
    (message,) = messages_of(operator.post(action_url(credential, "refresh")))
    assert "must be reconnected" in message
    assert "<a" not in message


# All actions


@pytest.mark.parametrize("verb", VERBS)
def test_action_is_forbidden_when_the_csrf_token_is_missing(
    user: User, sandbox: Sandbox, credential: Credential, verb: str
) -> None:
    client = client_for(user, enforce_csrf_checks=True)
    assert client.post(action_url(credential, verb)).status_code == 403
    assert sandbox.token_requests == []
    assert credential.events.count() == 1
    assert row(credential).status == "connected"


@pytest.mark.parametrize("verb", VERBS)
def test_action_is_accepted_when_the_page_has_the_csrf_token(
    user: User, credential: Credential, verb: str
) -> None:
    client = client_for(user, enforce_csrf_checks=True)
    html = page(
        client, action_url(credential, verb) if verb == "disconnect" else change_url(credential)
    )
    marker = "infusionsoft-question" if verb == "disconnect" else "infusionsoft-tools"
    (form,) = re.findall(rf"<form[^>]*{marker}.*?</form>", html, re.DOTALL)
    (token,) = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
    response = client.post(action_url(credential, verb), {"csrfmiddlewaretoken": token})
    assert response.status_code == 302


@pytest.mark.parametrize("verb", ["refresh", "test"])
@pytest.mark.parametrize("method", ["get", "head", "put", "delete"])
def test_action_accepts_only_post(
    operator: Client, sandbox: Sandbox, credential: Credential, verb: str, method: str
) -> None:
    assert getattr(operator, method)(action_url(credential, verb)).status_code == 405
    assert sandbox.token_requests == []
    assert credential.events.count() == 1


@pytest.mark.parametrize("verb", VERBS)
def test_action_returns_404_when_the_credential_is_deleted(operator: Client, verb: str) -> None:
    assert operator.post(f"{LIST}4711/{verb}/").status_code == 404


@pytest.mark.parametrize("verb", VERBS)
def test_action_requires_its_permission(
    sandbox: Sandbox, credential: Credential, verb: str
) -> None:
    other_permissions = {
        "view_credential",
        "connect_credential",
        "delete_credential",
        *MAY.values(),
    }
    client = client_for(user_who_may(*other_permissions - {MAY[verb]}))
    assert client.post(action_url(credential, verb)).status_code == 403
    assert client.get(action_url(credential, "disconnect")).status_code == (
        403 if verb == "disconnect" else 200
    )
    assert sandbox.token_requests == []
    assert credential.events.count() == 1


@pytest.mark.parametrize("verb", VERBS)
def test_action_requires_the_view_permission(
    sandbox: Sandbox, credential: Credential, verb: str
) -> None:
    client = client_for(user_who_may(MAY[verb]))
    assert client.post(action_url(credential, verb)).status_code == 403
    assert credential.events.count() == 1


@pytest.mark.parametrize("verb", VERBS)
def test_action_needs_only_the_view_permission_and_its_own(
    credential: Credential, verb: str
) -> None:
    client = client_for(user_who_may("view_credential", MAY[verb]))
    response = client.post(action_url(credential, verb))
    assert response.headers["Location"] == change_url(credential)
    assert credential.events.count() == 2
    assert credential.events.all()[0].user == User.objects.get()


@pytest.mark.parametrize("verb", VERBS)
def test_action_redirects_to_the_login_when_logged_out(
    sandbox: Sandbox, credential: Credential, verb: str
) -> None:
    response = client_for().post(action_url(credential, verb))
    assert response.headers["Location"].startswith("/admin/login/")
    assert credential.events.count() == 1


@pytest.mark.parametrize("verb", VERBS)
def test_action_runs_outside_atomic_requests(
    transactional_db: None,
    operator: Client,
    credential: Credential,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    (message,) = messages_of(operator.post(action_url(credential, verb)))
    assert message.startswith("success: ")
    assert credential.events.count() == 2


@pytest.mark.parametrize(
    ("codename", "buttons", "actions"),
    [
        ("connect_credential", ["Connect a Keap account", "Add a key", "Reconnect"], []),
        ("refresh_credential", ["Refresh now", "Test connection"], ["refresh_selected"]),
        ("disconnect_credential", ["Disconnect"], ["disconnect_selected"]),
        ("delete_credential", [], ["delete_selected"]),
    ],
)
def test_buttons_and_actions_follow_the_permissions(
    codename: str, buttons: list[str], actions: list[str]
) -> None:
    client = client_for(user_who_may("view_credential", codename))
    credential = account()
    tools = ""
    for url in (LIST, change_url(credential)):
        tools += "".join(
            re.findall(r'<ul class="object-tools">.*?</ul>', page(client, url), re.DOTALL)
        )
    found = re.findall(r"<(?:a|button)\b[^>]*>([^<]*)</(?:a|button)>", tools)
    assert [each for each in found if each != "History"] == buttons
    offered = re.findall(r'<option value="(\w+)"', page(client, LIST))
    assert offered == actions


def test_connecting_is_forbidden_without_its_permission(second: Application) -> None:
    other_permissions = ("view_credential", "delete_credential", *MAY.values())
    assert client_for(user_who_may(*other_permissions)).get(f"{LIST}add/").status_code == 403


# Refresh now


def test_refresh_returns_to_the_page_and_records_the_user(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    assert f'action="{action_url(credential, "refresh")}"' in page(
        operator, change_url(credential)
    )
    response = operator.post(action_url(credential, "refresh"))
    assert response.headers["Location"] == change_url(credential)
    assert messages_of(response) == ["success: Account ab123 has a new access token."]
    assert row(credential).generation == 2
    assert users_of_events("refreshed") == ["operator"]


def with_another_key(sandbox: Sandbox) -> Any:
    return override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY])


def with_a_wrong_secret(sandbox: Sandbox) -> Any:
    return override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong")


def without_a_client(sandbox: Sandbox) -> Any:
    return override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")


def with_a_revoked_grant(sandbox: Sandbox) -> Any:
    sandbox.revoke("ab123")
    return override_settings()


def with_fault(fault: Fault) -> Callable[[Sandbox], Any]:
    def plan(sandbox: Sandbox) -> Any:
        sandbox.plan(fault)
        return override_settings()

    return plan


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (with_another_key, "No key in INFUSIONSOFT_ENCRYPTION_KEYS can decrypt"),
        (with_a_wrong_secret, "check the client id and the client secret"),
        (without_a_client, "Set INFUSIONSOFT_CLIENT_ID"),
        (
            with_a_revoked_grant,
            "must be reconnected: Keap reports that the grant is no longer valid",
        ),
        (with_fault(faults.error_503()), "responded with HTTP 503"),
        (with_fault(faults.throttled(60)), "responded with HTTP 429"),
        (with_fault(faults.html()), "not a token response"),
        (with_fault(faults.drop_after()), "the reply was lost"),
    ],
)
def test_failed_refresh_shows_the_reason(
    operator: Client,
    sandbox: Sandbox,
    credential: Credential,
    failure: Callable[[Sandbox], Any],
    words: str,
) -> None:
    with failure(sandbox):
        response = operator.post(action_url(credential, "refresh"))
    (message,) = messages_of(response)
    assert message.startswith("error: Account ab123 was not refreshed.")
    assert words in message


def test_failed_attempt_records_the_user(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.error_503())
    operator.post(action_url(credential, "refresh"))
    sandbox.revoke("ab123")
    operator.post(action_url(credential, "refresh"))
    assert users_of_events("refresh_failed") == ["operator"]
    assert users_of_events("reauthorization_required") == ["operator"]


@pytest.mark.parametrize("verb", ["refresh", "test"])
def test_rejected_action_offers_to_reconnect(
    operator: Client, sandbox: Sandbox, connect: Connect, verb: str
) -> None:
    credential = connect(seconds_left=-1)
    sandbox.revoke("ab123")
    operator.post(action_url(credential, verb))
    html = page(operator, LIST)
    assert f'<a href="/infusionsoft/authorize/?credential={credential.pk}&amp;next=' in html
    assert ">Reconnect</a>" in html


@pytest.mark.parametrize("verb", ["refresh", "test"])
def test_rejected_action_has_no_link_without_the_connect_permission(
    sandbox: Sandbox, connect: Connect, verb: str
) -> None:
    client = client_for(user_who_may("view_credential", "refresh_credential"))
    credential = connect(seconds_left=-1)
    sandbox.revoke("ab123")
    (message,) = messages_of(client.post(action_url(credential, verb)))
    assert "must be reconnected" in message
    assert "<a" not in message


def test_page_has_no_refresh_button_when_the_account_must_be_reconnected(operator: Client) -> None:
    html = page(operator, change_url(account(**{**LOST, "reason": "expired"})))
    assert "Refresh now" not in html
    assert "Test connection" not in html
    assert ">Reconnect</a>" in html
    assert ">Disconnect</a>" in html


def test_account_can_be_refreshed_once_more_after_unanswered_attempts(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    lost = {**LOST, "reason": "unanswered"}
    Credential.objects.update(**lost, unanswered_attempts=2)
    assert ">Refresh now</button>" in page(operator, change_url(credential))
    operator.post(action_url(credential, "refresh"))
    assert row(credential).status == "connected"
    assert len(sandbox.token_requests) == 1


# Test connection


def test_successful_test_shows_account_user_and_duration(
    operator: Client, credential: Credential
) -> None:
    assert f'action="{action_url(credential, "test")}"' in page(operator, change_url(credential))
    response = operator.post(action_url(credential, "test"))
    assert response.headers["Location"] == change_url(credential)
    (message,) = messages_of(response)
    assert re.fullmatch(
        r"success: The connection works\. Keap's API confirmed account ab123 and user "
        r"ana@example\.test after \d+ ms\.",
        message,
    )
    assert users_of_events("tested") == ["operator"]
    assert "Connection test succeeded" in page(operator, change_url(credential))


def test_successful_test_is_shown_when_keap_returns_no_user(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.html(), endpoint="api")
    (message,) = messages_of(operator.post(action_url(credential, "test")))
    assert re.fullmatch(
        r"success: The connection works\. Keap's API responded for account ab123 after \d+ ms\.",
        message,
    )


def test_test_shows_the_account_that_keap_returns(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    answer = {"tenant_id": "cd456", "email": "ana@example.test"}
    sandbox.plan(faults.answer(200, answer), endpoint="api")
    (message,) = messages_of(operator.post(action_url(credential, "test")))
    assert "confirmed account cd456 and user ana@example.test" in message
    assert row(credential).account == "ab123"


@pytest.mark.parametrize("status", [401, 403, 503])
def test_failed_test_shows_the_http_status(
    operator: Client, sandbox: Sandbox, credential: Credential, status: int
) -> None:
    sandbox.plan(faults.answer(status, {}), endpoint="api", times=None)
    (message,) = messages_of(operator.post(action_url(credential, "test")))
    assert message.startswith(f"error: Keap's API responded with HTTP {status} after ")
    assert users_of_events("tested") == ["operator"]
    assert "Connection test failed" in page(operator, change_url(credential))


@pytest.mark.parametrize("fault", [faults.error_503(), faults.throttled(), faults.html()], ids=str)
def test_test_suggests_to_reconnect_only_when_the_access_token_is_rejected(
    operator: Client, sandbox: Sandbox, credential: Credential, fault: Fault
) -> None:
    sandbox.plan(fault, endpoint="api")
    operator.post(action_url(credential, "test"))
    sandbox.plan(faults.answer(403, {}), endpoint="api")
    others, rejected = messages_of(operator.post(action_url(credential, "test")))
    assert "reconnect" not in others
    assert rejected.endswith(
        "Try again in a minute. If the problem persists, reconnect the account."
    )


def test_test_reports_that_the_api_cannot_be_reached(
    operator: Client, credential: Credential
) -> None:
    with override_settings(INFUSIONSOFT_API_URL="http://127.0.0.1:1/"):
        (message,) = messages_of(operator.post(action_url(credential, "test")))
    assert message == (
        "error: Account ab123 cannot be used right now. "
        "Keap's API cannot be reached (ConnectionError)."
    )


def test_test_fails_when_the_account_is_disconnected(
    operator: Client, credential: Credential
) -> None:
    credential.disconnect()
    (message,) = messages_of(operator.post(action_url(credential, "test")))
    assert message.startswith(
        "error: Account ab123 cannot be used right now. ab123 must be reconnected"
    )


# Disconnect


def test_disconnect_asks_for_confirmation(operator: Client, credential: Credential) -> None:
    url = action_url(credential, "disconnect")
    Credential.objects.update(account_name="Acme Bakery")
    assert (url, "Disconnect") in links(page(operator, change_url(credential)))
    before = row(credential).__dict__
    html = page(operator, url)
    assert "<h1>Disconnect 1 Keap account?</h1>" in html
    assert "ab123: Acme Bakery" in plain(html)
    assert REVOKE in html
    assert (change_url(credential), "No, go back") in links(html)
    assert set(confirmation_form(html)) == {"csrfmiddlewaretoken", "confirmed"}
    after = row(credential).__dict__
    assert {name: after[name] for name in ("status", "generation", "refresh_at")} == {
        name: before[name] for name in ("status", "generation", "refresh_at")
    }
    assert credential.events.count() == 1


def test_disconnect_deletes_the_tokens_and_says_where_to_revoke_the_grant(
    operator: Client, credential: Credential
) -> None:
    url = action_url(credential, "disconnect")
    response = operator.post(url, confirmation_form(page(operator, url)))
    assert response.headers["Location"] == change_url(credential)
    (message,) = messages_of(response)
    assert message.startswith(
        "success: 1 account has been disconnected. Its tokens have been deleted from this "
        "site. Keap has no API"
    )
    assert REVOKE in message
    stored = row(credential)
    assert (stored.status, stored.access_token, stored.refresh_token) == ("disconnected", "", "")
    assert users_of_events("disconnected") == ["operator"]


@pytest.mark.parametrize("method", ["put", "delete", "patch"])
def test_disconnect_accepts_only_get_and_post(
    operator: Client, credential: Credential, method: str
) -> None:
    url = action_url(credential, "disconnect")
    assert getattr(operator, method)(url).status_code == 405
    assert operator.head(url).status_code == 200
    assert row(credential).status == "connected"


def test_disconnected_account_only_offers_to_reconnect(operator: Client) -> None:
    html = page(operator, change_url(account(**DISCONNECTED)))
    for words in (">Refresh now<", ">Test connection<", ">Disconnect<"):
        assert words not in html
    assert ">Reconnect</a>" in html
