"""Leases: the right to present a credential's refresh token, until a time of the database."""

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from django.contrib.auth.base_user import AbstractBaseUser
from django.db import Error, connections
from django.db.models import Case, Exists, F, OuterRef, Q, QuerySet, When

from django_infusionsoft import elapsed
from django_infusionsoft.choices import DOUBTFUL, Reason, Status
from django_infusionsoft.exceptions import DatabaseBusy, DecryptionError, RefreshInProgress
from django_infusionsoft.keap.transport import (
    lease_seconds,
    longest_answer_seconds,
    longest_call_seconds,
)
from django_infusionsoft.monitoring import heartbeat
from django_infusionsoft.refresh import breaker, rate_limit
from django_infusionsoft.refresh.spool import SpooledError, SpoolKey
from django_infusionsoft.storage.applications import ApplicationState, blocked_keys, from_now
from django_infusionsoft.storage.credentials import (
    NO_LEASE,
    CredentialRow,
    alias_of,
    is_idle,
    is_refreshable,
    note_clock_offset,
    row_of,
    table_schema_of,
)
from django_infusionsoft.storage.database import (
    DatabaseNow,
    TableSchema,
    brief_transaction,
    database_name,
    own_transaction,
    persist,
)
from django_infusionsoft.storage.worker import process_name

T = TypeVar("T")

logger = logging.getLogger("django_infusionsoft")

# Of one refresh token, unless a user forces more: the first attempt, and one repeat if it had no
# answer.
MAX_PRESENTATIONS: Final = 2
# How often a user may have a rejected refresh token presented again.
AGAIN_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to present the refresh token of one generation, once."""

    id: str
    ends_at: float
    """By ``elapsed.monotonic()``; not later than the row's deadline."""

    @property
    def has_time_for_call(self) -> bool:
        """Whether the longest possible HTTP call still ends within the lease."""
        return elapsed.monotonic() + longest_call_seconds() < self.ends_at

    @property
    def send_until(self) -> float:
        """When a request that is sent can just be answered within the lease (monotonic)."""
        return self.ends_at - longest_answer_seconds()


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease on one credential, and the credential as it was claimed."""

    lease: Lease
    credential: CredentialRow
    """Not shared with other threads: its columns were read together."""
    abandoned_by: str | None = None
    """The process whose lease expired: it never recorded the outcome of its attempt."""
    force: bool = False
    again: bool = False
    """Whether Keap has rejected the refresh token before: status and reason stay as they are."""
    due_at: datetime | None = None
    """When it was due, or would have been; ``None`` if unknown."""
    after_401: bool = False
    """Whether it replaces an access token that the API has rejected."""
    user: AbstractBaseUser | None = None
    """The user who asked for it, for the history."""

    @property
    def may_present(self) -> bool:
        """Whether at most one attempt had no answer, so that this one is the only repeat."""
        return self.force or self.credential.unanswered_attempts < MAX_PRESENTATIONS


def claim(
    credential: CredentialRow,
    *,
    seen: int | None = None,
    force: bool = False,
    after_401: bool = False,
    user: AbstractBaseUser | None = None,
) -> Claim | None:
    """Take the lease if the generation is the one seen, no lease is valid, and the application is
    not blocked.

    :param seen: that generation, if threads share the instance, so that its own may have changed.
    :param force: whether to claim even after two attempts without an answer, or after a rejection.
    :param after_401: whether the API has rejected the access token.
    :param user: the user who asked for it, for the history.
    """
    alias, lease = alias_of(credential), _new_lease()
    due_at = credential.__dict__.get("refresh_at")
    again = force and credential.is_presented_again
    with own_transaction(alias):
        is_claimable = _is_claimable(force=force, again=again)
        row = row_of(credential).filter(is_claimable, ~breaker.is_open(alias, force=force))
        row = row.filter(generation=credential.generation if seen is None else seen)
        is_taken, holder = _acquire_one(row, lease, again=again)
        ours = _held_by(lease, row_of(credential)) if is_taken else []
    if not ours:
        return None
    claimed = Claim(
        lease,
        ours[0],
        holder,
        force=force,
        again=again,
        due_at=due_at,
        after_401=after_401,
        user=user,
    )
    _require_same_refresh_token(credential, claimed)
    return claimed


def _is_claimable(*, force: bool, again: bool) -> Q:
    if again:
        long_ago = from_now(-AGAIN_SECONDS)
        # Not from the future: a clock was wrong.
        is_recent = Q(presented_again_at__gt=long_ago, presented_again_at__lte=DatabaseNow())
        return (Q(presented_again_at__isnull=True) | ~is_recent) & Q(
            status=Status.REAUTHORIZATION_REQUIRED, reason__in=DOUBTFUL
        )
    is_claimable = Q(status=Status.CONNECTED)
    if force:
        is_claimable |= Q(status=Status.REAUTHORIZATION_REQUIRED, reason=Reason.UNANSWERED)
    return is_claimable & is_refreshable()


def cut(credentials: QuerySet[CredentialRow]) -> None:
    """Cut leases that end later than they can to their full length from now.

    The database's clock has stepped back since. They are not ignored: their holders may be
    presenting the refresh tokens. Twice, because another machine may have other settings.
    """
    ends_at = from_now(lease_seconds())
    too_long = credentials.filter(lease_until__gt=from_now(2 * lease_seconds()))
    # The lease of a rejected account that a user has presented again leaves it without a time.
    due_at = Case(When(status=Status.CONNECTED, then=ends_at), default=F("refresh_at"))
    if count := too_long.update(lease_until=ends_at, refresh_at=due_at):
        logger.error("clock_stepped_back leases=%s", count)
        heartbeat.record_clock_step(credentials.db)


def _acquire_one(
    row: QuerySet[CredentialRow], lease: Lease, *, again: bool
) -> tuple[bool, str | None]:
    """Take the lease; return whether it was free, and the process that abandoned an attempt."""
    if _acquire(row.filter(lease_until__isnull=True), lease, again=again):
        return True, None
    abandoned = row.filter(lease_until__lte=DatabaseNow())
    ended = abandoned.values_list("lease_id", "lease_holder", "lease_is_used").first()
    if ended is None:
        cut(row)
        return False, None
    is_taken = bool(_acquire(abandoned.filter(lease_id=ended[0]), lease, again=again))
    return is_taken, ended[1] if ended[2] else None


def _require_same_refresh_token(known: CredentialRow, claimed: Claim) -> None:
    """Release the claim if its row has another refresh token than the caller's.

    A copied schema has the same identities.
    """
    row = claimed.credential
    stored = vars(known).get("refresh_token")  # lists of credentials defer it
    if stored in (None, vars(row)["refresh_token"]) or known.generation != row.generation:
        return
    with suppress(DecryptionError):
        if known.refresh_token != row.refresh_token:
            release([claimed])
            raise DatabaseBusy(
                f"A second connection to the database finds another refresh token of {known}: its "
                f"schema is another one, such as a copy. Nothing was sent."
            )


def claim_batch(due: QuerySet[CredentialRow], size: int, *, in_turn: bool = False) -> list[Claim]:
    """Take one lease over up to ``size`` of the due credentials, the most urgent first.

    None of them may be presented before ``mark_used()``: a process that dies before that has cost
    no attempt.

    :param in_turn: whether to claim even if the application is blocked.
    """
    lease = _new_lease()
    with own_transaction(due.db):
        found, taken = _acquire_batch(due, lease, size, in_turn=in_turn)
        while found and not taken:  # without SKIP LOCKED, other workers may have been faster
            found, taken = _acquire_batch(due, lease, size, in_turn=in_turn)
        if not taken:
            return []
        claimed = {each.pk: each for each in _held_by(lease, _rows(due, found))}
        return [
            Claim(lease, claimed[pk], holder if was_used else None, due_at=due_at)
            for pk, was_used, holder, due_at in found
            if pk in claimed
        ]


def mark_used(claims: Sequence[Claim]) -> None:
    """Record that these may be presented from now on. All are of one database."""
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


def release(claims: Iterable[Claim], *, retry_delays: Iterator[float] | None = None) -> None:
    """Release claims that were not sent: due as before, and not counted as attempts.

    :param retry_delays: the pauses of ``persist``, for claims that were marked as used: they count
        unless they are released.
    """
    errors: list[Exception] = []
    for claim in claims:
        try:
            if retry_delays is None:
                with own_transaction(alias_of(claim.credential)):
                    _release(claim)
            else:
                _release_used(claim, retry_delays)
        except (Error, DatabaseBusy) as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _release(claim: Claim) -> int:
    row = held(claim.credential, claim.lease.id, claim.credential.generation)
    if claim.again:  # it was not due, and is not
        return row.update(**NO_LEASE)
    return row.update(refresh_at=claim.due_at or DatabaseNow(), **NO_LEASE)


def _release_used(claim: Claim, retry_delays: Iterator[float]) -> None:
    credential = claim.credential
    spooled = SpooledError(
        spool_key(credential, credential.generation, ""),
        RefreshInProgress("Nothing was sent."),
        claim.lease.id,
        claim.due_at,
        claim.after_401,
        claim.again,
    )
    persist_or_keep(spooled, credential, lambda: _release(claim), retry_delays)


def spool_key(credential: CredentialRow, generation: int, fingerprint: str) -> SpoolKey:
    """Return the key of the reply to a generation's refresh token, known by its fingerprint."""
    return SpoolKey(
        database_name(alias_of(credential)),
        credential.pk,
        generation,
        fingerprint,
        credential.identity.hex,
        table_schema_of(credential),
    )


def persist_or_keep(
    spooled: SpooledError,
    credential: CredentialRow,
    write: Callable[[], T],
    retry_delays: Iterator[float] | None,
) -> T:
    """Let ``write`` commit on its own. If the database stays away, spool the outcome."""
    written = persist(
        alias_of(credential),
        write,
        what=f"credential={credential.pk} account={credential.account}",
        fsync=spooled.fsync,
        retry_delays=retry_delays,
        is_pair=False,
    )
    spooled.discard()
    return written


def held(credential: CredentialRow, lease_id: str, generation: int) -> QuerySet[CredentialRow]:
    """The row, if this lease and this generation are still current."""
    return row_of(credential).filter(generation=generation, lease_id=lease_id)


def _held_by(lease: Lease, credentials: QuerySet[CredentialRow]) -> list[CredentialRow]:
    """Return the rows that the lease holds."""
    found = credentials.filter(lease_id=lease.id).select_related("application")
    rows = found.annotate(
        database_now=DatabaseNow(),
        schema=TableSchema(found.model),
        is_suspect=is_suspect(found.db),  # type: ignore[no-redef]  # declared with its default
    )
    for row in rows:
        note_clock_offset(row, row.database_now)
        row.table_schema = row.schema
    return list(rows)


def is_suspect(alias: str) -> Exists:
    """Whether a rejection of a credential's application was counted since the last success."""
    suspect = ApplicationState._base_manager.using(alias).filter(is_suspect=True)
    return Exists(suspect.filter(application_key=OuterRef("application_key")))


def _new_lease() -> Lease:
    # The clock is read before the row is written, so that this deadline is not later.
    return Lease(id=uuid.uuid4().hex, ends_at=elapsed.monotonic() + lease_seconds())


def _acquire_batch(
    due: QuerySet[CredentialRow], lease: Lease, size: int, *, in_turn: bool
) -> tuple[list[Any], int]:
    """Return the free rows as they were before the claim, and how many were claimed."""
    free = due.filter(is_idle(), status=Status.CONNECTED)
    # A query of its own: as a subquery it would make the database sort all due rows.
    blocked = [] if in_turn else blocked_keys(due.db, reserved_for=rate_limit.wait_range())
    if blocked:
        free = free.exclude(application_key__in=blocked)
    urgent = free.order_by("refresh_at").values_list(
        "pk", "lease_is_used", "lease_holder", "refresh_at"
    )
    if not connections[due.db].features.has_select_for_update_skip_locked:
        # No transaction: SQLite fails one that reads before it writes, if others write between.
        found = list(urgent[:size])
        free = free.filter(pk__in=[pk for pk, *_ in found])
        return found, _acquire(free, lease, is_used=False)
    with brief_transaction(due.db):
        found = list(urgent.select_for_update(skip_locked=True)[:size])
        return found, _acquire(_rows(due, found), lease, is_used=False)


def _rows(due: QuerySet[CredentialRow], found: list[Any]) -> QuerySet[CredentialRow]:
    return due.model._base_manager.using(due.db).filter(pk__in=[pk for pk, *_ in found])


def _acquire(
    free: QuerySet[CredentialRow], lease: Lease, *, is_used: bool = True, again: bool = False
) -> int:
    ends_at = DatabaseNow() + timedelta(seconds=lease_seconds())
    # Due again when the lease expires, if this process dies.
    state = {"status": Status.CONNECTED, "reason": "", "refresh_at": ends_at}
    if again:
        state = {"presented_again_at": DatabaseNow()}
    return free.update(
        # An expired lease: its holder died, perhaps after sending the request. The first
        # assignments, because MariaDB evaluates them in order, with the new values.
        unanswered_attempts=F("unanswered_attempts")
        + Case(When(lease_is_used=True, then=1), default=0),
        abandoned_lease_id=Case(
            When(lease_is_used=True, then=F("lease_id")), default=F("abandoned_lease_id")
        ),
        lease_id=lease.id,
        lease_holder=process_name(),
        lease_is_used=is_used,
        lease_until=ends_at,
        **state,
    )
