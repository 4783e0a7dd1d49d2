"""Step 3 of a refresh: store the outcome of an attempt.

Nothing that can fail stands between the reply and the one statement that stores it. Until then the
reply is in the spool, so that it survives the death of this process. Other outcomes go there if
the database stays unavailable: a lease that is not released counts as an attempt without a reply.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from django.db import Error
from django.db.models import F, QuerySet
from django.db.models.functions import Coalesce
from django.utils import translation

from django_infusionsoft.choices import EventKind, Outcome, Reason, Status
from django_infusionsoft.exceptions import (
    ClientRejected,
    ConfigurationError,
    DatabaseBusy,
    DecryptionError,
    GatewayFailed,
    GrantRejected,
    InfusionsoftError,
    OutcomeUnknown,
    ReauthorizationRequired,
    RefreshesLimited,
    RefreshInProgress,
    RejectionDoubted,
    SpoolError,
    TemporarilyUnavailable,
)
from django_infusionsoft.fields import seal
from django_infusionsoft.keap import oauth
from django_infusionsoft.monitoring import history
from django_infusionsoft.refresh import breaker, spool, timing, trust
from django_infusionsoft.refresh.leases import held, persist_or_keep, spool_key
from django_infusionsoft.refresh.sending import Attempt
from django_infusionsoft.refresh.timing import Plan
from django_infusionsoft.storage.applications import from_now
from django_infusionsoft.storage.credentials import (
    NO_LEASE,
    CredentialRow,
    alias_of,
    apply_columns,
    reload,
    row_of,
)
from django_infusionsoft.storage.database import DatabaseNow, persist, update_row
from django_infusionsoft.text import quoted

T = TypeVar("T")

logger = logging.getLogger("django_infusionsoft")

# What each new token pair changes in the same way.
RENEWED: Final[Mapping[str, Any]] = {
    "status": Status.CONNECTED.value,
    "reason": "",
    "failures": 0,
    "unanswered_attempts": 0,
    "may_be_rotated": False,
    "is_doubted": False,
    "last_error": "",
    "failing_since": None,
    "failed_outcome": "",
    **NO_LEASE,
}
# The history follows. If this process dies before, the next run adds what is missing.
REFRESHED: Final[Mapping[str, Any]] = {**RENEWED, "is_unreported": True}


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """An attempt whose outcome is in the database."""

    attempt: Attempt
    outcome: Outcome
    error: InfusionsoftError | None = None
    """The exception for the caller; ``None`` if the credential has a valid access token now."""
    kind: EventKind | None = None
    """The kind of its event, if it gets one."""


def record_outcome(
    attempt: Attempt, *, retry_delays: Iterator[float] | None = None
) -> AttemptResult:
    """Store the outcome.

    If an exception interrupts this (Ctrl-C, Celery's time limit), it is raised afterwards: without
    a spool the reply exists nowhere else.

    :param retry_delays: the pauses of ``persist``, if several attempts share them.
    """
    try:
        return _record(attempt, retry_delays)
    except (Error, DatabaseBusy):  # persist() has retried for long enough
        raise
    except BaseException:
        _record(attempt, retry_delays)
        raise


def _record(attempt: Attempt, retry_delays: Iterator[float] | None) -> AttemptResult:
    try:
        match attempt.reply:
            case spool.SpooledPair() as spooled:
                return _store(attempt, spooled, retry_delays)
            case InfusionsoftError() as error if attempt.again:
                return _keep_rejected(attempt, error, retry_delays)
            case ReauthorizationRequired() as error:
                return _mark_rejected(attempt, error, retry_delays)
            case InfusionsoftError() as error:
                return _schedule_retry(attempt, error, retry_delays)
    except ReauthorizationRequired as gone:  # the row was deleted during the request
        logger.warning("reply_without_a_row credential=%s", attempt.credential.pk)
        return AttemptResult(attempt, Outcome.REJECTED, gone)


def outcome_of(error: InfusionsoftError) -> Outcome:
    """Return an error's outcome for the history."""
    match error:
        case ReauthorizationRequired():
            return Outcome.REJECTED
        case DecryptionError() | SpoolError():
            return Outcome.UNREADABLE
        case ConfigurationError():
            return Outcome.MISCONFIGURED
        case OutcomeUnknown() if not isinstance(error, GatewayFailed):
            return Outcome.UNKNOWN
    return Outcome.UNAVAILABLE


def _store(
    attempt: Attempt, spooled: spool.SpooledPair, retry_delays: Iterator[float] | None
) -> AttemptResult:
    """Store the token pair if the generation still matches."""
    credential, pair = attempt.credential, spooled.pair
    alias, is_recovery = alias_of(credential), attempt.seconds is None
    if is_recovery:
        reload(credential)  # for the database's clock, which a claim has read already
    columns = columns_for(pair, seed=str(credential), plan=attempt.plan, now=credential.now)
    columns["generation"] = attempt.generation + 1
    columns["presented_fingerprint"] = attempt.fingerprint
    if attempt.after_401:
        columns["api_rejections"] = credential.api_rejections + 1

    def write() -> int:
        same = {
            "identity": credential.identity,
            "id": credential.pk,
            "generation": attempt.generation,
        }
        return update_row(alias, type(credential), columns, where=same, constants=REFRESHED)

    who = f"credential={credential.pk} account={credential.account}"
    is_ours = bool(persist(alias, write, what=who, fsync=spooled.fsync, retry_delays=retry_delays))
    spooled.discard()
    if is_ours:
        apply_columns(credential, {**columns, **REFRESHED})
        _note_success(credential)
        kind = EventKind.RECOVERED if is_recovery else EventKind.REFRESHED
        return AttemptResult(attempt, Outcome.OK, kind=kind)
    reload(credential)
    # Only the database's answer was lost, or another process found the pair in the spool first.
    if not is_stored(credential, spooled):
        return AttemptResult(attempt, Outcome.OK, kind=EventKind.LATE_REPLY_DROPPED)
    # A request to Keap is always reported; a recovery, by the process that stored the pair.
    return AttemptResult(attempt, Outcome.OK, kind=None if is_recovery else EventKind.REFRESHED)


def _note_success(credential: CredentialRow) -> None:
    try:
        trust.note_success(credential)
    except (Error, DatabaseBusy):  # the next success does it
        logger.exception("success_not_noted credential=%s", credential.pk)


def is_stored(credential: CredentialRow, spooled: spool.SpooledPair) -> bool:
    """Whether the row has or had this token pair, as far as the instance and the history know."""
    with suppress(DecryptionError):
        if credential.access_token == spooled.pair.access_token:
            return True
    return history.knows_answer(credential, spooled.key.fingerprint)


def columns_for(
    pair: oauth.TokenPair, *, seed: str, plan: Plan, now: datetime | DatabaseNow
) -> dict[str, Any]:
    """Return a new token pair's columns besides ``RENEWED``; all times are relative to ``now``."""
    seconds_left = pair.seconds_left
    delay = plan.delay(seconds_left, seed=seed, now=datetime.now(UTC))
    columns: dict[str, Any] = {
        "access_token": seal(pair.access_token),
        "issued_at": now,
        "expires_at": now + timedelta(seconds=seconds_left),
        "refresh_at": now + timedelta(seconds=delay),
        "api_rejections": 0,
    }
    if pair.refresh_token is not None:
        columns["refresh_token"] = seal(pair.refresh_token)
    return columns


def _mark_rejected(
    attempt: Attempt, error: ReauthorizationRequired, retry_delays: Iterator[float] | None
) -> AttemptResult:
    """Accept a rejection only if the generation and the lease are still the attempt's."""
    credential = attempt.credential
    is_doubtful = _is_doubtful(attempt, error)
    if is_doubtful and not _persist(
        lambda: trust.is_believed(credential), attempt, error, retry_delays
    ):
        return _doubt(attempt, error, retry_delays)
    if error.reason == Reason.USED_ELSEWHERE:
        error = _persist(lambda: _diagnose_reuse(attempt, error), attempt, error, retry_delays)
        attempt = replace(attempt, reply=error)
    is_lost = credential.unanswered_attempts or credential.may_be_rotated
    default_reason = Reason.ROTATION_LOST if is_lost else Reason.REVOKED
    columns: dict[str, Any] = {
        "status": Status.REAUTHORIZATION_REQUIRED,
        "reason": error.reason or default_reason,
        "last_error": str(error),
        "refresh_at": None,
        # Not twice: since the first time, the client has proved to be right.
        "is_doubted": is_doubtful and not credential.is_doubted,
    }
    # A mail may have reported an earlier loss, and none yet that it was resolved.
    if not _write(attempt, error, retry_delays, **columns, is_alerted=False):
        return _superseded(attempt)
    apply_columns(credential, {**columns, "generation": attempt.generation})
    kind = EventKind.REAUTHORIZATION_REQUIRED
    return AttemptResult(attempt, Outcome.REJECTED, reauthorization_error(credential), kind)


def _diagnose_reuse(attempt: Attempt, error: ReauthorizationRequired) -> ReauthorizationRequired:
    """Return another error if this site has presented the refresh token before."""
    kinds = history.presentations(attempt.credential, attempt.fingerprint)
    if not kinds:
        return error
    cause = (
        "perhaps an older token pair has been written to the database"
        if not kinds.isdisjoint(history.ANSWERED)
        else "an earlier request may have used it up"
    )
    return GrantRejected(
        f"Keap rejected a refresh token that this site has presented before: {cause}."
    )


def _is_doubtful(attempt: Attempt, error: ReauthorizationRequired) -> bool:
    """Whether the cause of a rejection may be the client or the server."""
    credential = attempt.credential
    return (
        isinstance(error, GrantRejected)
        and error.reason in ("", Reason.USED_ELSEWHERE)
        and not (credential.unanswered_attempts or credential.may_be_rotated)
    )


def _doubt(
    attempt: Attempt, error: ReauthorizationRequired, retry_delays: Iterator[float] | None
) -> AttemptResult:
    """Keep an account that Keap has rejected, and let it wait for its next turn."""
    credential = attempt.credential
    pause = timing.turn_pause(credential.failures)
    doubted = RejectionDoubted(f"{error} {trust.DISTRUST}", retry_after=pause)
    columns = {
        **_failure(Outcome.UNAVAILABLE, doubted),
        "failures": F("failures") + 1,
        "refresh_at": from_now(pause),
        "is_doubted": True,
    }
    if not _write(attempt, error, retry_delays, **columns):
        return _superseded(attempt)
    attempt = replace(attempt, reply=doubted)
    return AttemptResult(attempt, Outcome.UNAVAILABLE, doubted, EventKind.REFRESH_FAILED)


def _keep_rejected(
    attempt: Attempt, error: InfusionsoftError, retry_delays: Iterator[float] | None
) -> AttemptResult:
    """Record that a user had a rejected refresh token presented again, and that this failed."""
    _report_to_breaker(attempt, error)
    columns = {**_uncertainty(error), "last_error": str(error)}
    if not _write(attempt, error, retry_delays, **columns):
        return _superseded(attempt)
    if isinstance(error, ReauthorizationRequired):
        error = reauthorization_error(attempt.credential)
    return AttemptResult(attempt, outcome_of(error), error, EventKind.REFRESH_FAILED)


def _schedule_retry(
    attempt: Attempt, error: InfusionsoftError, retry_delays: Iterator[float] | None
) -> AttemptResult:
    """Keep the token pair, release the lease, and set the time of the next attempt."""
    credential, outcome = attempt.credential, outcome_of(error)
    is_failure = outcome != Outcome.MISCONFIGURED and not isinstance(error, RefreshInProgress)
    columns, pause = _consequences(attempt, outcome, error, is_failure=is_failure)
    # Before the lease is released, so that no other worker sends a request in between.
    if not _report_to_breaker(attempt, error):
        pause = timing.backoff(1, seed=str(credential))
    due_at: Any = attempt.due_at
    if due_at is None or (outcome == Outcome.MISCONFIGURED and due_at > credential.now):
        due_at = DatabaseNow()  # as soon as the cause is gone
    columns["refresh_at"] = due_at if pause is None else from_now(pause)
    if not _write(attempt, error, retry_delays, **columns):
        return _superseded(attempt)
    if not (attempt.fingerprint or is_failure):
        # Nothing was sent. An event would repeat with every run.
        level = logging.ERROR if outcome == Outcome.MISCONFIGURED else logging.WARNING
        logger.log(level, "%s credential=%s error=%s", outcome.value, credential.pk, quoted(error))
        return AttemptResult(attempt, outcome, error)
    return AttemptResult(attempt, outcome, error, EventKind.REFRESH_FAILED)


def _consequences(
    attempt: Attempt, outcome: Outcome, error: InfusionsoftError, *, is_failure: bool
) -> tuple[dict[str, Any], float | None]:
    """Return the columns to write, and the pause in seconds (``None``: due as before)."""
    columns, credential = _uncertainty(error), attempt.credential
    if attempt.after_401 and outcome == Outcome.UNAVAILABLE and not columns:
        # The account was not due: its next regular refresh stays as it was.
        return {}, None
    if is_failure:
        pause = timing.backoff(credential.failures + 1, seed=str(credential))
        if isinstance(error, TemporarilyUnavailable):
            pause = max(pause, error.retry_after or 0.0)
        return {**columns, "failures": F("failures") + 1, **_failure(outcome, error)}, pause
    if isinstance(error, RefreshInProgress):  # too little was left of the lease
        return columns, timing.backoff(1, seed="")
    # The breaker reports a rejected client.
    return {} if isinstance(error, ClientRejected) else _failure(outcome, error), None


def _failure(outcome: Outcome, error: InfusionsoftError) -> dict[str, Any]:
    """Return the columns that say why the account is not refreshed."""
    return {
        "last_error": str(error),
        "failing_since": Coalesce("failing_since", DatabaseNow()),
        "failed_outcome": outcome,
    }


def _uncertainty(error: InfusionsoftError) -> dict[str, Any]:
    """Return the columns that say whether Keap may have acted on the request."""
    if isinstance(error, GatewayFailed):
        return {"may_be_rotated": True}
    if isinstance(error, OutcomeUnknown):
        return {"unanswered_attempts": F("unanswered_attempts") + 1}
    return {}


def _report_to_breaker(attempt: Attempt, error: InfusionsoftError) -> bool:
    """Pass the error to the breaker; return False if it concerns only this credential."""
    credential = attempt.credential
    is_configuration = outcome_of(error) == Outcome.MISCONFIGURED
    is_relevant = is_configuration or isinstance(error, OutcomeUnknown | RefreshesLimited)
    if attempt.is_from_spool or not is_relevant:
        return True
    try:
        return breaker.trip(alias_of(credential), credential.application, error)
    except (Error, DatabaseBusy):
        # The outcome must still be stored and reported.
        logger.exception("breaker_not_written credential=%s", credential.pk)
        return True


def _write(
    attempt: Attempt,
    error: InfusionsoftError,
    retry_delays: Iterator[float] | None,
    **columns: Any,
) -> bool:
    """Release the lease and write the columns, if lease and generation are still the attempt's."""
    credential, tries = attempt.credential, 0

    def write() -> bool:
        nonlocal tries
        tries += 1
        row = held(credential, attempt.lease_id, attempt.generation)
        return bool(row.update(**columns, **NO_LEASE)) or (tries > 1 and was_written())

    def was_written() -> bool:
        # Perhaps only the database's answer was lost.
        written = {name: columns[name] for name in ("last_error",) if name in columns}
        row = row_of(credential).filter(generation=attempt.generation, **NO_LEASE, **written)
        return bool(written) and row.exists()

    return _persist(write, attempt, error, retry_delays)


def _persist(
    write: Callable[[], T],
    attempt: Attempt,
    error: InfusionsoftError,
    retry_delays: Iterator[float] | None,
) -> T:
    """Let ``write`` commit on its own. If the database stays away, keep the error in the spool."""
    spooled = spooled_error(attempt, error)
    return persist_or_keep(spooled, attempt.credential, write, retry_delays)


def spooled_error(attempt: Attempt, error: InfusionsoftError) -> spool.SpooledError:
    """Return an attempt's outcome as it is written to the spool."""
    return spool.SpooledError(
        spool_key(attempt.credential, attempt.generation, attempt.fingerprint),
        error,
        attempt.lease_id,
        attempt.due_at,
        after_401=attempt.after_401,
        again=attempt.again,
    )


def correct_abandoned(row: QuerySet[CredentialRow], spooled: spool.SpooledError) -> bool:
    """Correct the count of a row whose lease was taken over: the attempt did have this outcome.

    :returns: whether it was counted, and was not one without a reply.
    """
    error = spooled.error
    if isinstance(error, OutcomeUnknown) and not isinstance(error, GatewayFailed):
        return False
    columns = {
        **_uncertainty(error),
        "unanswered_attempts": F("unanswered_attempts") - 1,
        "abandoned_lease_id": "",
    }
    # Otherwise the outcome was written, and only the database's answer was lost.
    counted = row.filter(abandoned_lease_id=spooled.lease_id, unanswered_attempts__gt=0)
    again = {"status": Status.CONNECTED, "reason": "", "refresh_at": DatabaseNow()}
    given_up = counted.filter(reason=Reason.UNANSWERED)
    return bool(
        given_up.update(**columns, **again)
        or counted.filter(status=Status.CONNECTED).update(**columns)
    )


def _superseded(attempt: Attempt) -> AttemptResult:
    """Return the result if the row has a newer token pair by now, or another process's lease."""
    reload(attempt.credential)
    if attempt.credential.generation != attempt.generation:
        return AttemptResult(attempt, Outcome.OK)
    busy = RefreshInProgress(f"Another process is refreshing {attempt.credential}.")
    return AttemptResult(attempt, Outcome.UNAVAILABLE, busy)


def reauthorization_error(credential: CredentialRow) -> ReauthorizationRequired:
    """Return the exception for a credential that must be reconnected."""
    with translation.override(None):  # exceptions are in English, like all others
        why = str(credential.get_reason_display() or credential.get_status_display())
    return ReauthorizationRequired(
        f"{credential} must be reconnected: {why}.", reason=credential.reason
    )
