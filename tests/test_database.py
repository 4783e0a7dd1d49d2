"""Transactions of our own, whatever the caller's does, and the database's clock."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

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

from django_infusionsoft.database import DatabaseNow, own_transaction, update_row
from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.fields import seal
from django_infusionsoft.models import Credential
from tests.support import threads

ONE_WRITER = "SQLite lets one writer in at a time"


def current() -> Any:
    return connections["default"]


@contextmanager
def rolled_back() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def names() -> list[str]:
    return sorted(Group.objects.values_list("name", flat=True))


# Own transactions


def test_block_runs_over_the_callers_connection_when_there_is_no_transaction(
    transactional_db: None,
) -> None:
    before = current()
    with own_transaction("default"):
        assert current() is before
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


def test_block_is_seen_by_others_before_the_caller_commits(deferred: None) -> None:
    with transaction.atomic():
        with own_transaction("default"):
            Group.objects.create(name="own")
        with threads(1) as start:
            assert start(names).result() == ["own"]


def test_block_does_not_see_what_the_caller_has_not_committed(deferred: None) -> None:
    if connection.vendor == "sqlite":
        pytest.skip(ONE_WRITER)
    with transaction.atomic():
        Group.objects.create(name="callers")
        with own_transaction("default"):
            assert names() == []
        assert names() == ["callers"]


def test_callers_own_writes_are_rolled_back_alone(deferred: None) -> None:
    with rolled_back():
        with own_transaction("default"):
            Group.objects.create(name="own")
        Group.objects.create(name="callers")
    assert names() == ["own"]


def test_block_inside_a_block_is_committed(deferred: None) -> None:
    with rolled_back(), own_transaction("default"), own_transaction("default"):
        Group.objects.create(name="own")
    assert names() == ["own"]


def test_block_inside_a_transaction_of_a_block_is_committed(deferred: None) -> None:
    if connection.vendor == "sqlite":
        pytest.skip(ONE_WRITER)
    with rolled_back(), own_transaction("default"), rolled_back(), own_transaction("default"):
        Group.objects.create(name="own")
    assert names() == ["own"]


def test_block_is_committed_when_the_caller_has_switched_autocommit_off(
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


def test_block_is_committed_when_the_settings_switch_autocommit_off(
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


def test_block_leaves_autocommit_as_the_caller_has_it(transactional_db: None) -> None:
    transaction.set_autocommit(False)
    try:
        with own_transaction("default"):
            Group.objects.count()
        assert not transaction.get_autocommit()
    finally:
        transaction.set_autocommit(True)


# Test cases


def test_block_joins_the_transaction_of_a_test(db: None) -> None:
    Group.objects.create(name="tests")
    before = current()
    with own_transaction("default"):
        assert current() is before
        assert names() == ["tests"]


def test_block_joins_the_transaction_of_a_test_inside_atomic(db: None) -> None:
    before = current()
    with transaction.atomic(), own_transaction("default"):
        assert current() is before


class InTestCase(TestCase):
    """Django's own test case, with a class-wide transaction around each test's."""

    @classmethod
    def setUpTestData(cls) -> None:
        with own_transaction("default"):
            Group.objects.create(name="class")

    def test_block_sees_the_data_of_the_class(self) -> None:
        with transaction.atomic(), own_transaction("default"):
            assert names() == ["class"]

    def test_block_is_rolled_back_with_the_test(self) -> None:
        with own_transaction("default"):
            Group.objects.create(name="test")
        assert names() == ["class", "test"]

    def test_block_was_rolled_back_with_the_other_test(self) -> None:
        assert names() == ["class"]


class InTransactionTestCase(TransactionTestCase):
    """Django's test case without a transaction of its own."""

    def test_block_runs_over_the_callers_connection(self) -> None:
        before = current()
        with own_transaction("default"):
            assert current() is before


# Connections


def leave(error: Exception | None) -> Any:
    """Pass through a block inside a transaction, and return the connection that it used."""
    with transaction.atomic():
        before = current()
        try:
            with own_transaction("default"):
                own = current()
                assert own is not before
                Group.objects.count()
                if error is not None:
                    raise error
        finally:
            assert current() is before
            assert own.connection is None
    return own


def test_second_connection_is_closed_after_a_block(deferred: None) -> None:
    leave(None)


@pytest.mark.parametrize(
    "error", [ValueError("mine"), IntegrityError("twice"), ObjectDoesNotExist("none")]
)
def test_error_comes_out_and_the_second_connection_is_closed(
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


def test_operational_error_is_the_callers_when_there_is_no_transaction(
    transactional_db: None,
) -> None:
    with pytest.raises(OperationalError), own_transaction("default"):
        raise OperationalError("gone")


def test_error_says_what_to_do_when_no_second_connection_is_given(
    deferred: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, parameters: Any) -> Any:
        raise OperationalError("too many clients")

    with transaction.atomic():
        before = current()
        Group.objects.count()
        monkeypatch.setattr(type(before), "get_new_connection", refuse)
        with pytest.raises(DatabaseBusy), own_transaction("default"):
            pytest.fail("There is no connection.")
        assert current() is before


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
    monkeypatch.setattr("django_infusionsoft.database.LOCK_TIMEOUT_SECONDS", 1)
    group = Group.objects.create(name="before")
    with transaction.atomic():
        Group.objects.filter(pk=group.pk).update(name="callers")
        with pytest.raises(DatabaseBusy), own_transaction("default"):
            Group.objects.filter(pk=group.pk).update(name="own")
    assert names() == ["callers"]


def test_limit_does_not_stay_on_the_callers_connection(deferred: None) -> None:
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


def test_limit_does_not_stay_on_a_pooled_connection(transactional_db: None) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("Django pools connections of PostgreSQL alone")
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
                assert limit(current()) != before
            with own_transaction("default"):
                Group.objects.count()
            assert limit(pooled) == before
        finally:
            pooled.close_pool()


def test_other_threads_keep_their_connection(deferred: None) -> None:
    with transaction.atomic(), own_transaction("default"):
        own = current()
        with threads(1) as start:
            assert start(current).result() is not own


# The clock


@contextmanager
def session_time_zone(hours: int) -> Iterator[None]:
    """Let the database session live in another time zone, where it has one."""
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
def test_databases_clock_is_utc_whatever_the_sessions_time_zone_is(db: None, hours: int) -> None:
    Group.objects.create(name="any")
    with session_time_zone(hours):
        now = Group.objects.annotate(now=DatabaseNow()).values_list("now", flat=True).get()
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)


@pytest.mark.parametrize("hours", [0, 5, -8])
def test_databases_clock_is_stored_and_compared_as_utc(
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


def test_databases_clock_goes_on_within_a_transaction(transactional_db: None) -> None:
    def read() -> datetime:
        now: datetime = Group.objects.annotate(now=DatabaseNow()).values_list("now", flat=True)[0]
        return now

    Group.objects.create(name="any")
    with transaction.atomic():
        first = read()
        while read() == first:  # a transaction's own clock would never leave this loop
            assert datetime.now(UTC) - first < timedelta(seconds=5)


def test_databases_clock_tells_parts_of_a_second(db: None) -> None:
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


def facts(credential: Credential) -> dict[str, Any]:
    """Return what was written, as the database has it now."""
    found: dict[str, Any] = Credential.objects.filter(pk=credential.pk).values(*COLUMNS).get()
    return found


def test_update_writes_what_the_orm_would(
    connect: Callable[..., Credential],
) -> None:
    ours, orms = connect("ab123"), connect("cd456")
    where = {"id": ours.pk, "generation": 1}
    assert update_row("default", Credential, COLUMNS, where=where) == 1
    assert Credential.objects.filter(pk=orms.pk).update(**COLUMNS) == 1
    assert facts(ours) == facts(orms) == COLUMNS
    assert Credential.objects.get(pk=ours.pk).access_token == "pässword 'quoted' 100%"


def test_update_writes_what_the_orm_would_where_the_value_was_another(
    connect: Callable[..., Credential],
) -> None:
    credential = connect()
    for columns in (COLUMNS, {"refresh_at": MOMENT, "lease_until": None, "generation": 3}):
        where = {"id": credential.pk}
        assert update_row("default", Credential, columns, where=where) == 1
    row = Credential.objects.get(pk=credential.pk)
    assert (row.refresh_at, row.lease_until, row.generation) == (MOMENT, None, 3)


def test_update_is_of_no_other_row_and_returns_how_many_there_were(
    connect: Callable[..., Credential],
) -> None:
    ours, other = connect("ab123"), connect("cd456")
    before = facts(other)
    for where in ({"id": ours.pk, "generation": 7}, {"id": ours.pk + other.pk, "generation": 1}):
        assert update_row("default", Credential, {"generation": 9}, where=where) == 0
    assert update_row("default", Credential, {"generation": 9}, where={"id": ours.pk}) == 1
    assert facts(other) == before
    assert update_row("default", Credential, {"failures": 1}, where={"failures": 0}) == 2


def test_update_that_fails_leaves_a_transaction_to_be_rolled_back(
    credential: Credential, transactional_db: None
) -> None:
    with transaction.atomic():
        with pytest.raises(DatabaseError):
            update_row("default", Credential, {"status": None}, where={"id": credential.pk})
        assert transaction.get_rollback()
    assert facts(credential)["status"] == "connected"
