"""Transactions independent of the caller's, and the database's clock."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from django.db import (
    DatabaseError,
    InterfaceError,
    InternalError,
    OperationalError,
    connections,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import CharField, Func, Model
from django.db.models.functions import Now

from django_infusionsoft import elapsed
from django_infusionsoft.exceptions import AnotherSession, DatabaseBusy, LockedByCaller

T = TypeVar("T")
View = TypeVar("View", bound=Callable[..., Any])

logger = logging.getLogger("django_infusionsoft")

RETRY_PAUSES: Final = (0.1, 0.3, 1.0, 3.0, 5.0, 10.0, 10.0)
# How long a second connection waits for a lock. If the caller's transaction holds it, it would
# wait for ever.
LOCK_TIMEOUT_SECONDS: Final = 5
# How long an own transaction waits for a second connection. If callers' transactions hold all of
# them, each waits for the others: half a minute with a pool of Django's, and two with PgBouncer.
CONNECTION_TIMEOUT_SECONDS: Final = 3.0
BEGIN_THREAD: Final = "infusionsoft-begin"
# How long a claim's transaction may be idle: it has two statements, and nothing between them.
IDLE_TIMEOUT_SECONDS: Final = 5
LOCKED_OUT: Final = (
    "The current transaction prevents a second connection from writing to the database: refresh "
    "the credential before the transaction, or commit the transaction first."
)
NO_CONNECTION: Final = (
    "No database connection is available. A refresh inside a transaction needs a second one: "
    "raise the limit (such as the pool's max_size, or PgBouncer's default_pool_size), or refresh "
    "the credential before the transaction."
)


ANOTHER_SESSION: Final = (
    "The current transaction has another role or search_path than a second connection to the "
    "database would have: connect or refresh the account before the transaction, or set both for "
    "all connections in the OPTIONS of the database."
)


class _Shared(threading.local):
    """A thread's second connections, by alias."""

    def __init__(self) -> None:
        self.connections: dict[str, BaseDatabaseWrapper] = {}
        self.sessions: dict[str, tuple[str, str]] = {}
        """The callers' roles and search paths, until they are compared."""
        self.current: dict[str, tuple[BaseDatabaseWrapper, int]] = {}
        """The connections of the innermost own transactions, with their numbers of blocks."""


_shared: Final = _Shared()


def retry_pauses(until: float = math.inf) -> Iterator[float]:
    """Yield the pauses in seconds between the attempts to store something.

    :param until: the reading of ``elapsed.monotonic()`` at which the last one ends.
    """
    for pause in RETRY_PAUSES:
        if elapsed.monotonic() + pause > until:
            break
        yield pause


class DatabaseNow(Now):
    """The database's clock, in UTC as Django stores datetimes: the same for every worker."""

    def as_mysql(self, compiler: Any, connection: Any, **extra_context: Any) -> Any:
        # CURRENT_TIMESTAMP is in the session's time zone, which Django does not set.
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **extra_context)


class TableSchema(Func):
    """The PostgreSQL schema of a model's table; empty on other databases."""

    template = "''"
    output_field = CharField()

    def __init__(self, model: type[Model]) -> None:
        super().__init__()
        self.table = model._meta.db_table

    def as_postgresql(self, compiler: Any, connection: Any, **extra_context: Any) -> Any:
        # Not current_schema(): the table of all tenants may be in another one.
        table = connection.ops.quote_name(self.table)
        where = f"oid = '{table}'::regclass"
        return f"(SELECT relnamespace::regnamespace::text FROM pg_class WHERE {where})", ()  # noqa: S608


def table_schema(alias: str, model: type[Model]) -> str:
    """Return the PostgreSQL schema of a model's table; empty on other databases."""
    connection = connections[alias]
    if connection.vendor != "postgresql":
        return ""
    query, _ = TableSchema(model).as_postgresql(None, connection)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {query}")
        return str(cursor.fetchone()[0])


def database_name(alias: str) -> str:
    """Return the database's ``NAME``, which tells the sites of one machine apart."""
    return str(connections.settings[alias]["NAME"])


def is_on_disk_of(alias: str, folder: Path) -> bool:
    """Whether the database is a file on the same disk. A server's disk is unknown."""
    connection = connections[alias]
    if connection.vendor != "sqlite":
        return False
    name = str(connection.settings_dict["NAME"])
    # SQLite takes URIs, too: https://www.sqlite.org/uri.html
    file = unquote(urlsplit(name).path) if name.startswith("file:") else name
    try:
        return Path(file).stat().st_dev == folder.stat().st_dev
    except OSError:  # a database in memory
        return False


def outside_atomic_requests(view: View) -> View:
    """Exempt a view from ``ATOMIC_REQUESTS`` for all databases.

    A later error in the request must not undo what it stores.
    """
    for alias in connections:
        transaction.non_atomic_requests(alias)(view)
    return view


@contextmanager
def own_connection(alias: str) -> Iterator[None]:
    """Let all own transactions in the block that need a second connection share one.

    The first of them opens it. All other queries use the caller's connection.
    """
    if alias in _shared.connections:
        yield
        return
    caller = connections[alias]
    if caller.errors_occurred:  # in a process that lives long: see close_lost_connections()
        _close_if_lost(caller)
    _shared.connections[alias] = _new_connection(caller)
    if _is_held_by_caller(caller) and (session := _session(caller)):
        _shared.sessions[alias] = session
    try:
        yield
    finally:
        _shared.sessions.pop(alias, None)
        _shared.connections.pop(alias).close()


def close_own_connection(alias: str) -> None:
    """Close the second connection before something slow; the next own transaction reopens it."""
    if shared := _shared.connections.get(alias):
        shared.close()


@contextmanager
def own_transaction(alias: str) -> Iterator[None]:
    """Let queries in the block commit on their own, even inside the caller's ``atomic()``.

    A rotated token pair must survive the caller's rollback. If the caller holds a transaction, the
    block uses a second connection. It joins the transaction of a ``TestCase``, whose data other
    connections cannot see.

    A tenant of django-tenants is selected on it, too.

    :raises DatabaseBusy: no second connection is available within a few seconds, or a lock blocks
        it: the caller has locked the same row, or, on SQLite, has written, or has read without a
        write-ahead log. Or the caller's connection has another role or search path.
    :raises LockedByCaller: the same for SQLite, at once.
    """
    current = connections[alias]
    outer = _shared.current.get(alias)
    if not _is_held_by_caller(current) or outer == (current, len(current.atomic_blocks)):
        yield
        return
    is_ready = False
    try:
        with _second_connection(alias) as own:
            _require_same_session(own, current)
            is_ready = True
            _shared.current[alias] = own, len(own.atomic_blocks)
            with _checked_writes(own, current):
                yield
    except OperationalError as error:
        raise DatabaseBusy(LOCKED_OUT if is_ready else NO_CONNECTION) from error
    finally:
        _shared.current.pop(alias, None)
        if outer is not None:
            _shared.current[alias] = outer


@contextmanager
def brief_transaction(alias: str) -> Iterator[None]:
    """A transaction whose locks the database releases soon if this process is stopped."""
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
    alias: str,
    model: type[Model],
    values: Mapping[str, Any],
    *,
    where: Mapping[str, Any],
    constants: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Execute the ``UPDATE`` of ``filter(**where).update(**values, **constants)``.

    For statements that run thousands of times with plain values: the ORM builds one in several
    times the time that sending it takes (``benchmarks``, measure ``cpu``).

    :param constants: values that are the same each time, and no parameters of the statement.
    """
    connection = connections[alias]
    statement, fields = _update_of(
        connection.vendor, model, tuple(values), tuple(constants.items()), tuple(where)
    )
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
    vendor: str,
    model: type[Model],
    values: tuple[str, ...],
    constants: tuple[tuple[str, Any], ...],
    where: tuple[str, ...],
) -> tuple[str, list[Any]]:
    """Return the statement and the fields of its parameters."""
    backend = next(each for each in connections.all() if each.vendor == vendor)
    quote, literal = backend.ops.quote_name, backend.schema_editor().quote_value
    known: Mapping[str, Any] = {field.attname: field for field in model._meta.concrete_fields}

    def assigned(name: str, value: str = "%s") -> str:
        return f"{quote(known[name].column)} = {value}"

    changes = [assigned(name) for name in values]
    changes += [assigned(name, literal(value)) for name, value in constants]
    conditions = " AND ".join(assigned(name) for name in where)
    statement = f"UPDATE {quote(model._meta.db_table)} SET {', '.join(changes)} WHERE {conditions}"  # noqa: S608
    return statement, [known[name] for name in (*values, *where)]


def persist(
    alias: str,
    write: Callable[[], T],
    *,
    what: str,
    fsync: Callable[[], bool] = lambda: False,
    retry_delays: Iterator[float] | None = None,
    is_pair: bool = True,
) -> T:
    """Let ``write`` commit on its own; retry for half a minute while the database is unavailable.

    ``write`` must be safe to repeat: it may have succeeded although the answer was lost.

    :param fsync: stores it elsewhere, after a failure, and returns whether it did.
    :param retry_delays: pauses that several calls share once ``fsync`` has succeeded.
    :param is_pair: whether it is a token pair; anything else shares the pauses from the start.
    :raises Exception: the last failure, which is logged: see ``_log_failure``.
    """
    pauses, is_safe = retry_pauses(), False
    try:
        while True:
            try:
                with own_transaction(alias):
                    return write()
            except (AnotherSession, LockedByCaller):
                raise  # every retry would find the same
            except (OperationalError, InterfaceError, InternalError, DatabaseBusy) as error:
                if connections[alias].needs_rollback:
                    raise  # a TestCase's transaction, to which nothing can be written any more
                _log_delay(what, error, is_pair=is_pair)
                is_safe = is_safe or fsync()
                close_idle_connection(alias)
                shared = retry_delays if is_safe or not is_pair else None
                if (pause := next(shared or pauses, None)) is None:
                    raise
                time.sleep(pause)
    except BaseException:
        _log_failure(what, is_pair=is_pair, is_safe=is_safe or fsync())
        raise


def _log_delay(what: str, error: Exception, *, is_pair: bool) -> None:
    if is_pair:
        logger.error("pair_not_stored_yet %s", what, exc_info=error)
    else:
        logger.error("outcome_not_stored_yet %s", what, exc_info=error)


def _log_failure(what: str, *, is_pair: bool, is_safe: bool) -> None:
    """Log it. At level CRITICAL, and only then, a token pair is lost with the process."""
    if not is_pair:
        logger.error("outcome_not_stored %s spooled=%d", what, is_safe)
    elif is_safe:
        logger.error("pair_spooled %s", what)
    else:
        logger.critical("pair_not_stored %s", what)


@contextmanager
def limited_lock_waits(alias: str) -> Iterator[None]:
    """Wait for locks in the block for ``LOCK_TIMEOUT_SECONDS`` at most."""
    connection = connections[alias]
    connection.ensure_connection()
    try:
        with _limited_lock_waits(connection):
            yield
    finally:
        if connection.vendor == "mysql" and connection.is_usable():
            names = ("lock_wait_timeout", "innodb_lock_wait_timeout")
            _execute(connection, f"SET SESSION {', '.join(f'{each} = DEFAULT' for each in names)}")
        elif connection.vendor == "sqlite":
            timeout = float(connection.settings_dict["OPTIONS"].get("timeout", 5.0))
            _execute(connection, f"PRAGMA busy_timeout = {int(timeout * 1000)}")


def close_lost_connections() -> None:
    """Close this thread's connections that the server has closed: the next query opens others.

    Django does this between requests only, and not in the thread of a scheduler or in a loop.
    """
    for connection in connections.all(initialized_only=True):
        _close_if_lost(connection)


def _close_if_lost(connection: BaseDatabaseWrapper) -> None:
    if connection.connection is not None and not connection.is_usable():
        close_idle_connection(connection.alias)


def close_idle_connection(alias: str) -> None:
    """Close a connection that may be lost, unless it is in a transaction."""
    connection = connections[alias]
    if not (connection.in_atomic_block or _is_held_by_caller(connection)):
        connection.close()


def is_in_testcase(alias: str) -> bool:
    """Whether the connection is in the transaction of a ``TestCase``."""
    blocks = connections[alias].atomic_blocks
    return any(getattr(block, "_from_testcase", False) for block in blocks)


def _is_held_by_caller(connection: BaseDatabaseWrapper) -> bool:
    if connection.atomic_blocks:
        return not is_in_testcase(connection.alias)
    if connection.connection is None:
        return not connection.settings_dict["AUTOCOMMIT"]
    return not connection.get_autocommit()


@contextmanager
def _second_connection(alias: str) -> Iterator[BaseDatabaseWrapper]:
    """Use the shared connection unless it is in a transaction, otherwise a new one.

    :raises DatabaseBusy: none is available in a few seconds.
    """
    caller, own = connections[alias], _shared.connections.get(alias)
    is_shared = own is not None and not own.in_atomic_block
    if own is None or not is_shared:
        own = _new_connection(caller)
    begun: Future[ExitStack] = Future()
    connections[alias] = own
    try:
        with _begin_in_thread(begun, own, _tenant_of(caller)):
            yield own
    except BaseException:
        if not begun.cancel():
            own.close()  # it may be lost, or in the middle of an answer
        if is_shared:  # the thread may still wait for the old one
            _shared.connections[alias] = _new_connection(caller)
        raise
    finally:
        connections[alias] = caller
    if not is_shared:
        own.close()


def _begin_in_thread(
    begun: "Future[ExitStack]", own: BaseDatabaseWrapper, tenant: Any
) -> ExitStack:
    """Wait a few seconds for a second connection; see ``_begin``.

    No driver, pool or pooler lets a caller limit the wait. The first statement included: PgBouncer
    accepts a connection at once.

    :raises DatabaseBusy: it takes longer, or the process may start no more threads.
    """
    thread = threading.Thread(
        target=_begin, args=(begun, own, tenant), name=BEGIN_THREAD, daemon=True
    )
    try:
        thread.start()
    except RuntimeError as error:
        begun.set_exception(error)  # no thread will close the connection
        raise DatabaseBusy(NO_CONNECTION) from error
    try:
        return begun.result(CONNECTION_TIMEOUT_SECONDS)
    except TimeoutError:
        raise DatabaseBusy(NO_CONNECTION) from None


def _begin(begun: "Future[ExitStack]", own: BaseDatabaseWrapper, tenant: Any) -> None:
    """Open a second connection, and begin what limits its waits for locks. Runs in a thread."""
    connections[own.alias] = own
    try:
        with ExitStack() as stack:
            own.set_autocommit(True)  # whatever the settings say
            _select_tenant(own, tenant)
            stack.enter_context(_limited_lock_waits(own))
            if begun.set_running_or_notify_cancel():
                begun.set_result(stack.pop_all())
                return
    except BaseException as error:  # noqa: BLE001  # raised by result()
        if not begun.cancelled() and begun.set_running_or_notify_cancel():
            begun.set_exception(error)
            return
    own.close()  # too late


def tenant_selector(alias: str) -> Callable[[], None]:
    """Return a function that selects this thread's tenant in another thread."""
    tenant = _tenant_of(connections[alias])
    return lambda: _select_tenant(connections[alias], tenant)


def _new_connection(caller: BaseDatabaseWrapper) -> BaseDatabaseWrapper:
    own = connections.create_connection(caller.alias)
    own.inc_thread_sharing()
    _select_tenant(own, _tenant_of(caller))
    return own


def _tenant_of(connection: Any) -> tuple[Any, bool] | None:
    """Return the arguments of django-tenants' ``set_tenant``, if the connection has a tenant."""
    tenant = getattr(connection, "tenant", None)
    return tenant and (tenant, getattr(connection, "include_public_schema", True))


def _select_tenant(own: Any, tenant: tuple[Any, bool] | None) -> None:
    if tenant is not None and _tenant_of(own) != tenant:
        own.set_tenant(*tenant)


def _session(connection: BaseDatabaseWrapper) -> tuple[str, str] | None:
    """Return role and search path on PostgreSQL; ``None`` if they cannot be read."""
    if connection.vendor != "postgresql" or connection.needs_rollback:
        return None
    try:
        connection.ensure_connection()
        is_idle = connection.connection.info.transaction_status == 0
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_user, current_setting('search_path')")
            role, search_path = cursor.fetchone()
        if is_idle and not connection.get_autocommit():
            connection.connection.rollback()  # without autocommit, the query has begun one
    except (DatabaseError, InterfaceError):  # it is lost, or its transaction has failed
        return None
    return role, search_path


def _require_same_session(own: BaseDatabaseWrapper, caller: BaseDatabaseWrapper) -> None:
    """Compare a second connection with the caller's, before its first statement.

    The shared one only once: its caller's is read when the block begins.
    """
    is_shared = own is _shared.connections.get(own.alias)
    expected = _shared.sessions.get(own.alias) if is_shared else _session(caller)
    if expected is None:
        return
    if _session(own) != expected:
        raise AnotherSession(ANOTHER_SESSION)
    if is_shared:
        del _shared.sessions[own.alias]


@contextmanager
def _checked_writes(own: BaseDatabaseWrapper, caller: BaseDatabaseWrapper) -> Iterator[None]:
    """On SQLite, let a write fail at once if the caller's lock prevents it.

    Its commit would wait for the lock in vain, and block all readers meanwhile.
    """
    if caller.vendor != "sqlite":
        yield
        return

    def check(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if not sql.startswith("SELECT"):
            _require_no_lock(caller)
        return execute(sql, *rest)

    with own.execute_wrapper(check):
        yield


def _require_no_lock(caller: Any) -> None:
    """Raise ``LockedByCaller`` if the caller's transaction on SQLite prevents other writes.

    In write-ahead mode, a lock that was taken by a read does not. Only the mode of the transaction
    tells then.
    """
    raw = caller.connection
    if raw is None:
        return
    is_writer = getattr(caller, "transaction_mode", None) in ("IMMEDIATE", "EXCLUSIVE")
    try:
        ((journal_mode,),) = raw.execute("PRAGMA journal_mode").fetchall()
        if journal_mode == "wal" and not is_writer:
            return
        # It fails in a transaction with a lock, and otherwise does nothing. No other statement
        # tells a transaction without one apart.
        raw.execute("PRAGMA wal_checkpoint").fetchall()
    except raw.OperationalError as error:
        # The write itself waits for the lock of another connection.
        if error.sqlite_errorname == "SQLITE_LOCKED":
            raise LockedByCaller(LOCKED_OUT) from error


@contextmanager
def _limited_lock_waits(connection: BaseDatabaseWrapper) -> Iterator[None]:
    if connection.vendor == "postgresql":
        # In a transaction: with a pool, the next user would get a session's limit too.
        with transaction.atomic(using=connection.alias):
            _execute(connection, f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
            yield
        return
    if connection.vendor == "mysql":
        for name in ("lock_wait_timeout", "innodb_lock_wait_timeout"):
            _execute(connection, f"SET SESSION {name} = {LOCK_TIMEOUT_SECONDS}")
    elif connection.vendor == "sqlite":
        _execute(connection, f"PRAGMA busy_timeout = {LOCK_TIMEOUT_SECONDS * 1000}")
    yield


def _execute(connection: BaseDatabaseWrapper, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
