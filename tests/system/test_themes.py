"""The pages of accounts work in the admin's themes: their buttons are there and do their work."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest
from django.apps import apps
from django.conf import settings

from tests.processes import started
from tests.system.browsing import LIST, decide, go_to_keap, reads

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

THEMES = {
    "jazzmin": ["jazzmin"],
    "grappelli": ["grappelli"],
    "unfold": ["unfold"],
    "admin_interface": ["admin_interface", "colorfield"],
}


def settings_of(theme: str) -> dict[str, Any]:
    labels = [*THEMES[theme], *(each.label for each in apps.get_app_configs())]
    return {
        "INSTALLED_APPS": [*THEMES[theme], *settings.INSTALLED_APPS],
        # Tables are created faster without migrations.
        "MIGRATION_MODULES": dict.fromkeys(labels),
        "ROOT_URLCONF": "tests.system.theme_urls",
        "SILENCED_SYSTEM_CHECKS": ["security.W019"],
        "X_FRAME_OPTIONS": "SAMEORIGIN",
    }


@pytest.fixture(params=THEMES)
def page(
    request: pytest.FixtureRequest,
    browser: "Browser",
    need: Callable[[str, str], None],
    tmp_path: Path,
) -> "Iterator[Page]":
    """Open the list of accounts of a site with this theme as a superuser."""
    theme = request.param
    need("browser", "" if find_spec(theme) else f"the theme {theme} is not installed here")
    url = f"sqlite:///{tmp_path / 'theme.sqlite3'}"
    process_of_site = started(
        "-m",
        "tests.system.theme_process",
        database_url=url,
        settings=settings_of(theme),
        stdout=PIPE,
    )
    with process_of_site as process:
        assert process.stdout
        port, session = json.loads(process.stdout.readline())
        site = f"http://127.0.0.1:{port}"
        with closing(browser.new_context(base_url=site)) as context:
            context.set_default_timeout(20_000)
            context.add_cookies([{"name": "sessionid", "value": session, "url": site}])
            page = context.new_page()
            page.goto(LIST)
            yield page


def press_button(page: "Page", name: str) -> None:
    """Press a button whose whole text is visible."""
    button = page.get_by_role("button", name=name)
    assert button.evaluate("each => each.scrollWidth <= each.offsetWidth"), name
    button.click()


def test_accounts_can_be_connected_refreshed_tested_and_disconnected(page: "Page") -> None:
    go_to_keap(page)
    decide(page, "Blue Cycles")
    reads(page, "Account cd456 is connected.")
    page.goto(LIST)
    page.get_by_role("link", name="ab123").click()
    press_button(page, "Refresh now")
    reads(page, "Account ab123 has a new access token.")
    press_button(page, "Test connection")
    reads(page, "The connection works.")
    page.get_by_role("link", name="Disconnect").click()
    press_button(page, "Yes, disconnect")
    reads(page, "1 account has been disconnected")
    page.get_by_role("link", name="Reconnect").click()
    page.get_by_role("button", name="Continue to Keap").wait_for()
