"""The pages on wide and narrow screens, in light and dark colours, and for screen readers.

``INFUSIONSOFT_TESTS_SCREENSHOTS`` names the folder for the screenshots of the documents:
``docs/images``.
"""

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from django.test import override_settings
from django.urls import reverse
from django.utils import timezone

from django_infusionsoft.exceptions import TemporarilyUnavailable
from django_infusionsoft.models import Application, Credential
from django_infusionsoft.sandbox import Sandbox, faults
from tests.processes import ROOT
from tests.system.browsing import LIST, reads, violations

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page, Route

    from tests.system.browsing import Open

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

STRICT_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'"
WIDE, NARROW = 1280, 375
# Each screenshot: the page of an account or the list, its width and height, and the colours.
SCREENSHOTS = {
    "admin-list": ("list", WIDE, 760, "light"),
    "admin-list-dark": ("list", WIDE, 760, "dark"),
    "admin-list-narrow": ("list", NARROW, 900, "dark"),
    "admin-account": ("ab123", WIDE, 1240, "light"),
    "admin-lost": ("cd456", NARROW, 900, "light"),
    "admin-disconnect": ("disconnect", WIDE, 480, "light"),
}
IMAGES = ROOT / "docs" / "images"


@pytest.fixture
def ana() -> User:
    """A superuser."""
    return User.objects.create_superuser("ana")


@pytest.fixture
def accounts(ana: User, sandbox: Sandbox, connect: "Callable[..., Credential]") -> None:
    """Create an account in each condition; the first has a history."""
    first, lost = connect("ab123"), connect("cd456")
    Credential.objects.refresh_due()
    first.test_connection(user=ana)
    first.refresh(user=ana)
    sandbox.plan(faults.error_503())
    with pytest.raises(TemporarilyUnavailable):
        first.refresh()
    Credential.objects.filter(pk=first.pk).update(refresh_at=timezone.now())
    Credential.objects.refresh_due()
    sandbox.revoke("cd456")
    Credential.objects.filter(pk=lost.pk).update(refresh_at=timezone.now())
    Credential.objects.refresh_due()
    second = Application.objects.create(name="Spring shop", client_id="spring", client_secret="x")
    pair = first.__dict__
    names = ("access_token", "refresh_token", "issued_at", "expires_at", "connected_at")
    columns: dict[str, Any] = {name: pair[name] for name in names}
    soon = timezone.now() + timedelta(minutes=4, seconds=5)
    others: dict[str, dict[str, Any]] = {
        "ef789": {
            "failures": 2,
            "refresh_at": soon,
            "last_error": "Keap responded with HTTP 503.",
        },
        "gh012": {"lease_until": soon, "refresh_at": soon},
        "ij345": {"status": "disconnected", "refresh_at": None, "application": second},
    }
    for account, more in others.items():
        Credential.objects.create(account=account, **columns | more)
    for age, event in enumerate(first.events.all()):  # a history of some days
        moment = timezone.now() - age * timedelta(hours=18, minutes=7)
        first.events.filter(pk=event.pk).update(created_at=moment)
    names_of = ("Acme Bakery", "Blue Cycles", "Cedar Clinic", "Dune Travel", "Elm Print")
    for credential, name in zip(Credential.objects.order_by("account"), names_of, strict=True):
        credential.account_name, credential.authorized_by = name, ana
        credential.keap_user, credential.keap_user_is_admin = "ana@keap.example", True
        credential.save()


def pages() -> dict[str, str]:
    """Return the URLs of all pages of the app."""
    credential_page = "admin:django_infusionsoft_credential_change"
    found = {
        each.account: reverse(credential_page, args=[each.pk])
        for each in Credential.objects.exclude(account=None)
    }
    first, application = Credential.objects.order_by("account")[0], Application.objects.get()
    return {
        "list": LIST,
        "empty list": f"{LIST}?q=nobody",
        **{str(account): url for account, url in found.items()},
        "disconnect": reverse("admin:django_infusionsoft_credential_disconnect", args=[first.pk]),
        "choose": LIST + "add/",
        "key": LIST + "key/",
        "applications": reverse("admin:django_infusionsoft_application_changelist"),
        "application": reverse(
            "admin:django_infusionsoft_application_change", args=[application.pk]
        ),
        "new application": reverse("admin:django_infusionsoft_application_add"),
        "events": reverse("admin:django_infusionsoft_credentialevent_changelist"),
        "event": reverse(
            "admin:django_infusionsoft_credentialevent_change", args=[first.events.all()[0].pk]
        ),
        "authorize": reverse("django_infusionsoft:authorize"),
        "problem": reverse("django_infusionsoft:callback"),
    }


SCREENS = {
    "wide-light": (WIDE, "light"),
    "wide-dark": (WIDE, "dark"),
    "narrow-light": (NARROW, "light"),
    "narrow-dark": (NARROW, "dark"),
}


@pytest.fixture(params=SCREENS.values(), ids=list(SCREENS))
def page(request: pytest.FixtureRequest, open_page: "Open", ana: User, accounts: None) -> "Page":
    """Open the list on a screen of this width, in these colours."""
    width, colours = request.param
    return open_page(ana, viewport={"width": width, "height": 800}, color_scheme=colours)


def test_pages_fit_the_width_of_the_screen_and_axe_finds_no_violation(
    page: "Page", axe: str
) -> None:
    found = []
    for name, url in pages().items():
        page.goto(url)
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            found.append(f"{name}: wider than the screen")
        found += [f"{name}: {each}" for each in violations(page, axe)]
    assert found == []


@pytest.mark.parametrize("name", ["list", "applications"])
def test_lists_show_all_columns_next_to_the_navigation(
    open_page: "Open", ana: User, accounts: None, name: str
) -> None:
    for width in (WIDE, NARROW):
        page = open_page(ana, viewport={"width": width, "height": 800})
        page.goto(pages()[name])
        assert page.evaluate(
            "(box => box.scrollWidth <= box.clientWidth)(document.querySelector('.results'))"
        ), width


def test_pages_work_with_a_strict_content_security_policy(
    open_page: "Open", ana: User, accounts: None
) -> None:
    def add_policy(route: "Route") -> None:
        response = route.fetch()
        headers = {**response.headers, "content-security-policy": STRICT_POLICY}
        route.fulfill(response=response, headers=headers)

    complaints: list[str] = []
    page = open_page(ana)
    page.on("console", lambda message: complaints.append(message.text))
    page.route("**/*", add_policy)
    for url in pages().values():
        page.goto(url)
        assert (
            page.evaluate("getComputedStyle(document.body).margin") == "0px"
        )  # the CSS is applied
    assert [text for text in complaints if "Content Security Policy" in text] == []


def test_colours_of_conditions_are_those_of_the_admin(
    open_page: "Open", ana: User, accounts: None
) -> None:
    shown = {}
    for colours in ("light", "dark"):
        page = open_page(ana, color_scheme=colours)
        status = page.locator("#result_list .infusionsoft-status")
        shown[colours] = status.evaluate_all("all => all.map(one => getComputedStyle(one).color)")
        assert len(set(shown[colours])) == 5
    assert not set(shown["light"]) & set(shown["dark"])


@pytest.mark.parametrize("name", SCREENSHOTS)
def test_screenshot_for_the_documents_can_be_taken(
    open_page: "Open", ana: User, accounts: None, name: str, tmp_path: Path
) -> None:
    subject, width, height, colours = SCREENSHOTS[name]
    folder = Path(os.environ.get("INFUSIONSOFT_TESTS_SCREENSHOTS") or tmp_path)
    page = open_page(ana, viewport={"width": width, "height": height}, color_scheme=colours)
    page.goto(pages()[subject])
    page.screenshot(path=folder / f"{name}.png")
    assert (folder / f"{name}.png").stat().st_size > 10_000


@pytest.mark.skipif(not IMAGES.exists(), reason="only in a checkout")
def test_documents_have_exactly_these_screenshots() -> None:
    assert {each.stem for each in IMAGES.glob("admin-*.png")} == set(SCREENSHOTS)


@override_settings(LANGUAGE_CODE="de")
def test_german_pages_fit_the_width_of_the_screen(
    open_page: "Open", ana: User, accounts: None
) -> None:
    page = open_page(ana, viewport={"width": NARROW, "height": 800})
    reads(page, "Keap-Konten")
    for name, url in pages().items():
        page.goto(url)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
