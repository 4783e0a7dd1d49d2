"""One attempt: send → store → tell. Whoever calls holds the lease.

Nothing is held over the network (send), nothing fallible stands between the reply and its one
write (store), and everything else comes after (tell). The reply is in the spool while it waits for
its write, so that it outlives this process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from django.db import Error
from django.db.models import F
from django.utils import translation
from django.views.decorators.debug import sensitive_variables

from django_infusionsoft import breaker, history, oauth, sessions, signals, spool, timing
from django_infusionsoft.choices import EventKind, Outcome, Reason, Status
from django_infusionsoft.database import (
    DatabaseNow,
    database_name,
    own_transaction,
    persist,
    update_row,
)
from django_infusionsoft.exceptions import (
    ClientRejected,
    ConfigurationError,
    DatabaseBusy,
    DecryptionError,
    GrantRejected,
    InfusionsoftError,
    OutcomeUnknown,
    RateLimited,
    ReauthorizationRequired,
    RefreshInProgress,
    SpoolError,
    TemporarilyUnavailable,
)
from django_infusionsoft.leases import Claim, held
from django_infusionsoft.plain import quoted
from django_infusionsoft.rows import (
    NO_LEASE,
    alias_of,
    bring_up,
    columns_for,
    look,
    refresh_plan,
)
from django_infusionsoft.timing import Plan

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

    from django_infusionsoft.models import Credential

logger = logging.getLogger("django_infusionsoft")

# What a look at the API may take of a lease that a rejection has left over.
LOOK_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """What was tried with one refresh token, and what came of it."""

    credential: Credential
    generation: int
    """The one presented. The instance's may move on: threads may share it."""
    result: spool.Slip | InfusionsoftError
    """The new pair, in the spool if there is one, or what went wrong."""
    plan: Plan = field(default_factory=Plan)
    """As the settings say, read before the call: after it nothing may fail any more."""
    lease_id: str = ""
    due_at: datetime | None = None
    fingerprint: str = ""
    """Of the refresh token presented; empty where none was."""
    seconds: float | None = None
    """How long Keap took; ``None`` where it was not asked."""
    user: AbstractBaseUser | None = None
    """Whose will it was."""

    @property
    def details(self) -> dict[str, Any]:
        """What every event of an attempt tells."""
        return {
            "fingerprint": self.fingerprint,
            "duration_ms": None if self.seconds is None else round(self.seconds * 1000),
            "user": self.user,
        }


@dataclass(frozen=True, slots=True)
class Settled:
    """An attempt whose outcome is in the database."""

    attempt: Attempt
    outcome: Outcome
    error: InfusionsoftError | None = None
    """What a caller has to be told; ``None`` where the credential has an access token now."""
    kind: EventKind | None = None
    """What the history tells of it."""


@sensitive_variables()
def send(claim: Claim) -> Attempt:
    """Present the refresh token once. Runs in threads, and so touches no database.

    What is the credential's ``client`` has been loaded with it. Where the spool has the answer to
    this refresh token already, that is it.
    """
    credential = claim.credential
    attempt = partial(
        Attempt,
        credential,
        credential.generation,
        lease_id=claim.lease.id,
        due_at=claim.due_at,
        user=claim.user,
    )
    try:
        attempt = partial(attempt, plan=refresh_plan())
        client, refresh_token = credential.client, credential.refresh_token
        place = _place(credential, refresh_token)
        if slip := spool.find(place, in_flight=True):
            return attempt(result=slip, fingerprint=place.fingerprint)
        _require_chance(claim)
    except InfusionsoftError as error:
        return attempt(result=error)
    except Exception:
        # A lease that is not given back would count as an attempt.
        logger.exception("nothing_sent credential=%s", credential.pk)
        broken = "Something broke before anything was sent: see the log."
        return attempt(result=TemporarilyUnavailable(broken))
    started = time.monotonic()
    try:
        pair = oauth.refresh(client, refresh_token, until=claim.lease.send_until)
        # Nothing between the reply and this: it is what outlives a process that is killed.
        result: spool.Slip | InfusionsoftError = spool.keep(place, pair)
    except GrantRejected as error:
        result = _explained(claim, error)
    except InfusionsoftError as error:
        result = error
    seconds = time.monotonic() - started
    return attempt(result=result, fingerprint=place.fingerprint, seconds=seconds)


def attempt_from(credential: Credential, slip: spool.Slip) -> Attempt:
    """Return the attempt that got the pair in the spool, to be settled now."""
    return Attempt(
        credential,
        slip.place.generation,
        slip,
        refresh_plan(),
        fingerprint=slip.place.fingerprint,
    )


def place_of(credential: Credential) -> spool.Place:
    """Return where the spool has the answer to a credential's refresh token, if it has one.

    :raises DecryptionError: no key opens the refresh token.
    """
    return _place(credential, credential.refresh_token)


def _place(credential: Credential, refresh_token: str) -> spool.Place:
    return spool.Place(
        database_name(alias_of(credential)),
        credential.pk,
        credential.generation,
        history.fingerprint(refresh_token),
    )


def settle(attempt: Attempt, *, patience: Iterator[float] | None = None) -> Settled:
    """Write the outcome down.

    What interrupts this (Ctrl-C, a time limit of Celery's) is raised once it is done: without a
    spool the reply exists nowhere else.

    :param patience: the pauses of ``persist``, where several share them.
    """
    try:
        return _settle(attempt, patience)
    except (Error, DatabaseBusy):  # for which it has been tried for long enough
        raise
    except BaseException:
        _settle(attempt, patience)
        raise


def tell(all_settled: Sequence[Settled]) -> None:
    """Write the events and send the signals; the log lines come with the events."""
    history.record_all(
        [_entry(settled, settled.kind) for settled in all_settled if settled.kind is not None]
    )
    for settled in all_settled:
        _send_signal(settled, settled.attempt.credential)


def _entry(settled: Settled, kind: EventKind) -> history.Entry:
    attempt, result = settled.attempt, settled.attempt.result
    credential = attempt.credential
    details = {
        "outcome": settled.outcome,
        "reason": credential.reason,
        "detail": str(result) if isinstance(result, InfusionsoftError) else "",
        **attempt.details,
    }
    return history.Entry(credential, kind, details)


def tell_abandoned(claim: Claim) -> None:
    """Tell of the attempt before this one, if nobody has: its process died or is stuck."""
    if claim.abandoned_by is None:
        return
    details: dict[str, Any] = {}
    with suppress(DecryptionError):
        details["fingerprint"] = history.fingerprint(claim.credential.refresh_token)
    history.record(
        claim.credential,
        EventKind.ABANDONED,
        outcome=Outcome.UNKNOWN,
        worker=claim.abandoned_by,
        **details,
    )


def _send_signal(settled: Settled, credential: Credential) -> None:
    sender = type(credential)
    match settled.kind:
        case EventKind.REFRESHED | EventKind.RECOVERED:
            signals.credential_refreshed.send_robust(
                sender=sender,
                credential=credential,
                generation=credential.generation,
                duration_seconds=settled.attempt.seconds or 0.0,
            )
        case EventKind.REAUTHORIZATION_REQUIRED:
            signals.reauthorization_required.send_robust(
                sender=sender, credential=credential, reason=credential.reason
            )
        case EventKind.REFRESH_FAILED:
            signals.refresh_failed.send_robust(
                sender=sender, credential=credential, exception=settled.error
            )


def _require_chance(claim: Claim) -> None:
    """Raise what keeps this claim from presenting anything."""
    if not claim.may_present:
        raise ReauthorizationRequired(
            "Two attempts ended without an answer, so the refresh token is not presented again by "
            "itself.",
            reason=Reason.UNANSWERED,
        )
    if not claim.lease.allows_a_call:
        raise RefreshInProgress("Too little is left of the lease for a call: nothing was sent.")


def _explained(claim: Claim, error: GrantRejected) -> GrantRejected:
    """Tell a grant that has ended from one that is alive and whose refresh token others used.

    The access token tells: it ends with the grant, and not with a refresh.
    """
    credential = claim.credential
    is_first = not credential.failures and not credential.unanswered_attempts
    has_time = time.monotonic() + LOOK_SECONDS < claim.lease.ends_at
    if error.reason or not is_first or not has_time or not credential.has_living_access_token:
        return error
    try:
        if not sessions.is_accepted(credential.access_token):
            return error
    except DecryptionError:
        return error
    return GrantRejected(
        "Keap refused a refresh token that we never presented before, and takes the access token "
        "that came with it: somebody else has used it, such as a copy of this database.",
        reason=Reason.USED_ELSEWHERE,
    )


def _settle(attempt: Attempt, patience: Iterator[float] | None) -> Settled:
    try:
        return _judge(attempt, patience)
    except ReauthorizationRequired as gone:  # the row, while Keap was being asked
        logger.warning("reply_without_a_row credential=%s", attempt.credential.pk)
        return Settled(attempt, Outcome.REJECTED, gone)


def _judge(attempt: Attempt, patience: Iterator[float] | None) -> Settled:
    match attempt.result:
        case spool.Slip() as slip:
            return _store(attempt, slip, patience)
        case ReauthorizationRequired() as error:
            return _reject(attempt, error)
        case InfusionsoftError() as error:
            return _postpone(attempt, outcome_of(error), error)


def outcome_of(error: InfusionsoftError) -> Outcome:
    """Return how the history tells what went wrong."""
    match error:
        case ReauthorizationRequired():
            return Outcome.REJECTED
        case DecryptionError() | SpoolError():
            return Outcome.UNREADABLE
        case ConfigurationError():
            return Outcome.MISCONFIGURED
        case OutcomeUnknown():
            return Outcome.UNKNOWN
    return Outcome.UNAVAILABLE


@sensitive_variables()
def _store(attempt: Attempt, slip: spool.Slip, patience: Iterator[float] | None) -> Settled:
    """Store the pair where the generation still matches."""
    credential, pair = attempt.credential, slip.pair
    alias, is_recovery = alias_of(credential), attempt.seconds is None
    if is_recovery:
        look(credential)  # for the database's clock, which a claim has read
    columns = columns_for(pair, seed=str(credential), plan=attempt.plan, now=credential.now)
    columns["generation"] = attempt.generation + 1

    def write() -> int:
        same = {"id": credential.pk, "generation": attempt.generation}
        return update_row(alias, type(credential), columns, where=same)

    who = f"credential={credential.pk} account={credential.account}"
    is_ours = bool(persist(alias, write, what=who, secure=slip.secure, patience=patience))
    slip.forget()
    if is_ours:
        bring_up(credential, columns)
        kind = EventKind.RECOVERED if is_recovery else EventKind.REFRESHED
        return Settled(attempt, Outcome.OK, kind=kind)
    look(credential)
    # Only the answer to our write was lost, or somebody was faster who found it in the spool.
    is_stored = is_held(credential, pair) or history.knows_stored(
        credential, attempt.fingerprint, pair.refresh_token
    )
    if not is_stored:
        return Settled(attempt, Outcome.OK, kind=EventKind.LATE_REPLY_DROPPED)
    # That we have asked is told in any case; a recovery, by whoever was first.
    return Settled(attempt, Outcome.OK, kind=None if is_recovery else EventKind.REFRESHED)


def is_held(credential: Credential, pair: oauth.TokenPair) -> bool:
    """Whether the row has the pair: only the answer to the write was lost, or others stored it."""
    try:
        return credential.access_token == pair.access_token
    except DecryptionError:
        return False


def _reject(attempt: Attempt, error: ReauthorizationRequired) -> Settled:
    """Believe a rejection only if the generation has not moved and the lease is still ours."""
    credential = attempt.credential
    unless_told = Reason.ROTATION_LOST if credential.unanswered_attempts else Reason.REVOKED
    believed = _write(
        attempt,
        status=Status.REAUTHORIZATION_REQUIRED,
        reason=error.reason or unless_told,
        last_error=str(error),
        refresh_at=None,
        # A mail may have told of another loss, and nobody yet that it was mended.
        is_alerted=False,
    )
    look(credential)
    if not believed:
        return _overtaken(attempt)
    kind = EventKind.REAUTHORIZATION_REQUIRED
    return Settled(attempt, Outcome.REJECTED, needs_a_person(credential), kind)


def _postpone(attempt: Attempt, outcome: Outcome, error: InfusionsoftError) -> Settled:
    """Keep the pair, free the lease, and name the time of the next attempt."""
    credential = attempt.credential
    columns: dict[str, Any] = {"refresh_at": attempt.due_at or DatabaseNow()}
    if outcome == Outcome.UNKNOWN:
        columns["unanswered_attempts"] = F("unanswered_attempts") + 1
    is_at_fault = outcome != Outcome.MISCONFIGURED and not isinstance(error, RefreshInProgress)
    if isinstance(error, RefreshInProgress):  # too little was left of the lease
        columns["refresh_at"] = DatabaseNow() + timedelta(seconds=timing.backoff(1, seed=""))
    if is_at_fault:
        pause = timing.backoff(credential.failures + 1, seed=str(credential))
        if isinstance(error, TemporarilyUnavailable) and error.retry_after is not None:
            pause = max(pause, error.retry_after)
        columns |= {
            "failures": F("failures") + 1,
            "last_error": str(error),
            "refresh_at": DatabaseNow() + timedelta(seconds=pause),
        }
    # While the row is still ours, so that nobody else asks in between.
    if not _is_stopped(credential, error):
        columns["refresh_at"] = DatabaseNow() + timedelta(
            seconds=timing.backoff(1, seed=str(credential))
        )
    is_ours = _write(attempt, **columns)
    if not is_ours:
        look(credential)
        return _overtaken(attempt)
    if not (attempt.fingerprint or is_at_fault):
        # Nothing happened to this credential, and it may be so every minute.
        level = logging.ERROR if outcome == Outcome.MISCONFIGURED else logging.WARNING
        logger.log(level, "%s credential=%s error=%s", outcome.value, credential.pk, quoted(error))
        return Settled(attempt, outcome, error)
    return Settled(attempt, outcome, error, EventKind.REFRESH_FAILED)


def _is_stopped(credential: Credential, error: InfusionsoftError) -> bool:
    """Let the breaker see the error; return False for a client that is refused here alone."""
    if not isinstance(error, ClientRejected | OutcomeUnknown | RateLimited):
        return True
    try:
        alias, application = alias_of(credential), credential.application
        return breaker.trip(alias, application, credential.client, error)
    except (Error, DatabaseBusy):
        # What became of the attempt is to be written and told all the same.
        logger.exception("breaker_not_written credential=%s", credential.pk)
        return True


def _write(attempt: Attempt, **columns: Any) -> int:
    """Free the lease and write the columns, if the row is still ours to judge."""
    credential = attempt.credential
    with own_transaction(alias_of(credential)):
        row = held(credential, attempt.lease_id, attempt.generation)
        return row.update(**columns, **NO_LEASE)


def _overtaken(attempt: Attempt) -> Settled:
    """What comes of an attempt whose row has a newer pair by now, or somebody else's lease."""
    if attempt.credential.generation != attempt.generation:
        return Settled(attempt, Outcome.OK)
    busy = RefreshInProgress(f"Another process is refreshing {attempt.credential}.")
    return Settled(attempt, Outcome.UNAVAILABLE, busy)


def needs_a_person(credential: Credential) -> ReauthorizationRequired:
    """Return the exception for a credential whose grant is over."""
    with translation.override(None):  # as all exceptions, whoever's request it is
        why = str(credential.get_reason_display() or credential.get_status_display())
    return ReauthorizationRequired(
        f"{credential} must be connected again: {why}.", reason=credential.reason
    )
