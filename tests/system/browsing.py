"""Actions of a user in a browser, and checks of a page."""

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from django.contrib.auth.models import User
    from playwright.sync_api import Page

    class Open(Protocol):
        """Opens the admin's list in a browser where this user is logged in."""

        def __call__(self, user: User, **options: Any) -> Page: ...


LIST = "/admin/django_infusionsoft/credential/"
AXE = "axe-core@4.14.1"
MOST_STOPS = 80


def go_to_keap(page: "Page") -> None:
    """Leave the admin's list for the sandbox's page of accounts."""
    page.get_by_role("link", name="Connect a Keap account").click()
    page.get_by_role("button", name="Continue to Keap").click()
    page.get_by_role("button", name="Sign in as Ana").click()


def decide(page: "Page", account: str, decision: str = "Allow") -> None:
    page.get_by_role("button", name=account).click()
    page.get_by_role("button", name=decision, exact=True).click()


def open_account(page: "Page", account: str) -> None:
    page.goto(LIST)
    page.get_by_role("link", name=account).click()
    page.get_by_role("heading", name=account).wait_for()


def reads(page: "Page", words: str) -> None:
    page.get_by_text(words).first.wait_for()


def press(page: "Page", name: str) -> None:
    """Focus a link or button with the Tab key only, check that it is visible, press Enter."""
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        if name in page.evaluate("document.activeElement.innerText || ''"):
            break
    else:
        raise AssertionError(f"The Tab key does not lead to {name!r}.")
    assert page.evaluate(
        "(style => style.outlineStyle !== 'none' || style.textDecorationLine !== 'none')"
        "(getComputedStyle(document.activeElement))"
    ), f"{name!r} does not show that it has the focus."
    page.keyboard.press("Enter")


def fetch_axe(folder: Path) -> str:
    """Return the script of axe-core, fetched with npm."""
    options = ["--no-save", "--no-audit", "--no-fund", "--prefix", str(folder)]
    npm = str(shutil.which("npm"))
    subprocess.run([npm, "install", *options, AXE], check=True, capture_output=True, timeout=120)
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def violations(page: "Page", axe: str) -> list[str]:
    """Return the violations that axe-core finds on a page: the rule and the elements."""
    page.evaluate(axe)
    found: dict[str, Any] = page.evaluate("axe.run()")
    assert found["passes"]
    return [
        f"{each['id']}: {node['target']} {node['failureSummary']}"
        for each in found["violations"]
        for node in each["nodes"]
    ]
