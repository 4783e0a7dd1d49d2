"""How a site's credentials are as a whole: for the admin, monitors, the command and mails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from django.apps import apps
from django.db.models import Count, Min, Q
from django.utils import timezone

from django_infusionsoft import upkeep
from django_infusionsoft.application_states import troubled
from django_infusionsoft.choices import Condition, Status, Trouble
from django_infusionsoft.conf import conf
from django_infusionsoft.database import DatabaseNow, own_transaction
from django_infusionsoft.rows import is_idle, is_in

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from django_infusionsoft.models import ApplicationState, Credential, Upkeep


class Verdict(StrEnum):
    """How it is in one word."""

    OK = "ok"
    NEEDS_PERSON = "needs_person"
    """An account has to be connected again, or Keap refuses an application's client."""
    BEHIND = "behind"
    """Refreshes are overdue, or no run has been seen for as long."""


EXIT_CODES: Final[Mapping[Verdict, int]] = {
    Verdict.OK: 0,
    Verdict.NEEDS_PERSON: 1,
    Verdict.BEHIND: 2,
}


@dataclass(frozen=True, slots=True)
class Health:
    """What can be told of all credentials of a database with a handful of queries."""

    now: datetime
    """By the database's clock, as all times here."""
    counts: Mapping[Condition, int]
    due: int
    """How many are to be refreshed by now, and nobody is at it."""
    oldest_due_at: datetime | None
    ended: int
    """How many of these have no access token any more that works."""
    oldest_issued_at: datetime | None
    """When the first of these got its refresh token."""
    upkeep: Upkeep | None
    """What is known of runs; ``None`` where nothing is."""
    troubles: Sequence[ApplicationState]
    """Of applications whose client is not used."""

    @property
    def total(self) -> int:
        """How many credentials there are."""
        return sum(self.counts.values())

    @property
    def alive(self) -> int:
        """How many have a grant that is alive as far as we know."""
        over = self.counts[Condition.NEEDS_ATTENTION] + self.counts[Condition.DISCONNECTED]
        return self.total - over

    @property
    def overdue_seconds(self) -> float:
        """How long the oldest refresh has been due; 0 where none is."""
        return self._seconds_since(self.oldest_due_at)

    @property
    def first_lost_at(self) -> datetime | None:
        """When the first of those that are due is lost, unless it is refreshed."""
        if self.oldest_issued_at is None:
            return None
        return self.oldest_issued_at + timedelta(days=conf.REFRESH_TOKEN_DAYS)

    @property
    def last_run_at(self) -> datetime | None:
        """When a run was last seen."""
        return self.upkeep.run_seen_at if self.upkeep else None

    @property
    def is_worker_late(self) -> bool:
        """Whether there is something to keep alive, and no run has been seen for too long."""
        if not self.alive:
            return False
        is_seen = self.last_run_at is not None
        return not is_seen or self._seconds_since(self.last_run_at) > conf.OVERDUE_SECONDS

    @property
    def is_behind(self) -> bool:
        """Whether refreshes are overdue, or no run has been seen for as long."""
        return self.is_worker_late or self.overdue_seconds > conf.OVERDUE_SECONDS

    @property
    def rejected(self) -> Sequence[ApplicationState]:
        """Of applications whose client Keap refuses."""
        return [state for state in self.troubles if state.trouble == Trouble.REJECTED]

    @property
    def needs_person(self) -> bool:
        """Whether something is lost or wrong that only a person can mend."""
        return bool(self.counts[Condition.NEEDS_ATTENTION] or self.rejected)

    @property
    def verdict(self) -> Verdict:
        """The worst that is to be told: a worker that is away costs all accounts in the end."""
        if self.is_behind:
            return Verdict.BEHIND
        return Verdict.NEEDS_PERSON if self.needs_person else Verdict.OK

    def as_dict(self) -> dict[str, Any]:
        """Return what a monitor reads: numbers and times, and no account's name."""
        return {
            "status": self.verdict.value,
            "credentials": {condition.value: count for condition, count in self.counts.items()},
            "due": self.due,
            "overdue_seconds": round(self.overdue_seconds),
            "last_run": self._last_run(),
            "applications": {
                trouble.value: sum(state.trouble == trouble for state in self.troubles)
                for trouble in Trouble
                if trouble != Trouble.NONE
            },
        }

    def _last_run(self) -> dict[str, Any] | None:
        if self.upkeep is None or self.last_run_at is None:
            return None
        return {
            "seen_at": _iso(self.last_run_at),
            "seconds_ago": round(self._seconds_since(self.last_run_at)),
            "ended_at": _iso(self.upkeep.run_ended_at),
            "ended": self.upkeep.run_ended,
            "refreshed": self.upkeep.run_refreshed,
            "failed": self.upkeep.run_failed,
        }

    def _seconds_since(self, moment: datetime | None) -> float:
        return max(0.0, (self.now - moment).total_seconds()) if moment else 0.0


def health_of(alias: str) -> Health:
    """Look at all credentials of a database. A constant number of queries; nothing is decrypted.

    One of them goes over an index of all credentials, the others over what is due or leased.
    Whatever the caller's transaction has seen or broken, this is how it is now.
    """
    with own_transaction(alias):
        row = upkeep.read(alias)
        troubles = list(troubled(alias))
        return Health(
            # Without a row there is nothing to ask the database's clock with.
            now=row.database_now if row else timezone.now(),
            counts=_counts(alias),
            **_due(alias, troubles),
            upkeep=row,
            troubles=troubles,
        )


def _counts(alias: str) -> dict[Condition, int]:
    credentials = _credentials(alias)
    by_status = credentials.order_by().values_list("status")
    alive, failing = 0, Q(failures__gt=0)
    counts = dict.fromkeys(Condition, 0)
    for status, count, retrying in by_status.annotate(
        count=Count("pk"), retrying=Count("pk", filter=failing)
    ):
        match status:
            case Status.CONNECTED:
                alive, counts[Condition.RETRYING] = count, retrying
            case Status.DISCONNECTED:
                counts[Condition.DISCONNECTED] = count
            case _:
                counts[Condition.NEEDS_ATTENTION] = count
    refreshing = credentials.filter(is_in(Condition.REFRESHING)).aggregate(
        count=Count("pk"), retrying=Count("pk", filter=failing)
    )
    counts[Condition.REFRESHING] = refreshing["count"]
    # Two looks, one after the other: what began in between is counted in the second one only.
    counts[Condition.RETRYING] = max(0, counts[Condition.RETRYING] - refreshing["retrying"])
    idle = alive - counts[Condition.RETRYING] - refreshing["count"]
    counts[Condition.CONNECTED] = max(0, idle)
    return counts


def _due(alias: str, troubles: Sequence[ApplicationState]) -> dict[str, Any]:
    refused = [
        state.application_id or 0 for state in troubles if state.trouble == Trouble.REJECTED
    ]
    due = _credentials(alias).filter(
        is_idle(), status=Status.CONNECTED, refresh_at__lte=DatabaseNow()
    )
    return due.exclude(application_key__in=refused).aggregate(
        due=Count("pk"),
        oldest_due_at=Min("refresh_at"),
        ended=Count("pk", filter=Q(expires_at__lte=DatabaseNow())),
        oldest_issued_at=Min("issued_at"),
    )


def _credentials(alias: str) -> QuerySet[Credential]:
    # By its name: the models are above this module.
    model: type[Credential] = apps.get_model("django_infusionsoft", "Credential")
    return model._base_manager.using(alias)


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None
