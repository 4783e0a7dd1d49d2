"""Records the worker's runs and the mails that were sent, for all processes of a site."""

from typing import Any

from django.db.models import Q, QuerySet

from django_infusionsoft.storage.applications import from_now
from django_infusionsoft.storage.database import DatabaseNow, own_transaction
from django_infusionsoft.storage.worker import WorkerState, process_name


def read(alias: str) -> WorkerState | None:
    """Return the row, with the database's current time; ``None`` if nothing was ever recorded."""
    return _row(alias).annotate(database_now=DatabaseNow()).first()  # type: ignore[no-redef]


def record_heartbeat(alias: str) -> None:
    """Record that a run is in progress."""
    _write(alias, run_seen_at=DatabaseNow(), run_worker=process_name())


def end_run(alias: str, *, ended: str, refreshed: int, failed: int) -> None:
    """Record that a run has ended, and its result."""
    _write(
        alias,
        run_seen_at=DatabaseNow(),
        run_ended_at=DatabaseNow(),
        run_ended=ended,
        run_refreshed=refreshed,
        run_failed=failed,
        run_worker=process_name(),
    )


def lock_mail(alias: str, *, seconds: float, pause_seconds: float) -> bool:
    """Reserve the sending of a mail for ``seconds``; return false if another process has it.

    :param pause_seconds: also return false if the last mail was sent less than this long ago.
    """
    is_free = Q(mail_locked_until__isnull=True) | Q(mail_locked_until__lte=DatabaseNow())
    is_quiet = Q(mailed_at__isnull=True) | Q(mailed_at__lte=from_now(-pause_seconds))
    with own_transaction(alias):
        _create(alias)
        return bool(
            _row(alias).filter(is_free, is_quiet).update(mail_locked_until=from_now(seconds))
        )


def unlock_mail(alias: str, **columns: Any) -> None:
    """Record that the mail was sent, and set further columns."""
    _write(alias, mail_locked_until=None, mailed_at=DatabaseNow(), **columns)


def _write(alias: str, **columns: Any) -> None:
    with own_transaction(alias):
        if not _row(alias).update(**columns):
            _create(alias)
            _row(alias).update(**columns)


def _create(alias: str) -> None:
    model = _row(alias).model
    _row(alias).bulk_create([model()], ignore_conflicts=True)


def _row(alias: str) -> QuerySet[WorkerState]:
    return WorkerState._base_manager.using(alias).filter(pk=WorkerState.THE_ONE)
