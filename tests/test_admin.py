"""The admin: what it shows, who may do what, and that no secret is in any page."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import time_machine
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.contrib.messages import get_messages
from django.db import connections
from django.test import Client, override_settings
from django.urls import include, path, reverse
from django.utils import timezone

from django_infusionsoft.admin import ApplicationAdmin, CredentialAdmin
from django_infusionsoft.admin.credentials import HISTORY_LINES, MAX_REFRESHED_AT_ONCE
from django_infusionsoft.history import fingerprint
from django_infusionsoft.models import Application, Credential, CredentialEvent
from django_infusionsoft.rows import process_name
from django_infusionsoft.sandbox import Fault, Sandbox, faults
from tests.visits import travel, user_who_may, visitor

pytestmark = pytest.mark.django_db

Connect = Callable[..., Credential]
OTHER_KEY = "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q="
LIST = "/admin/django_infusionsoft/credential/"
APPLICATIONS = "/admin/django_infusionsoft/application/"
EVENTS = "/admin/django_infusionsoft/credentialevent/"

# A second admin site, with accounts and applications and without their history
backoffice = admin.AdminSite(name="backoffice")
backoffice.register(Credential, CredentialAdmin)
backoffice.register(Application, ApplicationAdmin)
urlpatterns = [
    path("backoffice/", backoffice.urls),
    path("admin/", admin.site.urls),
    path("infusionsoft/", include("django_infusionsoft.urls")),
]


@pytest.fixture
def operator() -> Client:
    """The browser of somebody who may do everything."""
    return visitor(User.objects.create_superuser("operator"))


@pytest.fixture
def application() -> Application:
    return Application.objects.create(
        name="ours", client_id="sandbox-client", client_secret="sandbox-secret"
    )


def page(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200
    return response.content.decode()


def page_of(credential: Credential) -> str:
    return f"{LIST}{credential.pk}/change/"


def refresh_of(credential: Credential) -> str:
    return f"{LIST}{credential.pk}/refresh/"


def messages_of(response: Any) -> list[str]:
    return [f"{each.level_tag}: {each.message}" for each in get_messages(response.wsgi_request)]


def refresh_selected(client: Client, *credentials: Credential) -> Any:
    ids = [credential.pk for credential in credentials]
    return client.post(LIST, {"action": "refresh_selected", "_selected_action": ids})


def many(connect: Connect, count: int) -> None:
    """Make copies of a credential, each with an application, and a person in its history."""
    pair = connect().__dict__
    names = ("access_token", "refresh_token", "issued_at", "expires_at", "connected_at")
    columns = {name: pair[name] for name in names}
    application, _ = Application.objects.get_or_create(name="many", client_id="many")
    user, _ = User.objects.get_or_create(username="somebody")
    made = Credential.objects.bulk_create(
        Credential(account=f"x{number}", application=application, **columns)
        for number in range(count)
    )
    CredentialEvent.objects.bulk_create(
        CredentialEvent(credential=each, kind="refreshed", generation=1, user=user)
        for each in made
    )


# The list


def test_list_tells_account_status_and_times(operator: Client, credential: Credential) -> None:
    Credential.objects.update(account_name="Acme Bakery")
    html = page(operator, LIST)
    for words in ("ab123", "Acme Bakery", "connected", "Expires", "Last refresh", "Next refresh"):
        assert words in html


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (22.5 * 3600, "in 22\xa0hours"),
        (119, "in 119 seconds"),
        (1, "in 1 second"),
        (0, "0 seconds ago"),
        (-1, "1 second ago"),
        (-130, "2\xa0minutes ago"),
        (-3 * 86400, "3\xa0days ago"),
    ],
)
def test_times_are_told_as_seen_from_now(
    operator: Client, credential: Credential, seconds: float, words: str
) -> None:
    with time_machine.travel(timezone.now(), tick=False):
        Credential.objects.update(expires_at=timezone.now() + timedelta(seconds=seconds))
        assert f">{words}</time>" in page(operator, LIST)


def test_time_that_is_not_set_is_told_as_none(operator: Client, credential: Credential) -> None:
    Credential.objects.update(refresh_at=None)
    assert '<td class="field-next_refresh">-</td>' in page(operator, LIST)


@pytest.mark.parametrize(
    ("columns", "words", "icon"),
    [
        ({}, "connected", "icon-yes"),
        ({"failures": 2}, "retrying", "icon-alert"),
        ({"status": "reauthorization_required"}, "needs attention", "icon-no"),
    ],
)
def test_status_is_told_in_words_beside_its_icon(
    operator: Client, credential: Credential, columns: dict[str, Any], words: str, icon: str
) -> None:
    Credential.objects.update(**columns)
    for url in (LIST, page_of(credential)):
        assert f'{icon}.svg" alt=""> {words}</span>' in page(operator, url)


def test_list_needs_as_many_queries_for_many_as_for_few(
    operator: Client, connect: Connect, django_assert_num_queries: Any
) -> None:
    many(connect, 2)
    with django_assert_num_queries(6):
        page(operator, LIST)
    Credential.objects.exclude(account="ab123").delete()
    many(connect, 60)
    with django_assert_num_queries(6):
        page(operator, LIST)


def test_list_reads_no_token(
    operator: Client, credential: Credential, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(10) as queries:
        page(operator, LIST)
    read = " ".join(query["sql"] for query in queries.captured_queries)
    assert "last_error" in read
    assert "refresh_token" not in read


def test_list_of_events_needs_as_many_queries_for_many_as_for_few(
    operator: Client, connect: Connect, django_assert_max_num_queries: Any
) -> None:
    many(connect, 60)
    with django_assert_max_num_queries(5):
        page(operator, EVENTS)


@pytest.mark.parametrize("keys", [[OTHER_KEY], []])
def test_pages_decrypt_nothing(
    operator: Client, credential: Credential, application: Application, keys: list[str]
) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=keys):
        for url in (
            LIST,
            page_of(credential),
            f"{LIST}{credential.pk}/delete/",
            EVENTS,
            APPLICATIONS,
            f"{APPLICATIONS}{application.pk}/change/",
        ):
            page(operator, url)


@pytest.mark.parametrize("query", ["?q=ab123", "?q=acme", "?q=ana%40", "?status=connected"])
def test_list_finds_accounts(operator: Client, credential: Credential, query: str) -> None:
    Credential.objects.update(account_name="Acme Bakery", keap_user="ana@example.test")
    assert "ab123" in page(operator, LIST + query)


@pytest.mark.parametrize("query", ["?q=zz", "?status=reauthorization_required"])
def test_list_leaves_out_what_does_not_fit(
    operator: Client, credential: Credential, query: str
) -> None:
    assert "ab123" not in page(operator, LIST + query)


# Connect


def test_button_connects_an_account_and_leads_back_to_the_list(
    operator: Client, sandbox: Sandbox
) -> None:
    url = f"/infusionsoft/authorize/?next={LIST.replace('/', '%2F')}"
    assert f'<a href="{url}" class="addlink">Connect a Keap account</a>' in page(operator, LIST)
    response = travel(operator, sandbox, next=LIST)
    assert response.headers["Location"] == LIST
    assert "Account ab123 is connected." in page(operator, LIST)


def test_adding_a_credential_is_connecting_an_account(operator: Client) -> None:
    response = operator.get(LIST + "add/")
    assert response.headers["Location"].startswith("/infusionsoft/authorize/?next=")


def test_reconnecting_names_the_credential_and_leads_back_to_its_page(
    operator: Client, credential: Credential
) -> None:
    query = f"?credential={credential.pk}&amp;next={page_of(credential).replace('/', '%2F')}"
    assert f'<a href="/infusionsoft/authorize/{query}">Reconnect</a>' in page(
        operator, page_of(credential)
    )


# One credential


def test_page_of_a_credential_can_change_nothing(operator: Client, credential: Credential) -> None:
    html = page(operator, page_of(credential))
    assert 'name="_save"' not in html
    assert operator.post(page_of(credential), {"account": "zz999"}).status_code == 403
    assert Credential.objects.get().account == "ab123"


def test_page_of_a_credential_tells_its_history(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.error_503())
    operator.post(refresh_of(credential))
    html = page(operator, page_of(credential))
    assert "imported" in html
    assert "refresh failed" in html
    assert "answered HTTP 503" in html
    assert f'href="{EVENTS}?credential__id__exact={credential.pk}"' in html


def test_page_of_a_credential_tells_only_the_latest_of_a_long_history(
    operator: Client, credential: Credential
) -> None:
    for number in range(HISTORY_LINES + 5):
        credential.events.create(kind="refreshed", generation=1, detail=f"number {number}.")
    html = page(operator, page_of(credential))
    assert html.count("<td>refreshed</td>") == HISTORY_LINES
    assert f"number {HISTORY_LINES + 4}." in html
    assert "number 4." not in html


def test_long_history_needs_as_many_queries_as_a_short_one(
    operator: Client, connect: Connect, django_assert_num_queries: Any
) -> None:
    many(connect, 1)
    (credential,) = Credential.objects.filter(account="x0")
    user = User.objects.get(username="somebody")
    with django_assert_num_queries(5):
        page(operator, page_of(credential))
    for _ in range(10):
        credential.events.create(kind="refreshed", generation=1, user=user)
    with django_assert_num_queries(5):
        page(operator, page_of(credential))


def test_whole_history_is_that_of_one_credential(operator: Client, connect: Connect) -> None:
    mine, other = connect("ab123"), connect("cd456")
    html = page(operator, f"{EVENTS}?credential__id__exact={mine.pk}")
    assert "ab123" in html
    assert "cd456" not in html
    assert other.events.exists()


def test_unknown_credential_is_told(operator: Client) -> None:
    response = operator.get(LIST + "4711/change/")
    assert response.status_code == 302
    assert "4711" in messages_of(response)[0]


def test_page_of_a_credential_tells_why_it_needs_attention(
    operator: Client, credential: Credential
) -> None:
    Credential.objects.update(
        status="reauthorization_required", reason="revoked", last_error="It was used."
    )
    html = page(operator, page_of(credential))
    assert "needs attention</span>: Keap says that the grant has ended" in html
    assert "It was used." in html


# Refresh now


def test_button_refreshes_and_leads_back(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    assert f'action="{refresh_of(credential)}"' in page(operator, page_of(credential))
    response = operator.post(refresh_of(credential))
    assert response.headers["Location"] == page_of(credential)
    assert messages_of(response) == ["success: Account ab123 has a new access token."]
    assert Credential.objects.get().generation == 2


def test_refresh_takes_post_only(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    assert operator.get(refresh_of(credential)).status_code == 405
    assert sandbox.token_requests == []


def test_refresh_by_a_form_of_another_site_is_refused(
    sandbox: Sandbox, credential: Credential
) -> None:
    client = visitor(User.objects.create_superuser("operator"), enforce_csrf_checks=True)
    assert client.post(refresh_of(credential)).status_code == 403
    assert sandbox.token_requests == []


def test_refresh_of_a_deleted_credential_is_not_found(operator: Client) -> None:
    assert operator.post(LIST + "4711/refresh/").status_code == 404


@pytest.mark.django_db(transaction=True)
def test_refresh_is_outside_atomic_requests(
    operator: Client, credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    response = operator.post(refresh_of(credential))
    assert messages_of(response) == ["success: Account ab123 has a new access token."]


def no_key_opens(sandbox: Sandbox) -> Any:
    return override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY])


def client_is_wrong(sandbox: Sandbox) -> Any:
    return override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong")


def client_is_missing(sandbox: Sandbox) -> Any:
    return override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")


def keap_refuses(sandbox: Sandbox) -> Any:
    sandbox.revoke("ab123")
    return override_settings()


def planned(fault: Fault) -> Callable[[Sandbox], Any]:
    def plan(sandbox: Sandbox) -> Any:
        sandbox.plan(fault)
        return override_settings()

    return plan


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (no_key_opens, "No key in INFUSIONSOFT_ENCRYPTION_KEYS opens"),
        (client_is_wrong, "check the client id and the client secret"),
        (client_is_missing, "Set INFUSIONSOFT_CLIENT_ID"),
        (keap_refuses, "must be connected again: Keap says that the grant has ended"),
        (planned(faults.error_503()), "answered HTTP 503"),
        (planned(faults.throttled(60)), "answered HTTP 429"),
        (planned(faults.html()), "no token reply"),
        (planned(faults.drop_after()), "the answer was lost"),
    ],
)
def test_refresh_that_fails_says_why(
    operator: Client,
    sandbox: Sandbox,
    credential: Credential,
    trouble: Callable[[Sandbox], Any],
    words: str,
) -> None:
    with trouble(sandbox):
        response = operator.post(refresh_of(credential))
    (message,) = messages_of(response)
    assert message.startswith("error: Account ab123 was not refreshed.")
    assert words in message


def test_refused_refresh_offers_to_reconnect(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke("ab123")
    operator.post(refresh_of(credential))
    html = page(operator, LIST)
    assert f'<a href="/infusionsoft/authorize/?credential={credential.pk}&amp;next=' in html
    assert ">Reconnect</a>" in html


def test_refused_refresh_offers_nothing_to_who_may_not_connect(
    sandbox: Sandbox, credential: Credential
) -> None:
    client = visitor(user_who_may("view_credential", "refresh_credential"))
    sandbox.revoke("ab123")
    (message,) = messages_of(client.post(refresh_of(credential)))
    assert "must be connected again" in message
    assert "<a" not in message


def test_credential_that_needs_a_person_has_no_refresh_button(
    operator: Client, credential: Credential
) -> None:
    Credential.objects.update(status="reauthorization_required", reason="revoked")
    html = page(operator, page_of(credential))
    assert "Refresh now" not in html
    assert "Reconnect" in html


def test_credential_whose_attempts_had_no_answer_can_be_refreshed_once_more(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    Credential.objects.update(
        status="reauthorization_required", reason="unanswered", unanswered_attempts=2
    )
    assert "Refresh now" in page(operator, page_of(credential))
    operator.post(refresh_of(credential))
    assert Credential.objects.get().status == "connected"
    assert len(sandbox.token_requests) == 1


def test_disconnected_credential_says_so_and_offers_to_reconnect(
    operator: Client, credential: Credential
) -> None:
    credential.disconnect()
    html = page(operator, page_of(credential))
    assert "infusionsoft-disconnected" in html
    assert "Refresh now" not in html
    assert "Reconnect" in html
    assert "disconnected" in page(operator, LIST)


def test_history_is_searched_by_the_fingerprint_of_a_refresh_token(
    operator: Client, credential: Credential, connect: Connect
) -> None:
    connect("cd456").refresh()
    presented = fingerprint(credential.refresh_token)
    credential.refresh()
    html = page(operator, f"{EVENTS}?q={presented}")
    assert presented in html
    assert process_name() in html
    assert "2 credential events" in html  # its import and its refresh


# Refresh selected


def test_action_refreshes_what_is_selected(
    operator: Client, sandbox: Sandbox, connect: Connect
) -> None:
    first, second, third = connect("ab123"), connect("cd456"), connect("ef789")
    response = refresh_selected(operator, first, third)
    assert response.status_code == 302
    assert messages_of(response) == [
        "success: Account ab123 has a new access token.",
        "success: Account ef789 has a new access token.",
    ]
    generations = Credential.objects.order_by("account").values_list("generation", flat=True)
    assert list(generations) == [2, 1, 2]
    assert second.pk


def test_action_goes_on_after_an_account_that_keap_refuses(
    operator: Client, sandbox: Sandbox, connect: Connect
) -> None:
    first, second = connect("ab123"), connect("cd456")
    sandbox.revoke("ab123")
    messages = messages_of(refresh_selected(operator, first, second))
    assert [each.partition(":")[0] for each in messages] == ["error", "success"]


def test_action_ends_where_keap_is_down(
    operator: Client, sandbox: Sandbox, connect: Connect
) -> None:
    credentials = [connect(account) for account in ("ab123", "cd456", "ef789")]
    sandbox.plan(faults.error_503(), times=None)
    messages = messages_of(refresh_selected(operator, *credentials))
    assert messages[1:] == ["warning: 2 more accounts were left as they are."]
    assert len(sandbox.token_requests) == 1


def test_action_refuses_more_than_a_request_can_take(
    operator: Client, sandbox: Sandbox, connect: Connect
) -> None:
    many(connect, MAX_REFRESHED_AT_ONCE)
    (message,) = messages_of(refresh_selected(operator, *Credential.objects.all()))
    assert message.startswith(f"error: Select at most {MAX_REFRESHED_AT_ONCE}")
    assert sandbox.token_requests == []


# Permissions


def test_who_may_only_view_sees_no_button(credential: Credential) -> None:
    client = visitor(user_who_may("view_credential"))
    for url in (LIST, page_of(credential)):
        html = page(client, url)
        for words in ("Connect a Keap account", "Reconnect", "Refresh", "delete_selected"):
            assert words not in html
        assert EVENTS not in html


def test_who_may_only_view_can_do_nothing(sandbox: Sandbox, credential: Credential) -> None:
    client = visitor(user_who_may("view_credential"))
    assert client.get(LIST + "add/").status_code == 403
    assert client.post(refresh_of(credential)).status_code == 403
    assert client.get(f"{LIST}{credential.pk}/delete/").status_code == 403
    refresh_selected(client, credential)
    assert sandbox.token_requests == []


def test_who_may_add_can_connect_and_not_refresh(credential: Credential) -> None:
    client = visitor(user_who_may("view_credential", "connect_credential"))
    assert "Connect a Keap account" in page(client, LIST)
    html = page(client, page_of(credential))
    assert "Reconnect" in html
    assert "Refresh now" not in html
    assert client.post(refresh_of(credential)).status_code == 403


def test_who_may_refresh_can_refresh_and_not_connect(credential: Credential) -> None:
    client = visitor(user_who_may("view_credential", "refresh_credential"))
    html = page(client, page_of(credential))
    assert "Refresh now" in html
    assert "Reconnect" not in html
    assert "refresh_selected" in page(client, LIST)
    assert client.post(refresh_of(credential)).status_code == 302
    assert client.get(LIST + "add/").status_code == 403


def test_who_may_refresh_but_not_view_cannot_refresh(
    sandbox: Sandbox, credential: Credential
) -> None:
    client = visitor(user_who_may("refresh_credential"))
    assert client.post(refresh_of(credential)).status_code == 403
    assert sandbox.token_requests == []


def test_visitor_is_sent_to_the_login(sandbox: Sandbox, credential: Credential) -> None:
    response = visitor().post(refresh_of(credential))
    assert response.headers["Location"].startswith("/admin/login/")
    assert sandbox.token_requests == []


# Delete


def test_deleting_a_credential_takes_its_history_along(
    operator: Client, credential: Credential
) -> None:
    url = f"{LIST}{credential.pk}/delete/"
    assert "Are you sure" in page(operator, url)
    operator.post(url, {"post": "yes"})
    assert not Credential.objects.exists()
    assert not CredentialEvent.objects.exists()


def test_application_in_use_cannot_be_deleted(
    operator: Client, credential: Credential, application: Application
) -> None:
    Credential.objects.update(application=application)
    url = f"{APPLICATIONS}{application.pk}/delete/"
    assert "would require deleting the following protected related objects" in page(operator, url)
    operator.post(url, {"post": "yes"})
    assert Application.objects.exists()


def test_unused_application_can_be_deleted(operator: Client, application: Application) -> None:
    operator.post(f"{APPLICATIONS}{application.pk}/delete/", {"post": "yes"})
    assert not Application.objects.exists()


# The history


@pytest.mark.parametrize("page", ["add/", "{}/delete/"])
def test_history_cannot_be_written(operator: Client, credential: Credential, page: str) -> None:
    assert operator.get(EVENTS + page.format(credential.events.get().pk)).status_code == 403


def test_event_can_be_read_and_not_changed(operator: Client, credential: Credential) -> None:
    url = f"{EVENTS}{credential.events.get().pk}/change/"
    assert "imported" in page(operator, url)
    assert operator.post(url, {"kind": "refreshed"}).status_code == 403


# Applications


def save_application(client: Client, url: str, **values: str) -> Any:
    form = {"name": "ours", "client_id": "sandbox-client", "new_secret": ""}
    return client.post(APPLICATIONS + url, form | values)


@pytest.mark.parametrize("secret", ["plain", "with spaces in it", "$&<>\"'%{}", "zażółć"])
def test_secret_of_a_new_application_is_stored_as_it_is(operator: Client, secret: str) -> None:
    assert save_application(operator, "add/", new_secret=secret).status_code == 302
    assert Application.objects.get().client_secret == secret


def test_new_application_needs_a_secret(operator: Client) -> None:
    response = save_application(operator, "add/")
    assert "This field is required" in response.content.decode()
    assert not Application.objects.exists()


def test_empty_secret_keeps_the_stored_one(operator: Client, application: Application) -> None:
    save_application(operator, f"{application.pk}/change/", name="renamed")
    stored = Application.objects.get()
    assert (stored.name, stored.client_secret) == ("renamed", "sandbox-secret")


def test_new_secret_replaces_the_stored_one(operator: Client, application: Application) -> None:
    save_application(operator, f"{application.pk}/change/", new_secret="new")
    assert Application.objects.get().client_secret == "new"


def test_secret_that_no_key_opens_survives_a_change_of_the_name(
    operator: Client, application: Application
) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]):
        save_application(operator, f"{application.pk}/change/", name="renamed")
    stored = Application.objects.get()
    assert (stored.name, stored.client_secret) == ("renamed", "sandbox-secret")


@override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[])
def test_secret_without_an_encryption_key_is_an_error_of_the_form(operator: Client) -> None:
    response = save_application(operator, "add/", new_secret="secret-of-ours")
    assert "infusionsoft_key" in response.content.decode()
    assert "secret-of-ours" not in response.content.decode()
    assert not Application.objects.exists()


def test_application_can_be_looked_at_by_who_may_not_change_it(application: Application) -> None:
    client = visitor(user_who_may("view_application"))
    html = page(client, f"{APPLICATIONS}{application.pk}/change/")
    assert "sandbox-client" in html
    assert "secret" not in html  # an empty place for it would say that there is none


def test_second_default_application_takes_the_place_of_the_first(
    operator: Client, application: Application
) -> None:
    Application.objects.create(name="old", client_id="x", client_secret="y", is_default=True)
    save_application(operator, f"{application.pk}/change/", is_default="on")
    assert Application.objects.get(is_default=True) == application


# Secrets


def test_no_secret_is_in_any_page(
    operator: Client, sandbox: Sandbox, credential: Credential, application: Application
) -> None:
    operator.post(refresh_of(credential))
    save_application(operator, f"{application.pk}/change/", new_secret="secret-of-ours")
    save_application(operator, f"{application.pk}/change/", name="", new_secret="second-one")
    credential.refresh_from_db()
    secrets = [
        credential.access_token,
        credential.refresh_token,
        "sandbox-secret",
        "secret-of-ours",
        *(str(credential.__dict__[name].value) for name in ("access_token", "refresh_token")),
    ]
    mine = [LIST, EVENTS, APPLICATIONS, "/admin/", "/admin/django_infusionsoft/"]
    for url, pk in ((LIST, credential.pk), (APPLICATIONS, application.pk)):
        mine += [f"{url}{pk}/{name}/" for name in ("change", "delete", "history")]
    mine += [f"{EVENTS}{event.pk}/change/" for event in credential.events.all()]
    told = [page(operator, url) for url in mine]
    told += [f"{entry} {entry.change_message}" for entry in LogEntry.objects.all()]
    assert LogEntry.objects.exists()
    assert [secret for secret in secrets if secret in " ".join(told)] == []


def test_secret_typed_into_a_form_with_an_error_does_not_come_back(operator: Client) -> None:
    response = save_application(operator, "add/", name="", new_secret="secret-of-ours")
    assert response.status_code == 200
    assert "secret-of-ours" not in response.content.decode()


@pytest.mark.parametrize("name", ["access_token", "refresh_token", "client_secret"])
def test_secrets_cannot_be_searched_for_by_the_address(
    operator: Client, credential: Credential, name: str
) -> None:
    for url in (LIST, APPLICATIONS):
        for lookup in ("", "__startswith", "__contains"):
            assert operator.get(f"{url}?{name}{lookup}=a").status_code in (302, 400)


# Another admin site


@pytest.mark.urls(__name__)
def test_second_admin_site_stays_with_itself(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    url = reverse("backoffice:django_infusionsoft_credential_changelist")
    assert "next=%2Fbackoffice%2F" in page(operator, url)
    html = page(operator, f"{url}{credential.pk}/change/")
    assert f'action="{url}{credential.pk}/refresh/"' in html
    assert 'href="/admin/' not in html
    response = operator.post(f"{url}{credential.pk}/refresh/")
    assert response.headers["Location"] == f"{url}{credential.pk}/change/"
    next_url = parse_qs(urlsplit(operator.get(url + "add/").headers["Location"]).query)["next"]
    assert next_url == [url]
