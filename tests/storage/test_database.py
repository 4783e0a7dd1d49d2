"""Transactions that are independent of the caller's, the database clock, and plain updates."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.contrib.auth.models import Group
from django.core.exceptions import ObjectDoesNotExist
from django.db import (
    DatabaseError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.models import F
from django.test import TestCase, TransactionTestCase

from django_infusionsoft.exceptions import DatabaseBusy, LockedByCaller
from django_infusionsoft.fields import seal
from django_infusionsoft.models import Credential
from django_infusionsoft.refresh.storing import RENEWED
from django_infusionsoft.storage import database
from django_infusionsoft.storage.database import (
    BEGIN_THREAD,
    DatabaseNow,
    close_own_connection,
    is_on_disk_of,
    own_connection,
    own_transaction,
    persist,
    update_row,
)
from tests.support import threads

ONE_WRITER = "SQLite lets one writer in at a time"


def current_connection() -> Any:
    return connections["default"]


@contextmanager
def rolled_back() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def names() -> list[str]:
    return sorted(Group.objects.values_list("name", flat=True))


# Independent transactions


def test_block_uses_the_callers_connection_when_there_is_no_transaction(
    transactional_db: None,
) -> None:
    before = current_connection()
    with own_transaction("default"):
        assert current_connection() is before
        Group.objects.create(name="own")
    assert names() == ["own"]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_block_is_committed_when_the_caller_rolls_back(deferred: None, depth: int) -> None:
    with ExitStack() as blocks:
        for _ in range(depth):
            blocks.enter_context(rolled_back())
        with own_transaction("default"):
            Group.objects.create(name="own")
    assert names() == ["own"]


def test_block_is_visible_to_others_before_the_caller_commits(deferred: None) -> None:
    with transaction.atomic():
        with own_transaction("default"):
            Group.objects.create(name="own")
        with threads(1) as start:
            assert start(names).result() == ["own"]


def test_block_does_not_see_uncommitted_changes_of_the_caller(deferred: None) -> None:
    if connection.vendor == "sqlite":
        pytest.skip(ONE_WRITER)
    with transaction.atomic():
        Group.objects.create(name="callers")
        with own_transaction("default"):
            assert names() == []
        assert names() == ["callers"]


def test_only_the_callers_own_writes_are_rolled_back(deferred: None) -> None:
    with rolled_back():
        with own_transaction("default"):
            Group.objects.create(name="own")
        Group.objects.create(name="callers")
    assert names() == ["own"]


def test_nested_block_is_committed(deferred: None) -> None:
    with rolled_back(), own_transaction("default"), own_transaction("default"):
        Group.objects.create(name="own")
    assert names() == ["own"]


def test_block_inside_a_transaction_inside_a_block_is_committed(deferred: None) -> None:
    if connection.vendor == "sqlite":
        pytest.skip(ONE_WRITER)
    with rolled_back(), own_transaction("default"), rolled_back(), own_transaction("default"):
        Group.objects.create(name="own")
    assert names() == ["own"]


def test_block_is_committed_when_the_caller_has_turned_autocommit_off(
    transactional_db: None,
) -> None:
    transaction.set_autocommit(False)
    try:
        with own_transaction("default"):
            Group.objects.create(name="own")
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    assert names() == ["own"]


def test_block_is_committed_when_the_settings_turn_autocommit_off(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", False)
    try:
        with own_transaction("default"):
            Group.objects.create(name="own")
        transaction.rollback()
    finally:
        monkeypatch.undo()
        connection.close()
    assert names() == ["own"]


def test_block_does_not_change_the_callers_autocommit(transactional_db: None) -> None:
    transaction.set_autocommit(False)
    try:
        with own_transaction("default"):
            Group.objects.count()
        assert not transaction.get_autocommit()
    finally:
        transaction.set_autocommit(True)


# Several blocks over one connection


def test_blocks_share_a_connection_and_each_is_committed_on_its_own(deferred: None) -> None:
    with rolled_back(), own_connection("default"):
        with own_transaction("default"):
            first = current_connection()
            Group.objects.create(name="first")
        with threads(1) as start:
            assert start(names).result() == ["first"]
        with own_transaction("default"):
            assert current_connection() is first
            Group.objects.create(name="second")
    assert first.connection is None
    assert names() == ["first", "second"]


def test_queries_between_blocks_use_the_callers_connection(deferred: None) -> None:
    with rolled_back():
        before = current_connection()
        with own_connection("default"):
            with own_transaction("default"):
                assert current_connection() is not before
            assert current_connection() is before


def test_block_inside_a_transaction_inside_a_block_is_committed_with_a_shared_connection(
    deferred: None,
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip(ONE_WRITER)
    with (
        rolled_back(),
        own_connection("default"),
        own_transaction("default"),
        rolled_back(),
        own_transaction("default"),
        rolled_back(),
        own_transaction("default"),
    ):
        Group.objects.create(name="own")
    assert names() == ["own"]


def test_shared_connection_is_reopened_after_it_was_closed(deferred: None) -> None:
    with rolled_back(), own_connection("default"):
        with own_transaction("default"):
            own = current_connection()
        close_own_connection("default")
        assert own.connection is None
        with own_transaction("default"):
            Group.objects.create(name="own")
    assert names() == ["own"]


def test_shared_connection_is_reopened_after_an_error(deferred: None) -> None:
    with rolled_back(), own_connection("default"):
        with pytest.raises(DatabaseBusy), own_transaction("default"):
            own = current_connection()
            raise OperationalError("gone")
        assert own.connection is None
        with own_transaction("default"):
            Group.objects.create(name="own")
    assert names() == ["own"]


def test_shared_connection_waits_no_longer_than_its_limit_in_each_block(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.storage.database.LOCK_TIMEOUT_SECONDS", 1)
    group = Group.objects.create(name="before")
    with transaction.atomic(), own_connection("default"):
        with own_transaction("default"):
            assert names() == ["before"]
        Group.objects.filter(pk=group.pk).update(name="callers")
        with pytest.raises(DatabaseBusy, match="commit"), own_transaction("default"):
            Group.objects.filter(pk=group.pk).update(name="own")
    assert names() == ["callers"]


# Test cases


def test_block_joins_the_transaction_of_a_test(db: None) -> None:
    Group.objects.create(name="tests")
    before = current_connection()
    with own_transaction("default"):
        assert current_connection() is before
        assert names() == ["tests"]


def test_block_joins_the_transaction_of_a_test_inside_atomic(db: None) -> None:
    before = current_connection()
    with transaction.atomic(), own_transaction("default"):
        assert current_connection() is before


class InTestCase(TestCase):
    """Django's ``TestCase``, with the transaction of the class around that of each test."""

    @classmethod
    def setUpTestData(cls) -> None:
        with own_transaction("default"):
            Group.objects.create(name="class")

    def test_block_sees_the_test_data_of_the_class(self) -> None:
        with transaction.atomic(), own_transaction("default"):
            assert names() == ["class"]

    def test_block_is_rolled_back_with_the_test(self) -> None:
        with own_transaction("default"):
            Group.objects.create(name="test")
        assert names() == ["class", "test"]

    def test_block_of_the_other_test_is_rolled_back(self) -> None:
        assert names() == ["class"]


class InTransactionTestCase(TransactionTestCase):
    """Django's test case without a transaction."""

    def test_block_uses_the_callers_connection(self) -> None:
        before = current_connection()
        with own_transaction("default"):
            assert current_connection() is before


# Connections


def leave(error: Exception | None) -> Any:
    """Run a block inside a transaction; return the connection that it used."""
    with transaction.atomic():
        before = current_connection()
        try:
            with own_transaction("default"):
                own = current_connection()
                assert own is not before
                Group.objects.count()
                if error is not None:
                    raise error
        finally:
            assert current_connection() is before
            assert own.connection is None
    return own


def test_second_connection_is_closed_after_a_block(deferred: None) -> None:
    leave(None)


@pytest.mark.parametrize(
    "error", [ValueError("mine"), IntegrityError("twice"), ObjectDoesNotExist("none")]
)
def test_error_is_raised_and_the_second_connection_is_closed(
    deferred: None, error: Exception
) -> None:
    with pytest.raises(type(error), match=str(error)):
        leave(error)


def test_operational_error_says_what_to_do_and_the_second_connection_is_closed(
    deferred: None,
) -> None:
    with pytest.raises(DatabaseBusy, match="transaction") as caught:
        leave(OperationalError("locked"))
    assert isinstance(caught.value.__cause__, OperationalError)


def test_operational_error_is_unchanged_when_there_is_no_transaction(
    transactional_db: None,
) -> None:
    with pytest.raises(OperationalError), own_transaction("default"):
        raise OperationalError("gone")


def test_error_says_what_to_do_when_no_second_connection_is_available(
    deferred: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, parameters: Any) -> Any:
        raise OperationalError("too many clients")

    with transaction.atomic():
        before = current_connection()
        Group.objects.count()
        monkeypatch.setattr(type(before), "get_new_connection", refuse)
        with (
            pytest.raises(DatabaseBusy, match="No database connection is available"),
            own_transaction("default"),
        ):
            pytest.fail("There is no connection.")
        assert current_connection() is before


class ArrivesLate(Future[Any]):
    """Its wait ends when it can be cancelled no more, and has no result yet."""

    def __init__(self) -> None:
        super().__init__()
        self.runs, self.is_over = threading.Event(), threading.Event()

    def set_running_or_notify_cancel(self) -> bool:
        runs = super().set_running_or_notify_cancel()
        self.runs.set()
        return runs and self.is_over.wait(10)

    def result(self, timeout: float | None = None) -> Any:
        assert self.runs.wait(10)
        try:
            return super().result(0)
        finally:
            self.is_over.set()


def test_error_says_what_to_do_when_the_second_connection_arrives_just_too_late(
    deferred: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction.atomic(), own_connection("default"):
        before = current_connection()
        with monkeypatch.context() as patched:
            patched.setattr(database, "Future", ArrivesLate)
            with (
                pytest.raises(DatabaseBusy, match="No database connection is available"),
                own_transaction("default"),
            ):
                pytest.fail("The wait was over.")
        assert current_connection() is before
        with own_transaction("default"):
            Group.objects.create(name="next")
    assert names() == ["next"]


def test_timeout_in_a_block_is_raised_unchanged(deferred: None) -> None:
    with pytest.raises(TimeoutError, match="mine"):
        leave(TimeoutError("mine"))


def test_write_is_repeated_when_the_process_may_start_no_more_threads(
    deferred: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = iter([True, False])
    start = threading.Thread.start

    def start_or_fail(self: threading.Thread) -> None:
        if self.name == BEGIN_THREAD and next(limit):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    monkeypatch.setattr(database, "RETRY_PAUSES", (0.0,))
    with transaction.atomic():
        persist("default", lambda: Group.objects.create(name="stored"), what="credential=1")
    assert names() == ["stored"]


def test_callers_transaction_can_be_used_after_a_failed_block(deferred: None) -> None:
    Group.objects.create(name="twice")
    with transaction.atomic():
        with pytest.raises(IntegrityError), own_transaction("default"):
            Group.objects.create(name="twice")
        Group.objects.create(name="callers")
    assert names() == ["callers", "twice"]


def test_block_waits_no_longer_than_its_limit_for_a_callers_lock(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.storage.database.LOCK_TIMEOUT_SECONDS", 1)
    group = Group.objects.create(name="before")
    with transaction.atomic():
        Group.objects.filter(pk=group.pk).update(name="callers")
        with pytest.raises(DatabaseBusy), own_transaction("default"):
            Group.objects.filter(pk=group.pk).update(name="own")
    assert names() == ["callers"]


@pytest.fixture(params=["a read", "a write", "an immediate transaction"])
def locking(
    request: pytest.FixtureRequest, rollback_journal: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], object]:
    """What gives the caller's transaction a lock that keeps others from writing, on SQLite."""
    match request.param:
        case "a read":
            return Group.objects.count
        case "a write":
            return partial(Group.objects.create, name="callers")
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode = WAL")
    monkeypatch.setattr(connection, "transaction_mode", "IMMEDIATE")
    return lambda: None


def test_write_fails_at_once_when_the_caller_has_locked_the_database(
    locking: Callable[[], object],
) -> None:
    """It would keep all others from reading while it waits."""
    with transaction.atomic():
        locking()
        with pytest.raises(LockedByCaller), own_transaction("default"):
            Group.objects.create(name="own")
        with pytest.raises(LockedByCaller), own_connection("default"), own_transaction("default"):
            Group.objects.create(name="own")


def test_write_is_not_repeated_when_the_caller_has_locked_the_database(
    locking: Callable[[], object],
) -> None:
    def write() -> None:
        tries.append(1)
        Group.objects.create(name="own")

    tries: list[int] = []
    with transaction.atomic():
        locking()
        with pytest.raises(LockedByCaller):
            persist("default", write, what="")
    assert tries == [1]


def test_block_can_read_when_the_caller_has_locked_the_database(
    locking: Callable[[], object],
) -> None:
    with transaction.atomic():
        locking()
        with own_transaction("default"):
            assert names() == []


def test_another_connections_lock_is_not_taken_for_the_callers(
    rollback_journal: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.storage.database.LOCK_TIMEOUT_SECONDS", 0)
    connection.close()
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "timeout", 0)
    database = sqlite3.connect(connection.settings_dict["NAME"])
    with closing(database) as other, transaction.atomic(), own_connection("default"):
        with own_transaction("default"):
            names()  # SQLite may open no connection while the database is locked
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseBusy) as error, own_transaction("default"):
            Group.objects.create(name="own")
        assert error.type is DatabaseBusy


def test_block_is_committed_when_the_caller_has_read_nothing(rollback_journal: None) -> None:
    with transaction.atomic():
        with own_transaction("default"):
            Group.objects.create(name="own")
        with own_transaction("default"):
            Group.objects.create(name="second")
        assert names() == ["own", "second"]


def test_block_is_committed_when_the_caller_without_autocommit_has_only_read(
    rollback_journal: None,
) -> None:
    transaction.set_autocommit(False)
    try:
        assert names() == []
        with own_transaction("default"):
            Group.objects.create(name="own")
    finally:
        transaction.set_autocommit(True)
    assert names() == ["own"]


def test_callers_next_write_fails_when_a_block_is_committed_after_its_read(
    deferred: None,
) -> None:
    """SQLite's transactions with a write-ahead log write only to the newest state."""
    if connection.vendor != "sqlite":
        pytest.skip(ONE_WRITER)
    with transaction.atomic():
        assert names() == []
        with own_transaction("default"):
            Group.objects.create(name="own")
        with pytest.raises(OperationalError, match="database is locked"):
            Group.objects.create(name="callers")
        transaction.set_rollback(True)
    assert names() == ["own"]


def test_limit_is_removed_from_the_callers_connection(deferred: None) -> None:
    question = {
        "postgresql": "SHOW lock_timeout",
        "mysql": "SELECT @@innodb_lock_wait_timeout",
        "sqlite": "PRAGMA busy_timeout",
    }[connection.vendor]

    def limit() -> Any:
        with connection.cursor() as cursor:
            cursor.execute(question)
            return cursor.fetchone()

    before = limit()
    with transaction.atomic():
        with own_transaction("default"):
            assert limit() != before
        assert limit() == before


def test_limit_is_removed_from_a_pooled_connection(transactional_db: None) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("Django pools connections of PostgreSQL only")
    pytest.importorskip("psycopg_pool", reason="psycopg_pool is not installed here")

    def limit(pooled: Any) -> Any:
        with closing(pooled), pooled.cursor() as cursor:
            cursor.execute("SHOW lock_timeout")
            return cursor.fetchone()

    with transaction.atomic(), pytest.MonkeyPatch.context() as patch:
        Group.objects.count()
        one = {"pool": {"min_size": 1, "max_size": 1}}
        patch.setitem(connection.settings_dict, "OPTIONS", one)
        pooled: Any = connections.create_connection("default")
        try:
            before = limit(pooled)
            with own_transaction("default"):
                assert limit(current_connection()) != before
            with own_transaction("default"):
                Group.objects.count()
            assert limit(pooled) == before
        finally:
            pooled.close_pool()


def test_other_threads_keep_their_connection(deferred: None) -> None:
    with transaction.atomic(), own_transaction("default"):
        own = current_connection()
        with threads(1) as start:
            assert start(current_connection).result() is not own


# The clock


@contextmanager
def session_time_zone(hours: int) -> Iterator[None]:
    """Change the time zone of the database session, if the database has one."""
    statements = {
        "mysql": (f"SET time_zone = '{hours:+03}:00'", "SET time_zone = @@global.time_zone"),
        "postgresql": (f"SET TIME ZONE {hours}", "SET TIME ZONE 'UTC'"),
    }.get(connection.vendor)
    if statements is None:
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute(statements[0])
        try:
            yield
        finally:
            cursor.execute(statements[1])


@pytest.mark.parametrize("hours", [0, 5, -8])
def test_database_clock_is_utc_in_every_session_time_zone(db: None, hours: int) -> None:
    Group.objects.create(name="any")
    with session_time_zone(hours):
        now = Group.objects.annotate(now=DatabaseNow()).values_list("now", flat=True).get()
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)


@pytest.mark.parametrize("hours", [0, 5, -8])
def test_database_clock_is_stored_and_compared_as_utc(
    django_user_model: Any, db: None, hours: int
) -> None:
    users = django_user_model.objects
    users.create(username="any")
    with session_time_zone(hours):
        users.update(last_login=DatabaseNow() + timedelta(minutes=1))
        assert users.filter(last_login__gt=DatabaseNow()).exists()
        assert not users.filter(last_login__gt=DatabaseNow() + timedelta(minutes=2)).exists()
        stored = users.get().last_login
        assert users.filter(last_login=F("last_login")).exists()
    assert abs(stored - datetime.now(UTC) - timedelta(minutes=1)) < timedelta(seconds=5)


def test_database_clock_advances_within_a_transaction(transactional_db: None) -> None:
    def read() -> datetime:
        now: datetime = Group.objects.annotate(now=DatabaseNow()).values_list("now", flat=True)[0]
        return now

    Group.objects.create(name="any")
    with transaction.atomic():
        first = read()
        while read() == first:  # the clock of a transaction stands still, so this would never end
            assert datetime.now(UTC) - first < timedelta(seconds=5)


def test_database_clock_has_fractions_of_a_second(db: None) -> None:
    Group.objects.create(name="any")
    clock = Group.objects.annotate(now=DatabaseNow()).values_list("now", flat=True)
    assert any(clock.all()[0].microsecond for _ in range(3))


# Updates without the ORM

MOMENT = datetime(2026, 3, 4, 5, 17, 30, 123456, tzinfo=UTC)
COLUMNS: dict[str, Any] = {
    "access_token": seal("pässword 'quoted' 100%"),
    "refresh_token": seal("refresh"),
    "generation": 2**40,
    "issued_at": MOMENT,
    "expires_at": MOMENT + timedelta(days=1),
    "refresh_at": None,
    "status": Credential.Status.REAUTHORIZATION_REQUIRED,
    "reason": "",
    "last_error": "Käse 100% \N{SNOWMAN} 'quoted' \\ \"twice\"",
    "keap_user_is_admin": True,
    "lease_until": MOMENT,
}


def written_columns(credential: Credential) -> dict[str, Any]:
    """Return the written columns as the database has them now."""
    found: dict[str, Any] = Credential.objects.filter(pk=credential.pk).values(*COLUMNS).get()
    return found


def test_update_writes_the_same_as_the_orm(
    connect: Callable[..., Credential],
) -> None:
    ours, orms = connect("ab123"), connect("cd456")
    where = {"id": ours.pk, "generation": 1}
    assert update_row("default", Credential, COLUMNS, where=where) == 1
    assert Credential.objects.filter(pk=orms.pk).update(**COLUMNS) == 1
    assert written_columns(ours) == written_columns(orms) == COLUMNS
    assert Credential.objects.get(pk=ours.pk).access_token == "pässword 'quoted' 100%"


def test_update_writes_the_same_as_the_orm_when_the_value_was_different(
    connect: Callable[..., Credential],
) -> None:
    credential = connect()
    for columns in (COLUMNS, {"refresh_at": MOMENT, "lease_until": None, "generation": 3}):
        where = {"id": credential.pk}
        assert update_row("default", Credential, columns, where=where) == 1
    row = Credential.objects.get(pk=credential.pk)
    assert (row.refresh_at, row.lease_until, row.generation) == (MOMENT, None, 3)


def test_update_writes_constants(connect: Callable[..., Credential]) -> None:
    others = {
        "status": "disconnected",
        "reason": "revoked",
        "failures": 3,
        "unanswered_attempts": 2,
        "may_be_rotated": True,
        "is_doubted": True,
        "last_error": "100%",
        "failing_since": MOMENT,
        "failed_outcome": "unavailable",
        "lease_until": MOMENT,
        "lease_id": "lease",
        "lease_holder": "holder",
        "lease_is_used": True,
    }
    credential = connect()
    Credential.objects.update(**others)
    row = Credential.objects.values(*RENEWED)
    assert row.get() == others
    values, where = {"generation": 9}, {"id": credential.pk}
    assert update_row("default", Credential, values, where=where, constants=RENEWED) == 1
    assert row.get() == RENEWED


def test_update_changes_no_other_row_and_returns_the_number_of_rows(
    connect: Callable[..., Credential],
) -> None:
    ours, other = connect("ab123"), connect("cd456")
    before = written_columns(other)
    for where in ({"id": ours.pk, "generation": 7}, {"id": ours.pk + other.pk, "generation": 1}):
        assert update_row("default", Credential, {"generation": 9}, where=where) == 0
    assert update_row("default", Credential, {"generation": 9}, where={"id": ours.pk}) == 1
    assert written_columns(other) == before
    assert update_row("default", Credential, {"failures": 1}, where={"failures": 0}) == 2


def test_transaction_can_be_rolled_back_when_an_update_fails(
    credential: Credential, transactional_db: None
) -> None:
    with transaction.atomic():
        with pytest.raises(DatabaseError):
            update_row("default", Credential, {"status": None}, where={"id": credential.pk})
        assert transaction.get_rollback()
    assert written_columns(credential)["status"] == "connected"


@pytest.mark.parametrize("name", ["{}", "file:{}", "file:{}?mode=rw&cache=private"])
def test_file_of_sqlite_is_found_by_each_form_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("SQLite alone is a file")
    file = tmp_path / "a site.sqlite3"
    file.touch()
    path = str(file) if name == "{}" else quote(str(file))
    monkeypatch.setitem(connection.settings_dict, "NAME", name.format(path))
    assert is_on_disk_of("default", tmp_path)
