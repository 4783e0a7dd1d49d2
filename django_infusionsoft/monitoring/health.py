"""The state of all credentials of a site: for the admin, monitors, the command and mails."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from django.db.models import Count, Min, Q, QuerySet
from django.utils import timezone

from django_infusionsoft.choices import (
    ACTION_REQUIRED,
    NEEDS_OPERATOR,
    BlockReason,
    Condition,
    Kind,
    Status,
)
from django_infusionsoft.conf import conf
from django_infusionsoft.monitoring import heartbeat
from django_infusionsoft.monitoring.counts import last_days
from django_infusionsoft.storage.applications import ApplicationState, blocked
from django_infusionsoft.storage.credentials import (
    CredentialRow,
    credential_model,
    in_condition,
    is_idle,
)
from django_infusionsoft.storage.database import DatabaseNow, own_transaction
from django_infusionsoft.storage.worker import WorkerState
from django_infusionsoft.text import iso_format


class HealthStatus(StrEnum):
    """The overall state."""

    OK = "ok"
    FAILING = "failing"
    """The refreshes of an account fail, and have for long, or its access token has expired."""
    ACTION_REQUIRED = "action_required"
    """An account must be reconnected, an encryption key or a client is missing, Keap rejects an
    application's client or one account after the other, or no request can be made."""
    BEHIND = "behind"
    """Refreshes are overdue, or no run has been recorded for as long."""


# How long it is reported that the database's clock has stepped back.
CLOCK_STEP_SHOWN: Final = timedelta(days=1)
EXIT_CODES: Final[Mapping[HealthStatus, int]] = {
    HealthStatus.OK: 0,
    HealthStatus.FAILING: 1,
    HealthStatus.ACTION_REQUIRED: 1,
    HealthStatus.BEHIND: 2,
}


@dataclass(frozen=True, slots=True)
class Health:
    """The state of all credentials of a database, read with a few queries."""

    now: datetime
    """By the database's clock, like all times here."""
    counts: Mapping[Condition, int]
    alive: int
    """How many have a grant that is valid as far as is known; keys need no worker."""
    due: int
    """How many are due, and no process is refreshing them."""
    oldest_due_at: datetime | None
    expired: int
    """How many of the due ones have an expired access token."""
    oldest_issued_at: datetime | None
    """When the oldest refresh token of the due ones was issued."""
    worker_state: WorkerState | None
    """The recorded runs; ``None`` if nothing was ever recorded."""
    blocked_applications: Sequence[ApplicationState]
    """Of applications whose client is blocked."""
    days: Sequence[Mapping[str, Any]]
    """The counts of the last days, the newest first: refreshed, failed, lost, seconds."""

    @property
    def total(self) -> int:
        """How many credentials there are."""
        return sum(self.counts.values())

    @property
    def overdue_seconds(self) -> float:
        """How long the oldest refresh has been due; 0 if none is due."""
        return self._seconds_since(self.oldest_due_at)

    @property
    def first_lost_at(self) -> datetime | None:
        """When the first refresh token of the due ones expires, unless it is refreshed."""
        if self.oldest_issued_at is None:
            return None
        return self.oldest_issued_at + timedelta(days=conf.REFRESH_TOKEN_DAYS)

    @property
    def last_run_at(self) -> datetime | None:
        """When a run was last recorded."""
        return self.worker_state.run_seen_at if self.worker_state else None

    @property
    def is_worker_late(self) -> bool:
        """Whether there are valid grants, and no run was recorded within ``OVERDUE_SECONDS``."""
        if not self.alive:
            return False
        last_run_at = self.last_run_at
        if last_run_at is None:
            return True
        # A time far ahead was recorded before the database's clock stepped back.
        return abs((self.now - last_run_at).total_seconds()) > conf.OVERDUE_SECONDS

    @property
    def clock_stepped_at(self) -> datetime | None:
        """When a time was found that lies further ahead than it can; ``None`` if that is old."""
        found_at = self.worker_state.clock_stepped_at if self.worker_state else None
        return found_at if found_at and found_at > self.now - CLOCK_STEP_SHOWN else None

    @property
    def is_behind(self) -> bool:
        """Whether refreshes are overdue, or no run has been recorded for as long."""
        return self.is_worker_late or self.overdue_seconds > conf.OVERDUE_SECONDS

    @property
    def rejected(self) -> Sequence[ApplicationState]:
        """Of applications that a site administrator must fix."""
        return _rejected(self.blocked_applications)

    @property
    def action_required(self) -> bool:
        """Whether a user must reconnect an account, or an administrator correct something."""
        return bool(self.counts[Condition.NEEDS_ATTENTION] or self.rejected)

    @property
    def status(self) -> HealthStatus:
        """The most severe state: without a worker, all accounts are lost eventually."""
        if self.is_behind:
            return HealthStatus.BEHIND
        if self.action_required:
            return HealthStatus.ACTION_REQUIRED
        return HealthStatus.FAILING if self.counts[Condition.FAILING] else HealthStatus.OK

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers and times for a monitor, without account names."""
        blocks = Counter(state.block_reason for state in self.blocked_applications)
        return {
            "status": self.status.value,
            "credentials": {condition.value: count for condition, count in self.counts.items()},
            "due": self.due,
            "overdue_seconds": round(self.overdue_seconds),
            "last_run": self._last_run(),
            "days": [
                {**each, "day": each["day"].isoformat(), "seconds": round(each["seconds"], 3)}
                for each in self.days
            ],
            "clock_stepped_at": iso_format(self.clock_stepped_at),
            "applications": {
                reason.value: blocks[reason]
                for reason in BlockReason
                if reason != BlockReason.NONE
            },
        }

    def _last_run(self) -> dict[str, Any] | None:
        if self.worker_state is None or self.last_run_at is None:
            return None
        return {
            "seen_at": iso_format(self.last_run_at),
            "seconds_ago": round(self._seconds_since(self.last_run_at)),
            "ended_at": iso_format(self.worker_state.run_ended_at),
            "ended": self.worker_state.run_ended,
            "refreshed": self.worker_state.run_refreshed,
            "failed": self.worker_state.run_failed,
        }

    def _seconds_since(self, moment: datetime | None) -> float:
        return max(0.0, (self.now - moment).total_seconds()) if moment else 0.0


def health_of(alias: str) -> Health:
    """Return the current state of a database, independent of the caller's transaction.

    The number of queries is constant, and nothing is decrypted. One query scans an index of all
    credentials; the others read only rows that are due or leased.
    """
    with own_transaction(alias):
        row = heartbeat.read(alias)
        # The database's clock is read with the row, if there is one.
        now = row.database_now if row else timezone.now()
        blocked_applications = list(blocked(alias))
        return Health(
            now=now,
            days=last_days(alias, now.astimezone(UTC).date()),
            **_counts(alias),
            **_due(alias, blocked_applications),
            worker_state=row,
            blocked_applications=blocked_applications,
        )


def _counts(alias: str) -> dict[str, Any]:
    credentials = _credentials(alias)
    groups = _grouped(credentials)
    counts = dict.fromkeys(Condition, 0) | _count(groups)
    for condition in (Condition.REFRESHING, Condition.FAILING):
        found = _count(_grouped(credentials.filter(in_condition(condition))))
        for other, count in found.items():
            # A refresh that began between the queries is counted in the later one only.
            counts[other] = max(0, counts[other] - count)
        counts[condition] += found.total()
    alive = sum(
        count
        for status, kind, *_, count in groups
        if (status, kind) == (Status.CONNECTED, Kind.GRANT)
    )
    return {"counts": counts, "alive": alive}


def _grouped(credentials: QuerySet[CredentialRow]) -> list[tuple[str, str, str, int, int]]:
    """Count credentials by their columns in one index."""
    groups = credentials.order_by().values_list("status", "kind", "failed_outcome", "failures")
    return list(groups.annotate(Count("pk")))


def _count(groups: list[tuple[str, str, str, int, int]]) -> Counter[Condition]:
    """Count credentials by the condition that these columns show."""
    counts: Counter[Condition] = Counter()
    for status, _, failed_outcome, failures, count in groups:
        if status == Status.DISCONNECTED:
            counts[Condition.DISCONNECTED] += count
        elif status != Status.CONNECTED or failed_outcome in NEEDS_OPERATOR:
            counts[Condition.NEEDS_ATTENTION] += count
        else:
            counts[Condition.RETRYING if failures else Condition.CONNECTED] += count
    return counts


def _due(alias: str, blocked_applications: Sequence[ApplicationState]) -> dict[str, Any]:
    rejected = [state.application_id or 0 for state in _rejected(blocked_applications)]
    due = _credentials(alias).filter(
        is_idle(), status=Status.CONNECTED, refresh_at__lte=DatabaseNow()
    )
    return due.exclude(application_key__in=rejected).aggregate(
        due=Count("pk"),
        oldest_due_at=Min("refresh_at"),
        expired=Count("pk", filter=Q(expires_at__lte=DatabaseNow())),
        oldest_issued_at=Min("issued_at"),
    )


def _rejected(states: Sequence[ApplicationState]) -> list[ApplicationState]:
    return [state for state in states if state.block_reason in ACTION_REQUIRED]


def _credentials(alias: str) -> QuerySet[CredentialRow]:
    return credential_model()._base_manager.using(alias)
