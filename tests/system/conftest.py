"""Tests that start processes or drive a browser. All of them are marked ``system``."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from django_infusionsoft.sandbox import Sandbox
from tests import services
from tests.system.browsing import LIST, fetch_axe

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from pytest_django.live_server_helper import LiveServer

    from tests.system.browsing import Open

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests, and run them first: at the end, the other processes would wait for one."""
    items.sort(key=lambda item: not item.path.is_relative_to(FOLDER))
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="module")
def browser(need: Callable[[str, str], None]) -> "Iterator[Browser]":
    """Start a headless Chromium, driven by Playwright."""
    need("browser", services.browser_problem())
    from playwright.sync_api import sync_playwright

    with (
        pytest.MonkeyPatch.context() as patch,
        sync_playwright() as playwright,
        closing(playwright.chromium.launch(**services.chromium_options())) as chromium,
    ):
        # Playwright runs an event loop in this thread, so Django would refuse database access.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield chromium


@pytest.fixture
def open_page(browser: "Browser", live_server: "LiveServer", sandbox: Sandbox) -> "Iterator[Open]":
    """Open the admin's list of accounts as a user, with options for Playwright."""
    with ExitStack() as stack:

        def open_list(user: User, **options: Any) -> "Page":
            client = Client()
            client.force_login(user)
            context = browser.new_context(base_url=live_server.url, **options)
            stack.enter_context(closing(context))
            context.set_default_timeout(10_000)
            session = client.cookies["sessionid"].value
            context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])
            page = context.new_page()
            page.goto(LIST)
            return page

        yield open_list


@pytest.fixture(scope="session")
def axe(need: Callable[[str, str], None], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the script of axe-core."""
    need("browser", "" if shutil.which("npm") else "npm, which fetches axe-core, is missing")
    return fetch_axe(tmp_path_factory.mktemp("axe"))
