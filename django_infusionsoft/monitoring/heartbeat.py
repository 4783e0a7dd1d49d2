"""Records the worker's runs and the mails that were sent, for all processes of a site."""

from typing import Any, Final

from django.db.models import Case, F, Q, QuerySet, When

from django_infusionsoft.storage.applications import from_now
from django_infusionsoft.storage.database import DatabaseNow, own_transaction
from django_infusionsoft.storage.worker import WorkerState

# A smaller difference makes no difference.
CLOCK_STEP_SECONDS: Final = 1.0


def read(alias: str) -> WorkerState | None:
    """Return the row, with the database's current time; ``None`` if nothing was ever recorded."""
    return _row(alias).annotate(database_now=DatabaseNow()).first()  # type: ignore[no-redef]


def begin_run(alias: str, *, pause_seconds: float) -> float | None:
    """Record that a run begins.

    :param pause_seconds: do nothing if another one began less than this long ago.
    :returns: how many seconds the clock has stepped back since the last record, or ``None``.
    """
    is_old = Q(run_began_at__lte=from_now(-pause_seconds)) | Q(run_began_at__gt=DatabaseNow())
    with own_transaction(alias):
        state = read(alias)
        if state is None:
            _create(alias)
        row = _row(alias).filter(is_old | Q(run_began_at__isnull=True))
        may_begin = row.update(run_began_at=DatabaseNow(), run_seen_at=DatabaseNow())
        return _seconds_ahead(state) if may_begin else None


def record_heartbeat(alias: str) -> None:
    """Record that a run is in progress."""
    _write(alias, run_seen_at=_seen_at())


def record_clock_step(alias: str) -> None:
    """Record that a time was found that lies further ahead than it can."""
    _write(alias, clock_stepped_at=DatabaseNow())


def end_run(alias: str, *, ended: str, refreshed: int, failed: int) -> None:
    """Record that a run has ended, and its result."""
    _write(
        alias,
        run_seen_at=_seen_at(),
        run_ended_at=DatabaseNow(),
        run_ended=ended,
        run_refreshed=refreshed,
        run_failed=failed,
    )


def lock_mail(alias: str, *, seconds: float, pause_seconds: float) -> bool:
    """Reserve the sending of a mail for ``seconds``; return false if another process has it.

    :param pause_seconds: also return false if the last mail was sent less than this long ago.
    """
    is_free = Q(mail_locked_until__isnull=True) | Q(mail_locked_until__lte=DatabaseNow())
    is_quiet = Q(mailed_at__isnull=True) | Q(mailed_at__lte=from_now(-pause_seconds))
    # The clock has stepped back.
    is_free |= Q(mail_locked_until__gt=from_now(2 * seconds))
    is_quiet |= Q(mailed_at__gt=DatabaseNow())
    with own_transaction(alias):
        _create(alias)
        return bool(
            _row(alias).filter(is_free, is_quiet).update(mail_locked_until=from_now(seconds))
        )


def unlock_mail(alias: str, **columns: Any) -> None:
    """Record that the mail was sent, and set further columns."""
    _write(alias, mail_locked_until=None, mailed_at=DatabaseNow(), **columns)


def _seconds_ahead(state: WorkerState | None) -> float:
    if state is None or state.run_seen_at is None:
        return 0.0
    seconds = (state.run_seen_at - state.database_now).total_seconds()
    return seconds if seconds > CLOCK_STEP_SECONDS else 0.0


def _seen_at() -> Case:
    """Return the time of a heartbeat: one that is ahead stays, since the next run must find it."""
    is_ahead = When(run_seen_at__gt=from_now(CLOCK_STEP_SECONDS), then=F("run_seen_at"))
    return Case(is_ahead, default=DatabaseNow())


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
