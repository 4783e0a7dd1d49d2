"""Leases: who may present a credential's refresh token, and until when by the database's clock."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from django.db import connections, transaction
from django.db.models import Case, F, Q, QuerySet, When

from django_infusionsoft.choices import Status
from django_infusionsoft.conf import conf
from django_infusionsoft.database import DatabaseNow, own_transaction
from django_infusionsoft.rows import alias_of, look, row_of
from django_infusionsoft.transport import longest_call_seconds

if TYPE_CHECKING:
    from django_infusionsoft.models import Credential


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to present the refresh token of one generation, once."""

    id: str
    ends_at: float
    """A reading of ``time.monotonic()``, not later than the row's deadline."""

    @property
    def allows_sending(self) -> bool:
        """Whether the longest possible HTTP call still ends within the lease."""
        return time.monotonic() + longest_call_seconds() < self.ends_at


def claim(credential: Credential) -> Lease | None:
    """Take the lease if the generation is the one seen and nobody's lease is alive."""
    if "refresh_token" in credential.get_deferred_fields():
        # Now, and not after the claim: it must be that of the generation that is claimed.
        look(credential)
    lease = _new_lease()
    with own_transaction(alias_of(credential)):
        free = _free(row_of(credential)).filter(generation=credential.generation)
        return lease if _take(free, lease) else None


def claim_batch(due: QuerySet[Credential], size: int) -> tuple[Lease, list[Credential]]:
    """Take one lease over up to ``size`` of the due credentials, the most urgent first."""
    lease = _new_lease()
    with own_transaction(due.db):
        ids, taken = _take_batch(due, lease, size)
        while ids and not taken:  # without SKIP LOCKED, others may have been faster
            ids, taken = _take_batch(due, lease, size)
        held = due.model._base_manager.using(due.db).filter(pk__in=ids, lease_id=lease.id)
        return lease, list(held.select_related("application").order_by("refresh_at"))


def held(credential: Credential, lease: Lease, generation: int) -> QuerySet[Credential]:
    """The row, if it is still ours to judge."""
    return row_of(credential).filter(generation=generation, lease_id=lease.id)


def _new_lease() -> Lease:
    # The clock is read before the row is written, so that our deadline comes first.
    return Lease(id=uuid.uuid4().hex, ends_at=time.monotonic() + conf.LEASE_SECONDS)


def _free(credentials: QuerySet[Credential]) -> QuerySet[Credential]:
    return credentials.filter(
        Q(lease_until__isnull=True) | Q(lease_until__lte=DatabaseNow()), status=Status.CONNECTED
    )


def _take_batch(due: QuerySet[Credential], lease: Lease, size: int) -> tuple[list[int], int]:
    """Return which credentials were free, and how many of them are ours now."""
    urgent = _free(due).order_by("refresh_at").values_list("pk", flat=True)
    if not connections[due.db].features.has_select_for_update_skip_locked:
        # No transaction: SQLite fails one that reads first, if others write before it does.
        ids = list(urgent[:size])
        return ids, _take(_free(due.filter(pk__in=ids)), lease)
    with transaction.atomic(using=due.db):
        ids = list(urgent.select_for_update(skip_locked=True)[:size])
        return ids, _take(_free(due.filter(pk__in=ids)), lease)


def _take(free: QuerySet[Credential], lease: Lease) -> int:
    return free.update(
        # A lease that ran out: its holder died, perhaps with the request on its way. First of
        # all, because MariaDB evaluates assignments in order, with the new values.
        unanswered_attempts=F("unanswered_attempts")
        + Case(When(lease_until__isnull=False, then=1), default=0),
        lease_id=lease.id,
        lease_until=DatabaseNow() + timedelta(seconds=conf.LEASE_SECONDS),
    )
