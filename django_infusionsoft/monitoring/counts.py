"""Adds up the events of refreshes in ``DailyCount``."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, date, timedelta
from typing import Any, Final

from django.db import transaction
from django.db.models import F, QuerySet, Sum

from django_infusionsoft.choices import EventKind
from django_infusionsoft.monitoring.history import REFRESHES
from django_infusionsoft.storage.counts import DailyCount
from django_infusionsoft.storage.database import own_transaction
from django_infusionsoft.storage.events import CredentialEvent
from django_infusionsoft.storage.worker import WorkerState

# Per statement.
BATCH_SIZE: Final = 2000
DAYS_SHOWN: Final = 7
COLUMNS: Final[Mapping[str, str]] = {
    **dict.fromkeys(REFRESHES, "refreshed"),
    EventKind.REFRESH_FAILED: "failed",
    EventKind.REAUTHORIZATION_REQUIRED: "lost",
}


def add_up(alias: str) -> None:
    """Count the events since the last call, those of single refreshes included.

    An event that another process commits at this very moment, with a smaller id, is not counted.
    """
    while _add_up_some(alias) == BATCH_SIZE:
        pass


def last_days(alias: str, today: date) -> list[dict[str, Any]]:
    """Return the counts of the last ``DAYS_SHOWN`` days that have some, the newest first."""
    counts = DailyCount._base_manager.using(alias)
    since = today - timedelta(days=DAYS_SHOWN - 1)
    names = ("refreshed", "failed", "lost", "seconds")
    sums = {f"sum_{name}": Sum(name) for name in names}
    days: QuerySet[DailyCount, Any] = counts.filter(day__gte=since).values("day")
    days = days.annotate(**sums).order_by("-day")
    return [{"day": row["day"], **{name: row[f"sum_{name}"] for name in names}} for row in days]


def _add_up_some(alias: str) -> int:
    """Count up to ``BATCH_SIZE`` events; return how many."""
    workers = WorkerState._base_manager.using(alias).filter(pk=WorkerState.THE_ONE)
    with own_transaction(alias):
        counted = workers.values_list("counted_event_id", flat=True).first()
        if counted is None:  # no run was ever recorded
            return 0
        events = CredentialEvent._base_manager.using(alias).filter(pk__gt=counted).order_by("pk")
        columns = ("pk", "kind", "created_at", "credential__application_id", "duration_ms")
        found = list(events.values_list(*columns)[:BATCH_SIZE])
        if not found:
            return 0
        sums: dict[tuple[date, int], dict[str, float]] = defaultdict(lambda: defaultdict(int))
        for _, kind, created_at, application_id, milliseconds in found:
            if column := COLUMNS.get(kind):
                total = sums[created_at.astimezone(UTC).date(), application_id or 0]
                total[column] += 1
                total["seconds"] += (milliseconds or 0) / 1000
        with transaction.atomic(using=alias):
            # Two runs may be here at once: one of them counts.
            if workers.filter(counted_event_id=counted).update(counted_event_id=found[-1][0]):
                for (day, key), values in sorted(sums.items()):
                    _add(alias, day, key, values)
    return len(found)


def _add(alias: str, day: date, application_key: int, values: Mapping[str, float]) -> None:
    counts = DailyCount._base_manager.using(alias)
    row = counts.filter(day=day, application_key=application_key)
    sums = {name: F(name) + value for name, value in values.items()}
    if not row.update(**sums):
        new = DailyCount(day=day, application_key=application_key)
        counts.bulk_create([new], ignore_conflicts=True)
        row.update(**sums)
