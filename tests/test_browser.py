"""A person's way through a real browser: admin, sandbox, and back."""

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from pytest_django.live_server_helper import LiveServer

from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

LIST = "/admin/django_infusionsoft/credential/"
STRICT_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'"


@pytest.fixture
def page(browser: "Browser", live_server: LiveServer, sandbox: Sandbox) -> "Iterator[Page]":
    """The admin's page of Keap accounts, opened by somebody who may do everything."""
    client = Client()
    client.force_login(User.objects.create_superuser("admin"))
    session = client.cookies["sessionid"].value
    with closing(browser.new_context(base_url=live_server.url)) as context:
        context.set_default_timeout(10_000)
        context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])
        page = context.new_page()
        page.goto(LIST)
        yield page


def go_to_keap(page: "Page") -> None:
    """Leave the admin's list for the sandbox's page of accounts."""
    page.get_by_role("link", name="Connect a Keap account").click()
    page.get_by_role("button", name="Continue to Keap").click()
    page.get_by_role("button", name="Sign in as Ana").click()


def decide(page: "Page", account: str, decision: str = "Allow") -> None:
    page.get_by_role("button", name=account).click()
    page.get_by_role("button", name=decision, exact=True).click()


def open_account(page: "Page", account: str) -> None:
    page.get_by_role("link", name=account).click()
    page.get_by_role("heading", name=account).wait_for()


def pages_of(credential: Credential) -> list[str]:
    """Return the addresses of all that this app shows."""
    return [
        LIST,
        reverse("admin:django_infusionsoft_credential_change", args=[credential.pk]),
        reverse("django_infusionsoft:authorize"),
        reverse("django_infusionsoft:callback"),
    ]


def reads(page: "Page", words: str) -> None:
    page.get_by_text(words).first.wait_for()


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


def test_refresh_now_brings_a_new_access_token(page: "Page", credential: Credential) -> None:
    page.reload()
    open_account(page, "ab123")
    page.get_by_role("button", name="Refresh now").click()
    reads(page, "Account ab123 has a new access token.")
    page.get_by_role("cell", name="refreshed").wait_for()
    assert Credential.objects.get().generation == 2


def test_refresh_that_keap_refuses_is_mended_by_the_link_in_the_message(
    page: "Page", sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke("ab123")
    page.reload()
    open_account(page, "ab123")
    page.get_by_role("button", name="Refresh now").click()
    page.locator(".messagelist").get_by_role("link", name="Reconnect").click()
    page.get_by_role("button", name="Continue to Keap").click()
    page.get_by_role("button", name="Sign in as Ana").click()
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    assert Credential.objects.connected().get().generation == 2


def test_another_account_chosen_is_connected_beside_the_first(
    page: "Page", credential: Credential
) -> None:
    page.reload()
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


def test_keyboard_alone_connects_an_account(page: "Page") -> None:
    page.get_by_role("link", name="Connect a Keap account").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Continue to Keap").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Sign in as Ana").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Acme Bakery").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Allow", exact=True).focus()
    page.keyboard.press("Enter")
    reads(page, "Account ab123 is connected.")


def test_pages_need_nothing_that_a_strict_content_security_policy_forbids(
    page: "Page", credential: Credential
) -> None:
    def add_policy(route: "Route") -> None:
        response = route.fetch()
        headers = {**response.headers, "content-security-policy": STRICT_POLICY}
        route.fulfill(response=response, headers=headers)

    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.route("**/*", add_policy)
    for url in pages_of(credential):
        page.goto(url)
        assert page.evaluate("getComputedStyle(document.body).margin") == "0px"  # our CSS is on
    assert [text for text in complaints if "Content Security Policy" in text] == []


def test_pages_fit_a_narrow_screen(page: "Page", credential: Credential) -> None:
    page.set_viewport_size({"width": 375, "height": 700})
    for url in pages_of(credential):
        page.goto(url)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
