"""Fixtures for what lies outside the process, and plain words at the end of a run."""

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import django
import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client, override_settings
from django.utils import timezone

from django_infusionsoft.models import Application, Credential
from django_infusionsoft.sandbox import Sandbox
from tests import services
from tests.browsing import LIST, fetch_axe
from tests.support import SECOND
from tests.visits import visitor

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from pytest_django.live_server_helper import LiveServer

    from tests.browsing import Open


def pytest_sessionstart() -> None:
    """End a run whose database is required and missing."""
    problem = services.database_problem()
    if problem and services.is_required(services.database_title().lower()):
        pytest.exit(f"{problem}, and {services.REQUIRE} requires it.", returncode=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the database of this run, leave out every test."""
    if problem := services.database_problem():
        for item in items:
            item.add_marker(pytest.mark.skip(reason=problem))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    write = terminalreporter.line
    terminalreporter.section("what this run covered")
    write(
        f"Python {sys.version.split()[0]}, Django {django.__version__}, "
        f"{services.database_title()}. Other databases are other runs: see `tox list`."
    )
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.items():
        write(f"Left out, {count} test{'s' if count > 1 else ''}: {reason}.", yellow=True)


def _need(service: str, problem: str) -> None:
    """Go on without a problem; with one, skip the test, or fail it if the service is required."""
    if problem and services.is_required(service):
        pytest.fail(f"{problem}, and {services.REQUIRE} requires it.", pytrace=False)
    if problem:
        pytest.skip(problem)


@pytest.fixture(scope="session")
def need() -> Callable[[str, str], None]:
    """Skip or fail a test that needs a program which is missing: its name, and the problem."""
    return _need


@pytest.fixture(scope="session")
def _problems() -> dict[str, str]:
    return {name: broker.problem() for name, broker in services.BROKERS.items()}


@pytest.fixture
def redis_url(_problems: dict[str, str]) -> str:
    """The URL of a Redis that answers."""
    _need("redis", _problems["redis"])
    return services.BROKERS["redis"].url


@pytest.fixture
def rabbitmq_url(_problems: dict[str, str]) -> str:
    """The URL of a RabbitMQ that answers."""
    _need("rabbitmq", _problems["rabbitmq"])
    return services.BROKERS["rabbitmq"].url


@pytest.fixture
def database_url(transactional_db: None) -> str:
    """The URL of the test database, for other processes; what the test writes is committed."""
    if connection.vendor == "sqlite":
        return f"sqlite:///{connection.settings_dict['NAME']}"
    database = {name: quote(str(value)) for name, value in connection.settings_dict.items()}
    scheme = {"mysql": "mysql", "postgresql": "postgres"}[connection.vendor]
    return scheme + "://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format_map(database)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A Chromium without a window, driven by Playwright."""
    _need("browser", services.browser_problem())
    from playwright.sync_api import sync_playwright

    with (
        pytest.MonkeyPatch.context() as patch,
        sync_playwright() as playwright,
        closing(playwright.chromium.launch(**services.chromium_options())) as chromium,
    ):
        # Playwright's own event loop runs in this thread; Django would refuse its database here.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield chromium


@pytest.fixture
def open_page(browser: "Browser", live_server: "LiveServer", sandbox: Sandbox) -> "Iterator[Open]":
    """Open the admin's list of accounts in a browser of a user's, with options of Playwright's."""
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
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core."""
    _need("browser", "" if shutil.which("npm") else "npm, which fetches axe-core, is missing")
    return fetch_axe(tmp_path_factory.mktemp("axe"))


@pytest.fixture
def operator(db: None) -> Client:
    """The session in the admin of somebody who may do everything."""
    return visitor(User.objects.create_superuser("operator"))


@pytest.fixture
def deferred(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers' transactions that, on SQLite, hold the one write lock only once they write."""
    connection.ensure_connection()  # which sets the mode
    monkeypatch.setattr(connection, "transaction_mode", "DEFERRED", raising=False)


@pytest.fixture(autouse=True)
def spool(tmp_path: Path) -> Iterator[Path]:
    """The folder for pairs that are not stored yet. Whoever leaves one there says so."""
    folder = tmp_path / "spool"
    with override_settings(INFUSIONSOFT_SPOOL_DIR=folder):
        yield folder
    left = [path.name for path in folder.glob("*")] if folder.exists() else []
    assert left == [], "A pair was left in the spool."


@pytest.fixture
def backdated(spool: Path) -> Callable[[], None]:
    """Let what is in the spool have been there for a month."""

    def backdate() -> None:
        for path in spool.iterdir():
            os.utime(path, (time.time() - 30 * 86_400,) * 2)

    return backdate


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Keap in a thread, and the settings that point at it."""
    with Sandbox() as running, override_settings(**running.settings):
        yield running


@pytest.fixture
def connect(sandbox: Sandbox, db: None) -> Callable[..., Credential]:
    """Connect an account of the sandbox: ``connect("ab123", seconds_left=-1)``."""

    def connect_account(account: str = "ab123", *, seconds_left: float = 86_400) -> Credential:
        reply = sandbox.issue(account)
        return Credential.objects.import_tokens(
            account=account,
            access_token=reply["access_token"],
            refresh_token=reply["refresh_token"],
            expires_at=timezone.now() + timedelta(seconds=seconds_left),
        )

    return connect_account


@pytest.fixture
def connect_two(connect: Callable[..., Credential]) -> list[Credential]:
    """Two connected accounts."""
    return [connect("ab123"), connect("cd456")]


@pytest.fixture
def credential(connect: Callable[..., Credential]) -> Credential:
    """A connected account with a fresh access token."""
    return connect()


@pytest.fixture
def expired(connect: Callable[..., Credential]) -> Credential:
    """A connected account whose access token has ended."""
    return connect(seconds_left=-1)


@pytest.fixture
def second(db: None) -> Application:
    """An application beside the client in the settings; ``SECOND`` for the sandbox."""
    return Application.objects.create(
        name="Second", client_id=SECOND.client_id, client_secret=SECOND.client_secret
    )


@pytest.fixture
def due(sandbox: Sandbox, db: None) -> Callable[..., Credential]:
    """Connect an account that has been due for some minutes: ``due("ab123", 5)``."""

    def make(
        account: str, minutes: float = 5, *, application: Application | None = None
    ) -> Credential:
        client_id = application.client_id if application else None
        reply = sandbox.issue(account, client_id=client_id)
        credential = Credential.objects.import_tokens(
            account=account,
            access_token=reply["access_token"],
            refresh_token=reply["refresh_token"],
            expires_at=timezone.now() + timedelta(hours=1),
            application=application,
        )
        credential.refresh_at = timezone.now() - timedelta(minutes=minutes)
        credential.save(update_fields=["refresh_at"])
        return credential

    return make
