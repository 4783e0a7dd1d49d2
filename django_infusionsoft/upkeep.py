"""The row through which the processes of a site know when a run was seen, and what was mailed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db.models import Q, QuerySet

from django_infusionsoft.application_states import from_now
from django_infusionsoft.database import DatabaseNow, own_transaction
from django_infusionsoft.rows import process_name

if TYPE_CHECKING:
    from django_infusionsoft.models import Upkeep


def read(alias: str) -> Upkeep | None:
    """Return the row, by the database's clock too; ``None`` where nothing was ever written."""
    return _row(alias).annotate(database_now=DatabaseNow()).first()  # type: ignore[no-redef]


def see_run(alias: str) -> None:
    """Write down that a run is going on."""
    _write(alias, run_seen_at=DatabaseNow(), run_worker=process_name())


def end_run(alias: str, *, ended: str, refreshed: int, failed: int) -> None:
    """Write down that a run has ended, and with what."""
    _write(
        alias,
        run_seen_at=DatabaseNow(),
        run_ended_at=DatabaseNow(),
        run_ended=ended,
        run_refreshed=refreshed,
        run_failed=failed,
        run_worker=process_name(),
    )


def take_mail(alias: str, *, seconds: float, pause_seconds: float) -> bool:
    """Take the right to send a mail for so many seconds; False where somebody else has it.

    :param pause_seconds: False as well where the last mail was sent less than this ago.
    """
    is_free = Q(mail_until__isnull=True) | Q(mail_until__lte=DatabaseNow())
    is_quiet = Q(mailed_at__isnull=True) | Q(mailed_at__lte=from_now(-pause_seconds))
    with own_transaction(alias):
        _make(alias)
        return bool(_row(alias).filter(is_free, is_quiet).update(mail_until=from_now(seconds)))


def end_mail(alias: str, **columns: Any) -> None:
    """Write down that the mail was sent, and what else is so since."""
    _write(alias, mail_until=None, mailed_at=DatabaseNow(), **columns)


def _write(alias: str, **columns: Any) -> None:
    with own_transaction(alias):
        if not _row(alias).update(**columns):
            _make(alias)
            _row(alias).update(**columns)


def _make(alias: str) -> None:
    model = _row(alias).model
    _row(alias).bulk_create([model()], ignore_conflicts=True)


def _row(alias: str) -> QuerySet[Upkeep]:
    # By its name: the models are above this module.
    model: type[Upkeep] = apps.get_model("django_infusionsoft", "Upkeep")
    return model._base_manager.using(alias).filter(pk=model.THE_ONE)
