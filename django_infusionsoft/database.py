"""Transactions of our own, whatever the caller's does, and the database's clock."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from django.db import (
    DatabaseError,
    InterfaceError,
    InternalError,
    OperationalError,
    connections,
    transaction,
)
from django.db.models.functions import Now

from django_infusionsoft.exceptions import DatabaseBusy

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Model

T = TypeVar("T")
View = TypeVar("View", bound=Callable[..., Any])

logger = logging.getLogger("django_infusionsoft")

RETRY_PAUSES: Final = (0.1, 0.3, 1.0, 3.0, 5.0, 10.0, 10.0)
# How long our own connection waits for a lock that the caller's transaction may hold: in that
# case for ever.
LOCK_TIMEOUT_SECONDS: Final = 5
# How long our own transaction may do nothing: it has two statements, and nothing between them.
IDLE_TIMEOUT_SECONDS: Final = 5


def retry_pauses() -> Iterator[float]:
    """Return the pauses in seconds between the tries to store something."""
    return iter(RETRY_PAUSES)


class DatabaseNow(Now):
    """The database's clock in UTC, as Django stores datetimes: the same for every worker."""

    def as_mysql(self, compiler: Any, connection: Any, **extra_context: Any) -> Any:
        # CURRENT_TIMESTAMP is in the session's time zone, which Django leaves as it is.
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **extra_context)


def database_name(alias: str) -> str:
    """Return the database's ``NAME``: what tells the sites of one machine apart."""
    return str(connections.settings[alias]["NAME"])


def outside_atomic_requests(view: View) -> View:
    """Return the view, which ``ATOMIC_REQUESTS`` leaves alone, whatever the database.

    What it stores must not be undone by what happens afterwards.
    """
    for alias in connections:
        transaction.non_atomic_requests(alias)(view)
    return view


@contextmanager
def own_transaction(alias: str) -> Iterator[None]:
    """Let queries in the block commit on their own, even inside the caller's ``atomic()``.

    A rotated pair must survive the caller's rollback. Where the caller holds a transaction, the
    block runs over a second connection. The transaction of a ``TestCase`` is none of a caller's:
    its data would be invisible from outside, so there the block joins it.

    :raises DatabaseBusy: the second connection is refused or stays locked out: the caller has
        locked the same row, or, on SQLite, has written, or has read without a write-ahead log.
    """
    current = connections[alias]
    if not _is_held_by_caller(current):
        yield
        return
    own = connections.create_connection(alias)
    connections[alias] = own
    try:
        own.set_autocommit(True)  # where the settings say otherwise
        with _limited_lock_waits(own):
            yield
    except OperationalError as error:
        raise DatabaseBusy(
            "This runs inside a transaction that keeps the database from being written by a "
            "second connection: refresh the credential before the transaction, or commit it first."
        ) from error
    finally:
        connections[alias] = current
        own.close()


@contextmanager
def brief_transaction(alias: str) -> Iterator[None]:
    """A transaction whose locks the database gives back soon, should this process be stopped."""
    connection = connections[alias]
    is_mariadb = connection.vendor == "mysql" and getattr(connection, "mysql_is_mariadb", False)
    if is_mariadb:
        _execute(connection, f"SET SESSION idle_transaction_timeout = {IDLE_TIMEOUT_SECONDS}")
    try:
        with transaction.atomic(using=alias):
            if connection.vendor == "postgresql":
                limit = f"idle_in_transaction_session_timeout = '{IDLE_TIMEOUT_SECONDS}s'"
                _execute(connection, f"SET LOCAL {limit}")
            yield
    finally:
        if is_mariadb and connection.is_usable():
            _execute(connection, "SET SESSION idle_transaction_timeout = DEFAULT")


def update_row(
    alias: str, model: type[Model], values: Mapping[str, Any], *, where: Mapping[str, Any]
) -> int:
    """Send the ``UPDATE`` that ``filter(**where).update(**values)`` would, of plain values.

    For what is written thousands of times in a row: building the statement anew takes the ORM
    several times as long as sending it (``benchmarks``, measure ``cpu``).
    """
    connection = connections[alias]
    statement, fields = _update_of(connection.vendor, model, tuple(values), tuple(where))
    parameters = [
        field.get_db_prep_save(value, connection)
        for field, value in zip(fields, (*values.values(), *where.values()), strict=True)
    ]
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return int(cursor.rowcount)
    except DatabaseError:
        if connection.in_atomic_block:
            transaction.set_rollback(True, using=alias)
        raise


@cache
def _update_of(
    vendor: str, model: type[Model], values: tuple[str, ...], where: tuple[str, ...]
) -> tuple[str, list[Any]]:
    """Return the statement and the fields of its parameters."""
    backend = next(each for each in connections.all() if each.vendor == vendor)
    quote = backend.ops.quote_name
    known: Mapping[str, Any] = {field.attname: field for field in model._meta.concrete_fields}
    fields = [known[name] for name in (*values, *where)]
    assigned = [f"{quote(field.column)} = %s" for field in fields]
    statement = (
        f"UPDATE {quote(model._meta.db_table)} SET {', '.join(assigned[: len(values)])} "  # noqa: S608
        f"WHERE {' AND '.join(assigned[len(values) :])}"
    )
    return statement, fields


def persist(
    alias: str,
    write: Callable[[], T],
    *,
    what: str,
    secure: Callable[[], bool] = lambda: False,
    patience: Iterator[float] | None = None,
) -> T:
    """Let ``write`` commit on its own, and try again for half a minute while the database is away.

    For what exists nowhere else. ``write`` must be harmless when it has reached the database
    although its answer was lost.

    :param what: whose loss it would be, for the log.
    :param secure: keeps it safe elsewhere, and returns whether it is; called on the first failure.
    :param patience: pauses that several share, for what is safe elsewhere.
    :raises Exception: what the last try raised. The log has a line ``pair_spooled`` then, or
        ``pair_not_stored``, the only one at level CRITICAL, where it is lost with the process.
    """
    pauses, is_safe = retry_pauses(), False
    try:
        while True:
            try:
                with own_transaction(alias):
                    return write()
            except (OperationalError, InterfaceError, InternalError, DatabaseBusy):
                if connections[alias].needs_rollback:
                    raise  # a TestCase's transaction, which nothing can be written to any more
                logger.exception("pair_not_stored_yet %s", what)
                is_safe = is_safe or secure()
                if not connections[alias].in_atomic_block:
                    connections[alias].close()
                pause = next(patience if is_safe and patience is not None else pauses, None)
                if pause is None:
                    raise
                time.sleep(pause)
    except BaseException:
        if is_safe or secure():
            logger.error("pair_spooled %s", what)
        else:
            logger.critical("pair_not_stored %s", what)
        raise


def _is_held_by_caller(connection: BaseDatabaseWrapper) -> bool:
    blocks = connection.atomic_blocks
    if blocks:
        return not any(getattr(block, "_from_testcase", False) for block in blocks)
    if connection.connection is None:
        return not connection.settings_dict["AUTOCOMMIT"]
    return not connection.get_autocommit()


@contextmanager
def _limited_lock_waits(connection: BaseDatabaseWrapper) -> Iterator[None]:
    if connection.vendor == "postgresql":
        # Within a transaction: a pool would hand a session's limit on to somebody else.
        with transaction.atomic(using=connection.alias):
            _execute(connection, f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
            yield
        return
    if connection.vendor == "mysql":
        _execute(connection, f"SET SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT_SECONDS}")
    elif connection.vendor == "sqlite":
        _execute(connection, f"PRAGMA busy_timeout = {LOCK_TIMEOUT_SECONDS * 1000}")
    yield


def _execute(connection: BaseDatabaseWrapper, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
