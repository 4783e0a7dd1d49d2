"""A user connects and manages accounts in a real browser: admin, sandbox, and back."""

from typing import TYPE_CHECKING

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from pytest_django.live_server_helper import LiveServer

from django_infusionsoft.models import Application, Credential, CredentialEvent
from django_infusionsoft.sandbox import Sandbox, faults
from tests.system.browsing import LIST, decide, go_to_keap, open_account, press, reads
from tests.web import user_who_may

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.system.browsing import Open

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def page(open_page: "Open") -> "Page":
    """Open the admin's list of Keap accounts as a superuser."""
    return open_page(User.objects.create_superuser("admin"))


# Connect


def test_account_is_shown_in_the_admin_when_access_is_allowed(page: "Page") -> None:
    go_to_keap(page)
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    reads(page, "Acme Bakery")
    assert Credential.objects.for_account("ab123").get_access_token()


def test_nothing_is_connected_and_a_restart_is_offered_when_access_is_denied(page: "Page") -> None:
    go_to_keap(page)
    decide(page, "Acme Bakery", "Deny")
    reads(page, "Access was denied at Keap")
    assert not Credential.objects.exists()
    page.get_by_role("link", name="Start again").click()
    page.get_by_role("button", name="Continue to Keap").click()
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")


def test_link_to_the_admin_is_shown_when_access_is_denied(page: "Page") -> None:
    go_to_keap(page)
    decide(page, "Acme Bakery", "Deny")
    page.get_by_role("link", name="Back").click()
    reads(page, "No account is connected yet.")


def test_client_can_be_chosen_when_there_are_several(page: "Page") -> None:
    Application.objects.create(name="Second", client_id="other", client_secret="secret")
    page.get_by_role("link", name="Connect a Keap account").click()
    page.get_by_role("link", name="Client in the settings").click()
    page.get_by_role("button", name="Continue to Keap").click()
    page.get_by_role("button", name="Sign in as Ana").click()
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    assert Credential.objects.get().application is None


def test_second_account_is_connected_when_another_account_is_chosen(
    page: "Page", credential: Credential
) -> None:
    open_account(page, "ab123")
    page.get_by_role("link", name="Reconnect").click()
    page.get_by_role("button", name="Continue to Keap").click()
    page.get_by_role("button", name="Sign in as Ana").click()
    decide(page, "Blue Cycles")
    reads(page, "You chose account cd456 at Keap")
    accounts = Credential.objects.values_list("account", "generation").order_by("account")
    assert list(accounts) == [("ab123", 1), ("cd456", 1)]


def test_two_accounts_are_connected_in_two_tabs(page: "Page") -> None:
    other = page.context.new_page()
    other.goto(LIST)
    go_to_keap(page)
    other.get_by_role("link", name="Connect a Keap account").click()
    other.get_by_role("button", name="Continue to Keap").click()
    decide(other, "Blue Cycles")
    reads(other, "Account cd456 is connected.")
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    assert Credential.objects.count() == 2


def test_back_button_returns_to_the_start_after_connecting(page: "Page") -> None:
    go_to_keap(page)
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    # Skip Keap's pages: they were sent by POST, which Chromium does not repeat automatically.
    page.evaluate("history.go(-4)")
    page.get_by_role("button", name="Continue to Keap").click()
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    assert Credential.objects.get().generation == 2


def test_same_page_is_shown_when_the_callback_is_opened_twice(page: "Page") -> None:
    visited: list[str] = []
    page.on("request", lambda request: visited.append(request.url))
    go_to_keap(page)
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    (callback,) = [url for url in visited if reverse("django_infusionsoft:callback") in url]
    page.goto(callback)
    reads(page, "Account ab123 is connected.")
    assert Credential.objects.get().generation == 1


def test_message_is_shown_when_the_session_ended_at_keap(
    page: "Page", live_server: LiveServer
) -> None:
    go_to_keap(page)
    page.context.clear_cookies(name="sessionid")
    decide(page, "Acme Bakery")
    reads(page, "You are not logged in to this site")
    assert page.url.startswith(live_server.url)
    assert not Credential.objects.exists()


def test_login_is_shown_when_the_session_ended_in_the_admin(
    page: "Page", sandbox: Sandbox, credential: Credential
) -> None:
    open_account(page, "ab123")
    page.context.clear_cookies(name="sessionid")
    page.get_by_role("button", name="Refresh now").click()
    page.get_by_label("Password").wait_for()
    assert sandbox.token_requests == []


# One account


def test_access_token_is_replaced_by_refresh_now(page: "Page", credential: Credential) -> None:
    open_account(page, "ab123")
    page.get_by_role("button", name="Refresh now").click()
    reads(page, "Account ab123 has a new access token.")
    line = page.get_by_role("listitem").filter(has_text="Refreshed")
    line.get_by_text("by admin").wait_for()
    assert Credential.objects.get().generation == 2


def test_message_links_to_reconnecting_when_keap_rejects_a_refresh(
    page: "Page", sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke("ab123")
    open_account(page, "ab123")
    page.get_by_role("button", name="Refresh now").click()
    reads(page, "Press “Reconnect”, log in to Keap and choose this account.")
    page.locator(".messagelist").get_by_role("link", name="Reconnect").click()
    page.get_by_role("button", name="Continue to Keap").click()
    page.get_by_role("button", name="Sign in as Ana").click()
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    assert Credential.objects.connected().get().generation == 2


def test_connection_test_shows_the_answer_of_keap(page: "Page", credential: Credential) -> None:
    open_account(page, "ab123")
    page.get_by_role("button", name="Test connection").click()
    reads(page, "The connection works. Keap's API confirmed account")
    reads(page, "Connection test succeeded")


def test_connection_test_says_so_when_it_fails(
    page: "Page", sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.error_503(), endpoint="api")
    open_account(page, "ab123")
    page.get_by_role("button", name="Test connection").click()
    reads(page, "Keap's API responded with HTTP 503")


def test_disconnecting_asks_for_confirmation(page: "Page", credential: Credential) -> None:
    open_account(page, "ab123")
    page.get_by_role("link", name="Disconnect").click()
    reads(page, "Third-Party Authorizations")
    page.get_by_role("link", name="No, go back").click()
    reads(page, "Connected, but no worker is refreshing it.")
    assert Credential.objects.connected().exists()


def test_disconnected_account_says_so_and_can_be_reconnected(
    page: "Page", credential: Credential
) -> None:
    open_account(page, "ab123")
    page.get_by_role("link", name="Disconnect").click()
    page.get_by_role("button", name="Yes, disconnect").click()
    reads(page, "1 account has been disconnected")
    reads(page, "This account is disconnected. Its tokens have been deleted")
    assert not Credential.objects.connected().exists()
    page.get_by_role("link", name="Reconnect").click()
    page.get_by_role("button", name="Continue to Keap").click()
    page.get_by_role("button", name="Sign in as Ana").click()
    decide(page, "Acme Bakery")
    reads(page, "Connected, but no worker is refreshing it.")


def test_selected_accounts_are_disconnected_after_confirmation(
    page: "Page", connect_two: list[Credential]
) -> None:
    page.reload()
    page.locator("#action-toggle").check()
    page.get_by_label("Action:").select_option(label="Disconnect selected credentials")
    page.locator("#changelist-form").get_by_role("button").first.click()
    page.get_by_role("button", name="Yes, disconnect").click()
    reads(page, "2 accounts have been disconnected")
    assert not Credential.objects.connected().exists()


def test_summary_links_to_accounts_that_need_attention(
    page: "Page", connect_two: list[Credential]
) -> None:
    Credential.objects.filter(account="cd456").update(
        status="reauthorization_required", reason="revoked"
    )
    page.reload()
    page.get_by_role("link", name="1 needs attention").click()
    page.get_by_role("link", name="cd456").wait_for()
    assert page.get_by_role("link", name="ab123").count() == 0


def test_long_history_is_paginated(page: "Page", credential: Credential) -> None:
    CredentialEvent.objects.bulk_create(
        CredentialEvent(credential=credential, kind="refreshed", generation=number)
        for number in range(30)
    )
    open_account(page, "ab123")
    reads(page, "Page 1 of 2")
    page.get_by_role("link", name="Older").click()
    reads(page, "Imported from another client")
    page.get_by_role("link", name="Newer").click()
    reads(page, "Page 1 of 2")


# Permissions and keyboard


def test_user_with_view_permission_only_sees_no_button(
    open_page: "Open", credential: Credential
) -> None:
    page = open_page(user_who_may("view_credential"))
    assert page.get_by_role("link", name="Connect a Keap account").count() == 0
    open_account(page, "ab123")
    reads(page, "Connected, but no worker is refreshing it.")
    for name in ("Reconnect", "Refresh now", "Test connection", "Disconnect", "Delete"):
        assert page.get_by_text(name, exact=True).count() == 0


def test_message_is_shown_when_the_user_may_not_connect(open_page: "Open") -> None:
    page = open_page(user_who_may("view_credential"))
    page.goto(reverse("django_infusionsoft:authorize"))
    reads(page, "You are not allowed to connect Keap accounts")


def test_account_can_be_connected_with_the_keyboard_only(page: "Page") -> None:
    press(page, "Connect a Keap account".upper())
    page.get_by_role("button", name="Continue to Keap").wait_for()
    press(page, "Continue to Keap")
    page.get_by_role("button", name="Sign in as Ana").wait_for()
    press(page, "Sign in as Ana")
    page.get_by_role("button", name="Acme Bakery").wait_for()
    press(page, "Acme Bakery")
    page.get_by_role("button", name="Allow", exact=True).wait_for()
    press(page, "Allow")
    reads(page, "Account ab123 is connected.")


def test_account_can_be_refreshed_tested_and_disconnected_with_the_keyboard_only(
    page: "Page", credential: Credential
) -> None:
    open_account(page, "ab123")
    press(page, "REFRESH NOW")
    reads(page, "Account ab123 has a new access token.")
    press(page, "TEST CONNECTION")
    reads(page, "The connection works")
    press(page, "DISCONNECT")
    page.get_by_role("button", name="Yes, disconnect").wait_for()
    press(page, "Yes, disconnect")
    reads(page, "1 account has been disconnected")


# Applications


def test_wrong_secret_is_reported_and_can_be_replaced(
    page: "Page", credential: Credential
) -> None:
    application = Application.objects.create(
        name="Ours", client_id="sandbox-client", client_secret="wrong"
    )
    Credential.objects.update(application=application)
    open_account(page, "ab123")
    page.get_by_role("button", name="Refresh now").click()
    reads(page, "Keap rejects the client of this account's application.")
    page.goto(LIST)
    page.get_by_role("link", name="Ours: Keap rejects the client").click()
    reads(page, "in use by 1 credential")
    page.get_by_label("Client secret").fill("sandbox-secret")
    page.get_by_role("button", name="Save", exact=True).click()
    open_account(page, "ab123")
    page.get_by_role("button", name="Refresh now").click()
    reads(page, "Account ab123 has a new access token.")
    page.goto(reverse("admin:django_infusionsoft_application_change", args=[application.pk]))
    reads(page, "No known problem with this client.")
    assert page.get_by_label("Client secret").input_value() == ""
