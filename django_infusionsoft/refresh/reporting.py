"""Step 4 of a refresh, after the commit: the event, the log line and the signal."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from django_infusionsoft import signals
from django_infusionsoft.choices import EventKind, Outcome
from django_infusionsoft.exceptions import DecryptionError, GatewayFailed, InfusionsoftError
from django_infusionsoft.keap.transport import lease_seconds
from django_infusionsoft.monitoring import history
from django_infusionsoft.refresh import receivers
from django_infusionsoft.refresh.leases import Claim, held
from django_infusionsoft.refresh.sending import spooled_error_of
from django_infusionsoft.refresh.spool import SpooledError
from django_infusionsoft.refresh.storing import AttemptResult, correct_abandoned, outcome_of
from django_infusionsoft.storage.applications import from_now
from django_infusionsoft.storage.credentials import CredentialRow, alias_of, row_of
from django_infusionsoft.storage.database import own_transaction
from django_infusionsoft.storage.events import CredentialEvent
from django_infusionsoft.text import iso_format

# Per run.
MAX_MISSING: Final = 1000


def report(results: Sequence[AttemptResult]) -> None:
    """Write the events with their log lines, and send the signals."""
    history.record_all(
        [_entry(result, result.kind) for result in results if result.kind is not None]
    )
    for result in results:
        _send_signal(result, result.attempt.credential)


def _entry(result: AttemptResult, kind: EventKind) -> history.Entry:
    attempt, reply = result.attempt, result.attempt.reply
    credential = attempt.credential
    details = {
        "outcome": result.outcome,
        "reason": credential.reason,
        "detail": str(reply) if isinstance(reply, InfusionsoftError) else "",
        "fingerprint": attempt.fingerprint,
        "duration_ms": None if attempt.seconds is None else round(attempt.seconds * 1000),
        "user": attempt.user,
    }
    return history.Entry(credential, kind, details)


def report_missing(model: type[CredentialRow], alias: str) -> None:
    """Report the stored refreshes whose processes died before they could."""
    long_ago = from_now(-lease_seconds())  # others may be about to report theirs
    with own_transaction(alias):
        rows = model._base_manager.using(alias).filter(is_unreported=True)
        found = list(rows.filter(issued_at__lte=long_ago).order_by("issued_at")[:MAX_MISSING])
    for credential in found:
        _report_unreported(credential)


def report_previous(claim: Claim) -> None:
    """Report the attempts before this one whose processes did not: they died or are stuck."""
    if claim.credential.is_unreported:
        _report_unreported(claim.credential)
    if claim.abandoned_by is None:
        return
    details: dict[str, Any] = {"worker": claim.abandoned_by}
    with suppress(DecryptionError):
        details["fingerprint"] = history.fingerprint(claim.credential.refresh_token)
    if spooled := spooled_error_of(claim.credential):
        _report_spooled(claim, spooled, details)
        return
    history.record(claim.credential, EventKind.ABANDONED, outcome=Outcome.UNKNOWN, **details)


def _report_spooled(claim: Claim, spooled: SpooledError, details: dict[str, Any]) -> None:
    """Report an attempt whose process had its outcome, and could only write it to the spool."""
    credential, error = claim.credential, spooled.error
    with own_transaction(alias_of(credential)):
        row = held(credential, claim.lease.id, credential.generation)
        if correct_abandoned(row, spooled):
            # Not by assignment: save() would refuse to write it.
            columns = vars(credential)
            columns["unanswered_attempts"] -= 1
            columns["may_be_rotated"] |= isinstance(error, GatewayFailed)
    history.record(
        credential,
        EventKind.REFRESH_FAILED,
        outcome=outcome_of(error),
        detail=str(error),
        **details,
    )
    spooled.discard()


def _report_unreported(credential: CredentialRow) -> None:
    """Write the event of a stored refresh, unless its process has just done so."""
    alias = alias_of(credential)
    with own_transaction(alias):
        events = CredentialEvent._base_manager.using(alias).filter(credential_id=credential.pk)
        same = events.filter(kind__in=history.REFRESHES, generation=credential.generation)
        if same.exists():
            row_of(credential).update(is_unreported=False)
            return
    history.record(
        credential,
        EventKind.REFRESHED,
        outcome=Outcome.OK,
        worker="",
        fingerprint=credential.presented_fingerprint,
        detail=f"Stored at {iso_format(credential.issued_at)}; its process died before it could "
        "write this event.",
    )


def _send_signal(result: AttemptResult, credential: CredentialRow) -> None:
    sender = type(credential)
    match result.kind:
        case EventKind.REFRESHED | EventKind.RECOVERED:
            receivers.send(
                signals.credential_refreshed,
                sender=sender,
                credential=credential,
                generation=credential.generation,
                duration_seconds=result.attempt.seconds or 0.0,
            )
        case EventKind.REAUTHORIZATION_REQUIRED:
            receivers.send(
                signals.reauthorization_required,
                sender=sender,
                credential=credential,
                reason=credential.reason,
            )
        case EventKind.REFRESH_FAILED if result.outcome != Outcome.REJECTED:
            receivers.send(
                signals.refresh_failed,
                sender=sender,
                credential=credential,
                exception=result.error,
            )
