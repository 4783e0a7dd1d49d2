"""A database that lacks tables, is read-only or is locked: all say so in one line."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import StringIO
from pathlib import Path

import pytest
from django.core.checks import Tags, run_checks
from django.core.management import ManagementUtility, call_command
from django.db import connection, connections
from django.test import Client

from django_infusionsoft.management.database import database_error
from django_infusionsoft.models import Credential, WorkerState
from django_infusionsoft.sandbox import Sandbox
from django_infusionsoft.storage import database

pytestmark = pytest.mark.django_db(transaction=True)

TEXTS = {
    "not_migrated": "run `python manage.py migrate`",
    "read_only": "The database is read-only",
    "locked": "The database is locked",
}
COMMANDS = [
    ("infusionsoft_status",),
    ("infusionsoft_status", "--json"),
    ("infusionsoft_refresh",),
    ("infusionsoft_refresh", "--account", "ab123"),
    ("infusionsoft_refresh", "--believe-rejections"),
    ("infusionsoft_import", "/dev/null"),
]


def execute(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@contextmanager
def not_migrated() -> Iterator[None]:
    table = WorkerState._meta.db_table
    execute(f"ALTER TABLE {table} RENAME TO elsewhere")
    try:
        yield
    finally:
        execute(f"ALTER TABLE elsewhere RENAME TO {table}")


@contextmanager
def read_only() -> Iterator[None]:
    """Let this thread's connection only read."""
    statement = {
        "mysql": "SET SESSION TRANSACTION READ ONLY",
        "postgresql": "SET default_transaction_read_only = on",
        "sqlite": "PRAGMA query_only = ON",
    }[connection.vendor]
    execute(statement)
    try:
        yield
    finally:
        connection.close()


@contextmanager
def locked() -> Iterator[None]:
    """Let another connection lock the table of credentials."""
    table = Credential._meta.db_table
    statements = {
        "mysql": [f"LOCK TABLES {table} WRITE"],
        "postgresql": ["BEGIN", f"LOCK TABLE {table} IN EXCLUSIVE MODE"],
        "sqlite": ["BEGIN IMMEDIATE"],
    }[connection.vendor]
    other = connections.create_connection("default")
    try:
        with other.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        yield
    finally:
        other.close()


@pytest.fixture(params=[not_migrated, read_only, locked])
def problem(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make the database unusable; the fixture is the name of the problem."""
    monkeypatch.setattr(database, "LOCK_TIMEOUT_SECONDS", 1)
    # The commands close the connections, and with them what they are not allowed to do.
    monkeypatch.setattr(connections, "close_all", lambda: None)
    with ExitStack() as stack:
        stack.enter_context(request.param())
        yield request.param.__name__


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        ManagementUtility(["manage.py", *arguments]).execute()
    return int(caught.value.code or 0)


def test_command_says_in_its_last_line_that_the_database_cannot_be_used(
    problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in COMMANDS:
        assert (arguments, exit_code(*arguments)) == (arguments, 4)
        errors = capsys.readouterr().err
        assert TEXTS[problem] in errors.splitlines()[-1]
        assert "Traceback" not in errors


def test_refresh_prints_one_json_object_when_the_database_cannot_be_used(
    problem: str, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("infusionsoft_refresh", "--json") == 4
    assert TEXTS[problem] in json.loads(capsys.readouterr().out)["error"]
    assert sandbox.token_requests == []


def test_health_view_says_that_the_database_cannot_be_used(problem: str, client: Client) -> None:
    response = client.get("/infusionsoft/health/")
    assert (response.status_code, response.json()) == (503, {"status": problem})


def test_check_says_that_the_database_cannot_be_used(problem: str) -> None:
    found = run_checks(tags=[Tags.database], databases=["default"])
    (ours,) = [each for each in found if str(each.id) == "django_infusionsoft.W021"]
    assert TEXTS[problem] in ours.msg


def test_check_reports_nothing_when_migrate_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["manage.py", "migrate"])
    with not_migrated():
        found = run_checks(tags=[Tags.database], databases=["default"])
    assert [each for each in found if str(each.id) == "django_infusionsoft.W021"] == []


def test_dry_run_needs_only_to_read(sandbox: Sandbox) -> None:
    output = StringIO()
    with read_only():
        call_command("infusionsoft_refresh", "--dry-run", stdout=output)
    assert output.getvalue() == "due=0\n"


def test_site_keeps_its_limit_of_lock_waits(client: Client) -> None:
    variable = {
        "mysql": "SELECT @@lock_wait_timeout, @@innodb_lock_wait_timeout",
        "postgresql": "SHOW lock_timeout",
        "sqlite": "PRAGMA busy_timeout",
    }[connection.vendor]

    def limits() -> object:
        with connection.cursor() as cursor:
            cursor.execute(variable)
            return cursor.fetchone()

    before = limits()
    client.get("/infusionsoft/health/")
    assert limits() == before


def test_database_that_is_not_available_has_another_exit_code(tmp_path: Path) -> None:
    error = database_error(OSError("no route\nto host"))
    assert (str(error), error.returncode) == ("The database is not available: no route to host", 3)
