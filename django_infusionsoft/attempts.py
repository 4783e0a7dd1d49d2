"""One attempt: send → store → tell. Whoever calls holds the lease.

Nothing is held over the network (send), nothing fallible stands between the reply and its one
write (store), and everything else comes after (tell).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import Error
from django.db.models import Case, CharField, F, Value, When
from django.views.decorators.debug import sensitive_variables

from django_infusionsoft import history, oauth, signals, timing
from django_infusionsoft.choices import EventKind, Outcome, Reason, Status
from django_infusionsoft.conf import conf
from django_infusionsoft.database import DatabaseNow, own_transaction, persist
from django_infusionsoft.exceptions import (
    ConfigurationError,
    DecryptionError,
    GrantRejected,
    InfusionsoftError,
    OutcomeUnknown,
    ReauthorizationRequired,
    RefreshInProgress,
    TemporarilyUnavailable,
)
from django_infusionsoft.leases import Lease, held
from django_infusionsoft.rows import alias_of, columns_for, look, row_of

if TYPE_CHECKING:
    from django_infusionsoft.models import Credential

logger = logging.getLogger("django_infusionsoft")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One presentation of a refresh token, and what came of it."""

    credential: Credential
    lease: Lease
    generation: int
    """The one presented. The instance's may move on: threads may share it."""
    result: oauth.TokenPair | InfusionsoftError
    seconds: float
    fingerprint: str
    """Of the refresh token presented; empty where none was."""
    fraction: float
    """``REFRESH_FRACTION``, read before the call: after it nothing may fail any more."""

    @property
    def details(self) -> dict[str, Any]:
        """What every event of an attempt tells."""
        return {
            "fingerprint": self.fingerprint,
            "duration_ms": round(self.seconds * 1000),
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


def present(credential: Credential, lease: Lease) -> None:
    """Present the refresh token, and take over what comes of it.

    :raises InfusionsoftError: no new pair came; what this means is written down.
    """
    settled = settle(send(credential, lease))
    tell(settled)
    if settled.error is not None:
        raise settled.error


@sensitive_variables()
def send(credential: Credential, lease: Lease) -> Attempt:
    """Present the refresh token once. Runs in threads, and so touches no database.

    What is the credential's ``client`` has been loaded with it.
    """
    started, generation = time.monotonic(), credential.generation
    fingerprint, fraction = "", 0.0
    try:
        fraction = conf.REFRESH_FRACTION
        client, refresh_token = credential.client, credential.refresh_token
        if not lease.allows_sending:
            raise RefreshInProgress(
                "Too little is left of the lease for a call: nothing was sent."
            )
        fingerprint = history.fingerprint(refresh_token)
        result: oauth.TokenPair | InfusionsoftError = oauth.refresh(client, refresh_token)
    except InfusionsoftError as error:
        result = error
    seconds = time.monotonic() - started
    return Attempt(credential, lease, generation, result, seconds, fingerprint, fraction)


def settle(attempt: Attempt) -> Settled:
    """Write the outcome down.

    What interrupts this (Ctrl-C, a time limit of Celery's) is raised once it is done: the reply
    exists nowhere else.
    """
    try:
        return _settle(attempt)
    except Error:  # for which it has been tried for long enough
        raise
    except BaseException:
        _settle(attempt)
        raise


def tell(settled: Settled) -> None:
    """Write the event and send the signal; the log line comes with the event."""
    if settled.kind is None:
        return
    attempt, result = settled.attempt, settled.attempt.result
    credential = attempt.credential
    history.record(
        credential,
        settled.kind,
        outcome=settled.outcome,
        reason=credential.reason,
        detail=str(result) if isinstance(result, InfusionsoftError) else "",
        **attempt.details,
    )
    _send_signal(settled, credential)


def _send_signal(settled: Settled, credential: Credential) -> None:
    sender = type(credential)
    match settled.kind:
        case EventKind.REFRESHED:
            signals.credential_refreshed.send_robust(
                sender=sender,
                credential=credential,
                generation=credential.generation,
                duration_seconds=settled.attempt.seconds,
            )
        case EventKind.REAUTHORIZATION_REQUIRED:
            signals.reauthorization_required.send_robust(
                sender=sender, credential=credential, reason=credential.reason
            )
        case EventKind.REFRESH_FAILED:
            signals.refresh_failed.send_robust(
                sender=sender, credential=credential, exception=settled.error
            )


def _settle(attempt: Attempt) -> Settled:
    try:
        return _judge(attempt)
    except ReauthorizationRequired as gone:  # the row, while Keap was being asked
        logger.warning("reply_without_a_row credential=%s", attempt.credential.pk)
        return Settled(attempt, Outcome.REJECTED, gone)


def _judge(attempt: Attempt) -> Settled:
    match attempt.result:
        case oauth.TokenPair() as pair:
            return _store(attempt, pair)
        case GrantRejected() as error:
            return _reject(attempt, error)
        case DecryptionError() as error:
            outcome = Outcome.UNREADABLE
        case ConfigurationError() as error:
            outcome = Outcome.MISCONFIGURED
        case OutcomeUnknown() as error:
            outcome = Outcome.UNKNOWN
        case InfusionsoftError() as error:
            outcome = Outcome.UNAVAILABLE
    _postpone(attempt, outcome, error)
    return Settled(attempt, outcome, error, EventKind.REFRESH_FAILED)


def _store(attempt: Attempt, pair: oauth.TokenPair) -> Settled:
    """Store the pair where the generation still matches."""
    credential = attempt.credential

    def write() -> int:
        columns = columns_for(
            pair, seed=str(credential), fraction=attempt.fraction, now=DatabaseNow()
        )
        same = row_of(credential).filter(generation=attempt.generation)
        return same.update(generation=F("generation") + 1, **columns)

    who = f"credential={credential.pk} account={credential.account}"
    if persist(alias_of(credential), write, what=who):
        _adopt(attempt, pair)
        return Settled(attempt, Outcome.OK, kind=EventKind.REFRESHED)
    look(credential)
    # Ours, where only the answer to the write was lost.
    is_ours = credential.access_token == pair.access_token
    kind = EventKind.REFRESHED if is_ours else EventKind.LATE_REPLY_DROPPED
    return Settled(attempt, Outcome.OK, kind=kind)


def _adopt(attempt: Attempt, pair: oauth.TokenPair) -> None:
    """Bring the instance up to the row without asking for it."""
    credential = attempt.credential
    columns = columns_for(
        pair, seed=str(credential), fraction=attempt.fraction, now=credential.now
    )
    credential.generation = attempt.generation + 1
    for name, value in columns.items():
        setattr(credential, name, value)


def _reject(attempt: Attempt, error: GrantRejected) -> Settled:
    """Believe a rejection only if the generation has not moved and the lease is still ours."""
    credential = attempt.credential
    with own_transaction(alias_of(credential)):
        believed = held(credential, attempt.lease, attempt.generation).update(
            status=Status.REAUTHORIZATION_REQUIRED,
            reason=Case(
                When(unanswered_attempts__gt=0, then=_text(Reason.ROTATION_LOST)),
                default=_text(error.reason or Reason.REVOKED),
            ),
            last_error=str(error),
            refresh_at=None,
            lease_until=None,
            lease_id="",
        )
    look(credential)
    if believed:
        kind = EventKind.REAUTHORIZATION_REQUIRED
        return Settled(attempt, Outcome.REJECTED, needs_a_person(credential), kind)
    if credential.generation != attempt.generation:
        return Settled(attempt, Outcome.OK)
    busy = RefreshInProgress(f"Another process is refreshing {credential}.")
    return Settled(attempt, Outcome.UNAVAILABLE, busy)


def _postpone(attempt: Attempt, outcome: Outcome, error: InfusionsoftError) -> None:
    """Keep the pair, free the lease, and name the time of the next attempt."""
    credential = attempt.credential
    columns: dict[str, Any] = {"lease_until": None, "lease_id": ""}
    if outcome == Outcome.UNKNOWN:
        columns["unanswered_attempts"] = F("unanswered_attempts") + 1
    if outcome != Outcome.MISCONFIGURED:  # which is no fault of this credential's
        pause = timing.backoff(credential.failures + 1, seed=str(credential))
        if isinstance(error, TemporarilyUnavailable) and error.retry_after is not None:
            pause = max(pause, error.retry_after)
        columns |= {
            "failures": F("failures") + 1,
            "last_error": str(error),
            "refresh_at": DatabaseNow() + timedelta(seconds=pause),
        }
    with own_transaction(alias_of(credential)):
        held(credential, attempt.lease, attempt.generation).update(**columns)


def needs_a_person(credential: Credential) -> ReauthorizationRequired:
    """Return the exception for a credential whose grant is over."""
    return ReauthorizationRequired(
        f"{credential} must be connected again: {credential.get_reason_display()}.",
        reason=credential.reason,
    )


def _text(value: str) -> Value:
    return Value(str(value), output_field=CharField())
