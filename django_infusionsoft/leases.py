"""Leases: who may present a credential's refresh token, and until when by the database's clock."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from django.db import Error, connections
from django.db.models import Case, F, Q, QuerySet, When

from django_infusionsoft import breaker, pace
from django_infusionsoft.application_states import blocked_keys
from django_infusionsoft.choices import Reason, Status
from django_infusionsoft.conf import conf
from django_infusionsoft.database import DatabaseNow, brief_transaction, own_transaction
from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.rows import NO_LEASE, alias_of, process_name, read_clock, row_of
from django_infusionsoft.transport import longest_answer_seconds, longest_call_seconds

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

    from django_infusionsoft.models import Credential

# Of one refresh token, without anybody's will: the first attempt, and one controlled repeat where
# it had no answer.
MAX_PRESENTATIONS: Final = 2


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to present the refresh token of one generation, once."""

    id: str
    ends_at: float
    """A reading of ``time.monotonic()``, not later than the row's deadline."""

    @property
    def allows_a_call(self) -> bool:
        """Whether the longest possible HTTP call still ends within the lease."""
        return time.monotonic() + longest_call_seconds() < self.ends_at

    @property
    def send_until(self) -> float:
        """When a request that is sent can just be answered within the lease (monotonic)."""
        return self.ends_at - longest_answer_seconds()


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease on one credential, and the credential as it was claimed."""

    lease: Lease
    credential: Credential
    """Nobody else's instance: what it holds belongs together."""
    abandoned_by: str | None = None
    """Whose lease had run out: a process that never told what came of its attempt."""
    by_will: bool = False
    due_at: datetime | None = None
    """When it was due, or would have been; ``None`` where that is not known."""
    user: AbstractBaseUser | None = None
    """Whose will it is, for the history."""

    @property
    def may_present(self) -> bool:
        """Whether there was at most one attempt without an answer: one repeat, and no more."""
        return self.by_will or self.credential.unanswered_attempts < MAX_PRESENTATIONS


class _Found(NamedTuple):
    """What a row said before it was claimed."""

    abandoned_by: str | None
    due_at: datetime


def claim(
    credential: Credential,
    *,
    seen: int | None = None,
    by_will: bool = False,
    user: AbstractBaseUser | None = None,
) -> Claim | None:
    """Take the lease if the generation is the one seen, nobody's lease is alive, and the
    application's client is in use.

    :param seen: that generation, where the instance's may have moved on: threads may share it.
    :param by_will: of somebody who knows that two attempts had no answer, and wants another.
    :param user: who that is, where it is known.
    """
    alias, lease = alias_of(credential), _new_lease()
    due_at = credential.__dict__.get("refresh_at")
    with own_transaction(alias):
        row = _claimable(row_of(credential), by_will=by_will)
        row = row.filter(generation=credential.generation if seen is None else seen)
        holder = None
        if not _take(row.filter(lease_until__isnull=True), lease, is_used=True):
            abandoned = row.filter(lease_until__lte=DatabaseNow())
            ended = abandoned.values_list("lease_id", "lease_holder", "lease_is_used").first()
            if ended is None:
                return None
            if not _take(abandoned.filter(lease_id=ended[0]), lease, is_used=True):
                return None
            holder = ended[1] if ended[2] else None
        ours = _held_by(lease, row_of(credential))
        return Claim(lease, ours[0], holder, by_will, due_at, user) if ours else None


def claim_batch(due: QuerySet[Credential], size: int) -> list[Claim]:
    """Take one lease over up to ``size`` of the due credentials, the most urgent first.

    None of them may be presented before ``use()``: whoever dies before that has cost no attempt.
    """
    lease = _new_lease()
    with own_transaction(due.db):
        found, taken = _take_batch(due, lease, size)
        while found and not taken:  # without SKIP LOCKED, others may have been faster
            found, taken = _take_batch(due, lease, size)
        if not taken:
            return []
        ours = due.model._base_manager.using(due.db).filter(pk__in=found)
        by_urgency = sorted(_held_by(lease, ours), key=lambda each: found[each.pk].due_at)
        return [
            Claim(lease, each, found[each.pk].abandoned_by, due_at=found[each.pk].due_at)
            for each in by_urgency
        ]


def use(claims: Sequence[Claim]) -> None:
    """Write down that these may be presented from now on. Of one database, and one lease each."""
    if not claims:
        return
    credential = claims[0].credential
    alias = alias_of(credential)
    with own_transaction(alias):
        rows = type(credential)._base_manager.using(alias)
        rows.filter(
            pk__in=[claim.credential.pk for claim in claims],
            lease_id__in={claim.lease.id for claim in claims},
        ).update(lease_is_used=True)


def release(claims: Iterable[Claim]) -> None:
    """Give back what was not used: due as before, and counted as no attempt."""
    troubles: list[Exception] = []
    for claim in claims:
        credential = claim.credential
        try:
            with own_transaction(alias_of(credential)):
                row = held(credential, claim.lease.id, credential.generation)
                row.update(refresh_at=claim.due_at or DatabaseNow(), **NO_LEASE)
        except (Error, DatabaseBusy) as error:
            troubles.append(error)
    if troubles:
        raise troubles[0]


def held(credential: Credential, lease_id: str, generation: int) -> QuerySet[Credential]:
    """The row, if it is still ours to judge."""
    return row_of(credential).filter(generation=generation, lease_id=lease_id)


def _held_by(lease: Lease, credentials: QuerySet[Credential]) -> list[Credential]:
    """Return what the lease has got."""
    found = credentials.filter(lease_id=lease.id).select_related("application")
    rows = found.annotate(database_now=DatabaseNow())
    for row in rows:
        read_clock(row, row.database_now)
    return list(rows)


def _new_lease() -> Lease:
    # The clock is read before the row is written, so that our deadline comes first.
    return Lease(id=uuid.uuid4().hex, ends_at=time.monotonic() + conf.LEASE_SECONDS)


def _claimable(
    credentials: QuerySet[Credential], *, by_will: bool = False
) -> QuerySet[Credential]:
    is_alive = Q(status=Status.CONNECTED)
    if by_will:
        is_alive |= Q(status=Status.REAUTHORIZATION_REQUIRED, reason=Reason.UNANSWERED)
    return credentials.filter(is_alive).exclude(breaker.is_open(credentials.db))


def _take_batch(
    due: QuerySet[Credential], lease: Lease, size: int
) -> tuple[dict[int, _Found], int]:
    """Return which credentials were free, and how many of them we have."""
    is_free = Q(lease_until__isnull=True) | Q(lease_until__lte=DatabaseNow())
    free = due.filter(is_free, status=Status.CONNECTED)
    # Looked up beforehand: as a subquery it would make the database sort all that is due.
    ahead_seconds = pace.AHEAD_SECONDS if conf.REFRESH_RATE else None
    if blocked := blocked_keys(due.db, ahead_seconds=ahead_seconds):
        free = free.exclude(application_key__in=blocked)
    urgent = free.order_by("refresh_at").values_list(
        "pk", "lease_is_used", "lease_holder", "refresh_at"
    )
    if not connections[due.db].features.has_select_for_update_skip_locked:
        # No transaction: SQLite fails one that reads first, if others write before it does.
        found = _found(urgent[:size])
        return found, _take(free.filter(pk__in=found), lease, is_used=False)
    with brief_transaction(due.db):
        found = _found(urgent.select_for_update(skip_locked=True)[:size])
        ours = due.model._base_manager.using(due.db).filter(pk__in=found)
        return found, _take(ours, lease, is_used=False)


def _found(rows: Any) -> dict[int, _Found]:
    return {
        pk: _Found(holder if was_used else None, due_at) for pk, was_used, holder, due_at in rows
    }


def _take(free: QuerySet[Credential], lease: Lease, *, is_used: bool) -> int:
    ends_at = DatabaseNow() + timedelta(seconds=conf.LEASE_SECONDS)
    return free.update(
        # A lease that ran out: its holder died, perhaps with the request on its way. First of
        # all, because MariaDB evaluates assignments in order, with the new values.
        unanswered_attempts=F("unanswered_attempts")
        + Case(When(lease_is_used=True, then=1), default=0),
        status=Status.CONNECTED,
        reason="",
        lease_id=lease.id,
        lease_holder=process_name(),
        lease_is_used=is_used,
        lease_until=ends_at,
        # Due again when the lease ends, should we die.
        refresh_at=ends_at,
    )
