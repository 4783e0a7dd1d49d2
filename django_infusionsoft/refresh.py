"""Claim → send → store → tell, for one credential and for many.

A refresh token works once, and whoever loses the reply has lost the account. So: the right to
present it is written down first (claim), nothing is held over the network (send), nothing fallible
stands between the reply and its one write (store), and everything else comes after (tell).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, fields
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
from django_infusionsoft.leases import Lease, claim, claim_batch, held
from django_infusionsoft.rows import alias_of, columns_for, look, row_of

if TYPE_CHECKING:
    from django_infusionsoft.managers import CredentialQuerySet
    from django_infusionsoft.models import Credential

logger = logging.getLogger("django_infusionsoft")

# A pair that Keap has handed out must be stored: some 30 seconds are waited for the database.
STORE_RETRY_PAUSES: Final = (0.1, 0.3, 1.0, 3.0, 5.0, 10.0, 10.0)
FIRST_POLL_SECONDS: Final = 0.05
LONGEST_POLL_SECONDS: Final = 1.0
# After so many failures in a row of Keap's own, the rest of a run is left to the next one.
FAILURES_THAT_END_A_RUN: Final = 5


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


@dataclass(slots=True)
class Run:
    """What a run over the due credentials did: counts by outcome, and whom nobody knows yet."""

    refreshed: int = 0
    rejected: int = 0
    misconfigured: int = 0
    unavailable: int = 0
    unknown: int = 0
    unreadable: int = 0
    nameless: list[Credential] = field(default_factory=list)
    """Refreshed, and of an account that Keap has not told."""

    def as_dict(self) -> dict[str, int]:
        """Return the counts by outcome."""
        return {each.name: getattr(self, each.name) for each in fields(self)[:-1]}

    @property
    def went_well(self) -> bool:
        """Whether every credential that was tried has been refreshed."""
        return sum(self.as_dict().values()) == self.refreshed

    def count(self, outcome: Outcome) -> None:
        name = "refreshed" if outcome == Outcome.OK else outcome.value
        setattr(self, name, getattr(self, name) + 1)


def refresh(credential: Credential) -> None:
    """Rotate the pair once, whoever else is trying, and take over the result.

    Returns as well where somebody else has rotated it since ``credential`` was loaded.

    :raises ReauthorizationRequired: a person has to connect the account again.
    :raises ConfigurationError: the client or the keys are wrong.
    :raises TemporarilyUnavailable: later; nothing is lost.
    """
    lease = claim(credential) or _wait_for_other(credential)
    if lease is not None:
        _attempt(credential, lease)


def ensure_access_token(credential: Credential) -> None:
    """See to an access token that works now; the old one serves while it lives.

    :raises InfusionsoftError: as ``refresh``, and only if the access token has ended.
    """
    look(credential)
    if credential.has_fresh_access_token:
        return
    if not credential.has_living_access_token:
        refresh(credential)
    elif credential.failures == 0:
        # Who refreshes ahead of time risks nothing: a failure is told, and the run tries again.
        with suppress(InfusionsoftError):
            if lease := claim(credential):
                _attempt(credential, lease)


def refresh_due(due: CredentialQuerySet, *, time_limit_seconds: float) -> Run:
    """Refresh what is due, a batch at a time, the calls of a batch side by side.

    Threads do nothing but talk to Keap; every database access is this thread's. The run ends
    when nothing is due, at the time limit, or early where Keap is down. The rest keeps.
    """
    run = Run()
    ends_at = time.monotonic() + time_limit_seconds
    failures_in_a_row = 0
    # The first call is a probe: a dead Keap or a wrong client is met by one credential.
    size = 1
    with ThreadPoolExecutor(conf.REFRESH_CONCURRENCY) as pool:
        while time.monotonic() < ends_at and failures_in_a_row < FAILURES_THAT_END_A_RUN:
            lease, batch = claim_batch(due, size)
            if not batch:
                break
            for credential, outcome in _refresh_batch(pool, lease, batch):
                run.count(outcome)
                if outcome == Outcome.OK and credential.account is None:
                    run.nameless.append(credential)
                failing = outcome in (Outcome.UNAVAILABLE, Outcome.UNKNOWN)
                failures_in_a_row = failures_in_a_row + 1 if failing else 0
                if outcome == Outcome.MISCONFIGURED:
                    due = due.without_application(credential.application_id)
            size = conf.REFRESH_CONCURRENCY
    logger.info("run_finished %s", " ".join(f"{k}={v}" for k, v in run.as_dict().items()))
    return run


def _needs_a_person(credential: Credential) -> ReauthorizationRequired:
    return ReauthorizationRequired(
        f"{credential} must be connected again: {credential.get_reason_display()}.",
        reason=credential.reason,
    )


# Wait


def _wait_for_other(credential: Credential) -> Lease | None:
    """Wait until the other's refresh is over.

    :returns: a lease of our own where the other gave up without an outcome, else ``None``.
    """
    seen = credential.generation
    failures: int | None = None
    for pause in _polls():
        leased = look(credential)
        if credential.generation != seen:
            return None
        if credential.status != Status.CONNECTED:
            raise _needs_a_person(credential)
        if not leased:
            if failures is not None and credential.failures > failures:
                raise TemporarilyUnavailable(credential.last_error)
            if lease := claim(credential):
                return lease
        failures = credential.failures if failures is None else failures
        time.sleep(pause)
    raise RefreshInProgress(
        f"Another process has been refreshing {credential} for {conf.WAIT_SECONDS:g} seconds."
    )


def _polls() -> Iterator[float]:
    """Yield growing pauses until ``WAIT_SECONDS`` have passed, at least once."""
    ends_at = time.monotonic() + conf.WAIT_SECONDS
    pause = FIRST_POLL_SECONDS
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311  # spreads polls, guards nothing
        if time.monotonic() > ends_at:
            return
        pause = min(pause * 1.5, LONGEST_POLL_SECONDS)


# Send


def _attempt(credential: Credential, lease: Lease) -> None:
    _, error = _settle(_send(credential, lease))
    if error is not None:
        raise error


def _send(credential: Credential, lease: Lease) -> Attempt:
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


def _refresh_batch(
    pool: ThreadPoolExecutor, lease: Lease, batch: list[Credential]
) -> Iterator[tuple[Credential, Outcome]]:
    calls = [pool.submit(_send, credential, lease) for credential in batch]
    for call in as_completed(calls):
        attempt = call.result()
        outcome, _ = _settle(attempt)
        yield attempt.credential, outcome


# Store


def _settle(attempt: Attempt) -> tuple[Outcome, InfusionsoftError | None]:
    """Write the outcome down and tell it; return it with what a caller has to be told."""
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
        return Outcome.REJECTED, _needs_a_person(credential)
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


def _text(value: str) -> Value:
    return Value(str(value), output_field=CharField())


# Tell


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
