"""Transactions of our own, whatever the caller's does, and the database's clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from django.db import Error, OperationalError, connections
from django.db.models.functions import Now

from django_infusionsoft.exceptions import DatabaseBusy

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

# How long our own connection waits for a lock that the caller's transaction may hold: in that
# case for ever.
LOCK_TIMEOUT_SECONDS: Final = 5


class DatabaseNow(Now):
    """The database's clock in UTC, as Django stores datetimes: the same for every worker."""

    def as_mysql(self, compiler: Any, connection: Any, **extra_context: Any) -> Any:
        # CURRENT_TIMESTAMP is in the session's time zone, which Django leaves as it is.
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **extra_context)


@contextmanager
def own_transaction(alias: str) -> Iterator[None]:
    """Let queries in the block commit on their own, even inside the caller's ``atomic()``.

    A rotated pair must survive the caller's rollback. Where the caller holds a transaction, the
    block runs over a second connection. The transaction of a ``TestCase`` is none of a caller's:
    its data would be invisible from outside, so there the block joins it.

    :raises DatabaseBusy: the second connection is refused or stays locked out. On SQLite that is
        so where the caller has written already; elsewhere where it has locked the same row.
    """
    current = connections[alias]
    if not _is_held_by_caller(current):
        yield
        return
    own = connections.create_connection(alias)
    connections[alias] = own
    try:
        own.set_autocommit(True)  # where the settings say otherwise
        _limit_lock_waits(own)
        yield
    except OperationalError as error:
        raise DatabaseBusy(
            "This runs inside a transaction that keeps the database from being written by a "
            "second connection: refresh the credential before the transaction, or commit it first."
        ) from error
    finally:
        connections[alias] = current
        _give_back(own)


def _is_held_by_caller(connection: BaseDatabaseWrapper) -> bool:
    blocks = connection.atomic_blocks
    if blocks:
        return not any(getattr(block, "_from_testcase", False) for block in blocks)
    if connection.connection is None:
        return not connection.settings_dict["AUTOCOMMIT"]
    return not connection.get_autocommit()


def _limit_lock_waits(connection: BaseDatabaseWrapper) -> None:
    statement = {
        "postgresql": f"SET lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'",
        "mysql": f"SET SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT_SECONDS}",
        "sqlite": f"PRAGMA busy_timeout = {LOCK_TIMEOUT_SECONDS * 1000}",
    }.get(connection.vendor)
    if statement:
        with connection.cursor() as cursor:
            cursor.execute(statement)


def _give_back(connection: BaseDatabaseWrapper) -> None:
    if connection.connection is not None and connection.settings_dict["OPTIONS"].get("pool"):
        # It lives on, for somebody who has not asked for our timeout.
        with suppress(Error), connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")
    connection.close()
