"""A person's way through a real browser: admin, sandbox, and back."""

from typing import TYPE_CHECKING

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from pytest_django.live_server_helper import LiveServer

from django_infusionsoft.models import Application, Credential, CredentialEvent
from django_infusionsoft.sandbox import Sandbox, faults
from tests.browsing import LIST, decide, go_to_keap, open_account, press, reads
from tests.visits import user_who_may

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browsing import Open

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def page(open_page: "Open") -> "Page":
    """The admin's page of Keap accounts, opened by somebody who may do everything."""
    return open_page(User.objects.create_superuser("admin"))


# Connect


def test_allowing_ends_in_the_admin_with_the_account(page: "Page") -> None:
    go_to_keap(page)
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    reads(page, "Acme Bakery")
    assert Credential.objects.for_account("ab123").get_access_token()


def test_denying_connects_nothing_and_offers_to_start_again(page: "Page") -> None:
    go_to_keap(page)
    decide(page, "Acme Bakery", "Deny")
    reads(page, "Access was denied at Keap")
    assert not Credential.objects.exists()
    page.get_by_role("link", name="Start again").click()
    page.get_by_role("button", name="Continue to Keap").click()
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")


def test_denying_offers_the_way_back_to_the_admin(page: "Page") -> None:
    go_to_keap(page)
    decide(page, "Acme Bakery", "Deny")
    page.get_by_role("link", name="Back").click()
    reads(page, "No account is connected yet.")


def test_client_is_chosen_where_there_are_several(page: "Page") -> None:
    Application.objects.create(name="Second", client_id="other", client_secret="secret")
    page.get_by_role("link", name="Connect a Keap account").click()
    page.get_by_role("link", name="Client in the settings").click()
    page.get_by_role("button", name="Continue to Keap").click()
    page.get_by_role("button", name="Sign in as Ana").click()
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    assert Credential.objects.get().application is None


def test_another_account_chosen_is_connected_beside_the_first(
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


def test_two_tabs_connect_two_accounts(page: "Page") -> None:
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


def test_back_button_after_connecting_leads_to_where_it_began(page: "Page") -> None:
    go_to_keap(page)
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    # Past Keap's pages, which came by POST and which Chromium does not send again by itself.
    page.evaluate("history.go(-4)")
    page.get_by_role("button", name="Continue to Keap").click()
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    assert Credential.objects.get().generation == 2


def test_way_back_taken_a_second_time_changes_nothing(page: "Page") -> None:
    visited: list[str] = []
    page.on("request", lambda request: visited.append(request.url))
    go_to_keap(page)
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    (callback,) = [url for url in visited if reverse("django_infusionsoft:callback") in url]
    page.goto(callback)
    reads(page, "It was completed already")
    assert Credential.objects.get().generation == 1


def test_session_that_ended_at_keap_is_told(page: "Page", live_server: LiveServer) -> None:
    go_to_keap(page)
    page.context.clear_cookies(name="sessionid")
    decide(page, "Acme Bakery")
    reads(page, "You are not logged in here")
    assert page.url.startswith(live_server.url)
    assert not Credential.objects.exists()


def test_session_that_ended_in_the_admin_leads_to_the_login(
    page: "Page", sandbox: Sandbox, credential: Credential
) -> None:
    open_account(page, "ab123")
    page.context.clear_cookies(name="sessionid")
    page.get_by_role("button", name="Refresh now").click()
    page.get_by_label("Password").wait_for()
    assert sandbox.token_requests == []


# One account


def test_refresh_now_brings_a_new_access_token(page: "Page", credential: Credential) -> None:
    open_account(page, "ab123")
    page.get_by_role("button", name="Refresh now").click()
    reads(page, "Account ab123 has a new access token.")
    line = page.get_by_role("listitem").filter(has_text="Refreshed")
    line.get_by_text("by admin").wait_for()
    assert Credential.objects.get().generation == 2


def test_refresh_that_keap_refuses_is_mended_by_the_link_in_the_message(
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


def test_test_of_a_connection_shows_what_keap_answers(
    page: "Page", credential: Credential
) -> None:
    open_account(page, "ab123")
    page.get_by_role("button", name="Test connection").click()
    reads(page, "The connection works: Keap's API answered after")
    reads(page, "Connection tested: it works")


def test_test_of_a_connection_that_does_not_work_says_so(
    page: "Page", sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.error_503(), endpoint="api")
    open_account(page, "ab123")
    page.get_by_role("button", name="Test connection").click()
    reads(page, "Keap's API answered HTTP 503")


def test_disconnecting_asks_first(page: "Page", credential: Credential) -> None:
    open_account(page, "ab123")
    page.get_by_role("link", name="Disconnect").click()
    reads(page, "Third-Party Authorizations")
    page.get_by_role("link", name="No, go back").click()
    reads(page, "This account is connected")
    assert Credential.objects.connected().exists()


def test_disconnected_account_says_so_and_can_be_connected_again(
    page: "Page", credential: Credential
) -> None:
    open_account(page, "ab123")
    page.get_by_role("link", name="Disconnect").click()
    page.get_by_role("button", name="Yes, disconnect").click()
    reads(page, "1 account is disconnected")
    reads(page, "This account is disconnected: its tokens are forgotten")
    assert not Credential.objects.connected().exists()
    page.get_by_role("link", name="Reconnect").click()
    page.get_by_role("button", name="Continue to Keap").click()
    page.get_by_role("button", name="Sign in as Ana").click()
    decide(page, "Acme Bakery")
    reads(page, "This account is connected")


def test_selected_accounts_are_disconnected_after_a_question(
    page: "Page", connect_two: list[Credential]
) -> None:
    page.reload()
    page.locator("#action-toggle").check()
    page.get_by_label("Action:").select_option(label="Disconnect selected credentials")
    page.locator("#changelist-form").get_by_role("button").first.click()
    page.get_by_role("button", name="Yes, disconnect").click()
    reads(page, "2 accounts are disconnected")
    assert not Credential.objects.connected().exists()


def test_summary_leads_to_those_that_need_attention(
    page: "Page", connect_two: list[Credential]
) -> None:
    Credential.objects.filter(account="cd456").update(
        status="reauthorization_required", reason="revoked"
    )
    page.reload()
    page.get_by_role("link", name="1 needs attention").click()
    page.get_by_role("link", name="cd456").wait_for()
    assert page.get_by_role("link", name="ab123").count() == 0


def test_long_life_is_paged(page: "Page", credential: Credential) -> None:
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


# Who may not, and who has no mouse


def test_who_may_only_view_finds_no_button(open_page: "Open", credential: Credential) -> None:
    page = open_page(user_who_may("view_credential"))
    assert page.get_by_role("link", name="Connect a Keap account").count() == 0
    open_account(page, "ab123")
    reads(page, "This account is connected")
    for name in ("Reconnect", "Refresh now", "Test connection", "Disconnect", "Delete"):
        assert page.get_by_text(name, exact=True).count() == 0


def test_who_may_not_connect_is_told_on_the_way(open_page: "Open") -> None:
    page = open_page(user_who_may("view_credential"))
    page.goto(reverse("django_infusionsoft:authorize"))
    reads(page, "You may not connect Keap accounts")


def test_keyboard_alone_connects_an_account(page: "Page") -> None:
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


def test_keyboard_alone_refreshes_tests_and_disconnects(
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
    reads(page, "1 account is disconnected")


# Applications


def test_wrong_secret_is_said_and_replaced(page: "Page", credential: Credential) -> None:
    application = Application.objects.create(
        name="Ours", client_id="sandbox-client", client_secret="wrong"
    )
    Credential.objects.update(application=application)
    open_account(page, "ab123")
    page.get_by_role("button", name="Refresh now").click()
    reads(page, "Keap refuses the client of this account's application.")
    page.goto(LIST)
    page.get_by_role("link", name="Ours: Keap refuses the client").click()
    reads(page, "in use by 1 credential")
    page.get_by_label("Client secret").fill("sandbox-secret")
    page.get_by_role("button", name="Save", exact=True).click()
    open_account(page, "ab123")
    page.get_by_role("button", name="Refresh now").click()
    reads(page, "Account ab123 has a new access token.")
    page.goto(reverse("admin:django_infusionsoft_application_change", args=[application.pk]))
    reads(page, "Keap takes this client, as far as is known.")
    assert page.get_by_label("Client secret").input_value() == ""
