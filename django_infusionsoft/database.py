"""Transactions of our own, whatever the caller's does, and the database's clock."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from django.db import (
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

T = TypeVar("T")

logger = logging.getLogger("django_infusionsoft")

RETRY_PAUSES: Final = (0.1, 0.3, 1.0, 3.0, 5.0, 10.0, 10.0)
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


def persist(alias: str, write: Callable[[], T], *, what: str) -> T:
    """Let ``write`` commit on its own, and try again for half a minute while the database is away.

    For what exists nowhere else. ``write`` must be harmless when it has reached the database
    although its answer was lost.

    :param what: whose loss it would be, for the log.
    :raises Exception: what the last try raised; the log has a line ``pair_not_stored`` then.
    """
    try:
        for pause in RETRY_PAUSES:
            try:
                with own_transaction(alias):
                    return write()
            except (OperationalError, InterfaceError, InternalError, DatabaseBusy):
                if connections[alias].needs_rollback:
                    raise  # a TestCase's transaction, which nothing can be written to any more
                logger.exception("pair_not_stored_yet %s", what)
                if not connections[alias].in_atomic_block:
                    connections[alias].close()
                time.sleep(pause)
        with own_transaction(alias):
            return write()
    except BaseException:
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
