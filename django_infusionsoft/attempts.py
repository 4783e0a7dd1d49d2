"""One attempt: send → store → tell. Whoever calls holds the lease.

Nothing is held over the network (send), nothing fallible stands between the reply and its one
write (store), and everything else comes after (tell).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from django.db import InterfaceError, OperationalError, connections
from django.db.models import Case, CharField, F, Value, When

from django_infusionsoft import history, oauth, signals, timing
from django_infusionsoft.choices import EventKind, Outcome, Reason, Status
from django_infusionsoft.conf import conf
from django_infusionsoft.database import DatabaseNow, own_transaction
from django_infusionsoft.exceptions import (
    ConfigurationError,
    DatabaseBusy,
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

# A pair that Keap has handed out must be stored: some 30 seconds are waited for the database.
STORE_RETRY_PAUSES: Final = (0.1, 0.3, 1.0, 3.0, 5.0, 10.0, 10.0)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One presentation of a refresh token, and what came of it."""

    credential: Credential
    lease: Lease
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


def present(credential: Credential, lease: Lease) -> None:
    """Present the refresh token, and take over what comes of it.

    :raises InfusionsoftError: no new pair came; what this means is written down.
    """
    _, error = settle(send(credential, lease))
    if error is not None:
        raise error


def send(credential: Credential, lease: Lease) -> Attempt:
    """Present the refresh token once. Runs in threads, and so touches no database.

    What is the credential's ``client`` has been loaded with it.
    """
    started = time.monotonic()
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
    return Attempt(credential, lease, result, seconds, fingerprint, fraction)


def settle(attempt: Attempt) -> tuple[Outcome, InfusionsoftError | None]:
    """Write the outcome down and tell it; return it with what a caller has to be told."""
    try:
        return _judge(attempt)
    except ReauthorizationRequired as gone:  # the row, while Keap was being asked
        logger.warning("reply_without_a_row credential=%s", attempt.credential.pk)
        return Outcome.REJECTED, gone


def _judge(attempt: Attempt) -> tuple[Outcome, InfusionsoftError | None]:
    match attempt.result:
        case oauth.TokenPair() as pair:
            _store(attempt, pair)
            return Outcome.OK, None
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
    _tell_failure(attempt, outcome, error)
    return outcome, error


def _store(attempt: Attempt, pair: oauth.TokenPair) -> None:
    credential = attempt.credential
    if not _write_pair(attempt, pair):
        look(credential)
        if credential.access_token != pair.access_token:
            history.record(credential, EventKind.LATE_REPLY_DROPPED, **attempt.details)
            return
    else:
        _adopt(attempt, pair)
    history.record(credential, EventKind.REFRESHED, outcome=Outcome.OK, **attempt.details)
    signals.credential_refreshed.send_robust(
        sender=type(credential),
        credential=credential,
        generation=credential.generation,
        duration_seconds=attempt.seconds,
    )


def _write_pair(attempt: Attempt, pair: oauth.TokenPair) -> int:
    """Store the pair where the generation still matches; persist while the database is away.

    A write whose answer was lost finds nothing to do the second time: the caller looks whether
    the pair in the row is this one.
    """
    credential = attempt.credential
    alias = alias_of(credential)
    columns = columns_for(pair, seed=str(credential), fraction=attempt.fraction, now=DatabaseNow())
    for pause in STORE_RETRY_PAUSES:
        try:
            return _write(credential, columns)
        except (OperationalError, InterfaceError, DatabaseBusy):
            logger.exception("pair_not_stored_yet credential=%s", credential.pk)
            if not connections[alias].in_atomic_block:
                connections[alias].close()
            time.sleep(pause)
    try:
        return _write(credential, columns)
    except Exception:
        logger.critical(
            "pair_not_stored credential=%s account=%s", credential.pk, credential.account
        )
        raise


def _write(credential: Credential, columns: dict[str, Any]) -> int:
    with own_transaction(alias_of(credential)):
        same = row_of(credential).filter(generation=credential.generation)
        return same.update(generation=F("generation") + 1, **columns)


def _adopt(attempt: Attempt, pair: oauth.TokenPair) -> None:
    """Bring the instance up to the row, by this machine's clock, without asking for it."""
    credential = attempt.credential
    columns = columns_for(
        pair, seed=str(credential), fraction=attempt.fraction, now=datetime.now(UTC)
    )
    credential.generation += 1
    for name, value in columns.items():
        setattr(credential, name, value)


def _reject(attempt: Attempt, error: GrantRejected) -> tuple[Outcome, InfusionsoftError | None]:
    """Believe a rejection only if the generation has not moved and the lease is still ours."""
    credential, seen = attempt.credential, attempt.credential.generation
    with own_transaction(alias_of(credential)):
        believed = held(credential, attempt.lease).update(
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
        _tell_rejection(attempt, error)
        return Outcome.REJECTED, needs_a_person(credential)
    if credential.generation != seen:
        return Outcome.OK, None
    return Outcome.UNAVAILABLE, RefreshInProgress(f"Another process is refreshing {credential}.")


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
        held(credential, attempt.lease).update(**columns)


def needs_a_person(credential: Credential) -> ReauthorizationRequired:
    """Return the exception for a credential whose grant is over."""
    return ReauthorizationRequired(
        f"{credential} must be connected again: {credential.get_reason_display()}.",
        reason=credential.reason,
    )


def _text(value: str) -> Value:
    return Value(str(value), output_field=CharField())


def _tell_failure(attempt: Attempt, outcome: Outcome, error: InfusionsoftError) -> None:
    history.record(
        attempt.credential,
        EventKind.REFRESH_FAILED,
        outcome=outcome,
        detail=str(error),
        **attempt.details,
    )
    signals.refresh_failed.send_robust(
        sender=type(attempt.credential), credential=attempt.credential, exception=error
    )


def _tell_rejection(attempt: Attempt, error: GrantRejected) -> None:
    credential = attempt.credential
    history.record(
        credential,
        EventKind.REAUTHORIZATION_REQUIRED,
        outcome=Outcome.REJECTED,
        reason=credential.reason,
        detail=str(error),
        **attempt.details,
    )
    signals.reauthorization_required.send_robust(
        sender=type(credential), credential=credential, reason=credential.reason
    )
