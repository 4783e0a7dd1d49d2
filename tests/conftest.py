"""Shared fixtures, and a summary at the end of a run."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import django
import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client, TransactionTestCase, override_settings
from django.utils import timezone

from django_infusionsoft.models import Application, Credential
from django_infusionsoft.refresh.spool_folder import RESERVED
from django_infusionsoft.sandbox import Sandbox
from tests import services
from tests.support import SECOND
from tests.web import client_for


def pytest_sessionstart() -> None:
    """Exit if the database is required and missing."""
    problem = services.database_problem()
    if problem and services.is_required(services.database_title().lower()):
        pytest.exit(f"{problem}, and {services.REQUIRE} requires it.", returncode=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the database. Skip every test if the database is missing."""
    for item in items:
        if _uses_database(item):
            item.add_marker(pytest.mark.database)
    if problem := services.database_problem():
        for item in items:
            item.add_marker(pytest.mark.skip(reason=problem))


def _uses_database(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    is_of_django = item.cls is not None and issubclass(item.cls, TransactionTestCase)
    has_fixture = not {"db", "transactional_db"}.isdisjoint(item.fixturenames)
    return is_of_django or has_fixture or item.get_closest_marker("django_db") is not None


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
        write(f"Skipped {count} test{'s' if count > 1 else ''}: {reason}.", yellow=True)


def _need(service: str, problem: str) -> None:
    """Skip the test if there is a problem, or fail it if the service is required."""
    if problem and services.is_required(service):
        pytest.fail(f"{problem}, and {services.REQUIRE} requires it.", pytrace=False)
    if problem:
        pytest.skip(problem)


@pytest.fixture(scope="session")
def need() -> Callable[[str, str], None]:
    """Skip or fail a test whose program is missing: ``need(name, problem)``."""
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
    """The URL of the test database for other processes. The test commits what it writes."""
    return services.database_url()


@pytest.fixture
def operator(db: None) -> Client:
    """A test client that is logged in as a superuser."""
    return client_for(User.objects.create_superuser("operator"))


@pytest.fixture
def deferred(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On SQLite, let callers' transactions take the write lock only when they write."""
    connection.ensure_connection()  # this sets the mode
    monkeypatch.setattr(connection, "transaction_mode", "DEFERRED", raising=False)


@pytest.fixture
def rollback_journal(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SQLite as it is by default: without a write-ahead log, and with deferred transactions."""
    if connection.vendor != "sqlite":
        pytest.skip("SQLite alone locks the whole database")
    connection.close()
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "OPTIONS", {})
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode = DELETE")
            assert cursor.fetchone() == ("delete",)
        yield
    connection.close()  # the next one turns the write-ahead log on again


@pytest.fixture(autouse=True)
def spool(tmp_path: Path) -> Iterator[Path]:
    """The folder for token pairs that are not stored yet. It must be empty after the test."""
    folder = tmp_path / "spool"
    with override_settings(INFUSIONSOFT_SPOOL_DIR=folder):
        yield folder
    files = folder.glob("*") if folder.exists() else ()
    # A process that was killed leaves the space for its reply.
    left = [path.name for path in files if path.suffix != RESERVED]
    assert left == [], "A token pair was left in the spool."


@pytest.fixture
def backdated(spool: Path) -> Callable[..., None]:
    """Return a function that makes the files in the spool a month old, or some days."""

    def backdate(*, days: float = 30) -> None:
        for path in spool.iterdir():
            os.utime(path, (time.time() - days * 86_400,) * 2)

    return backdate


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Run Keap in a thread, with the settings for it."""
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
    """A connected account whose access token has expired."""
    return connect(seconds_left=-1)


@pytest.fixture
def second(db: None) -> Application:
    """An application besides the client in the settings; the sandbox knows it as ``SECOND``."""
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
        due_at = timezone.now() - timedelta(minutes=minutes)
        Credential.objects.filter(pk=credential.pk).update(refresh_at=due_at)
        credential.refresh_from_db(fields=["refresh_at"])
        return credential

    return make
