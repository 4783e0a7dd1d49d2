"""The breaker blocks an application whose client Keap rejects or whose requests have no answer.

Each request without an answer may have cost a grant, so one is enough; errors must be several in a
row. A probe then sends a request that can cost no grant. Refresh tokens are presented again only
after Keap has answered a probe. A client that is distrusted has turns instead (``turns``).
"""

import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from django.db.models import Case, Exists, F, OuterRef, Q, QuerySet, When
from django.utils.crypto import salted_hmac

from django_infusionsoft import elapsed, signals, waiting
from django_infusionsoft.choices import ACTION_REQUIRED, BlockReason, Status
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import (
    ClientRejected,
    ConfigurationError,
    InfusionsoftError,
    OutcomeUnknown,
    RejectionDoubted,
    TemporarilyUnavailable,
)
from django_infusionsoft.keap import oauth
from django_infusionsoft.keap.transport import longest_call_seconds
from django_infusionsoft.refresh import receivers, timing
from django_infusionsoft.storage.applications import (
    Application,
    ApplicationState,
    blocked,
    client_of,
    from_now,
    row_of,
    state_of,
    was_notified,
)
from django_infusionsoft.storage.credentials import credential_model
from django_infusionsoft.storage.database import DatabaseNow, close_own_connection, own_transaction
from django_infusionsoft.text import quoted

logger = logging.getLogger("django_infusionsoft")

QUIET_SECONDS: Final = 3600.0
# A reply that takes longer than this is a sign that Keap hangs.
HANGING_SECONDS: Final = 1.0


def is_open(alias: str, *, force: bool = False) -> Exists:
    """Whether a credential's application is blocked: for ``filter()``.

    :param force: whether a user has asked for a refresh, which may show that Keap accepts them.
    """
    found = blocked(alias).filter(application_key=OuterRef("application_key"))
    return Exists(found.exclude(block_reason=BlockReason.DISTRUSTED) if force else found)


def distrust(alias: str, application: Application | None, error: str) -> None:
    """Block an application whose accounts Keap rejects one after the other, and report it once."""
    with own_transaction(alias):
        state = state_of(alias, application)
        row = row_of(alias, state)
        row.update(is_suspect=True, is_distrusted=True)
        row.filter(block_reason=BlockReason.NONE).update(
            block_reason=BlockReason.DISTRUSTED,
            last_error=error,
            tried_clients=mark_of(application),
            since=DatabaseNow(),
            notified_at=_notified_at(),
            probes=0,
            probe_at=from_now(timing.probe_pause(0)),
        )
        must_report = _note_report(row.filter(block_reason=BlockReason.DISTRUSTED))
    if must_report:
        _report_block(state, error)


def trust(alias: str, state: ApplicationState) -> None:
    """Unblock a distrusted application."""
    row = row_of(alias, state).filter(block_reason=BlockReason.DISTRUSTED)
    with own_transaction(alias):
        was_reported, _ = _unblock(row)
    if was_reported:
        _report_end(state)


def claim_turn(alias: str, state: ApplicationState) -> bool:
    """Claim the right to present one refresh token of a distrusted application."""
    if not _claim_probe(alias, state):
        return False
    pause = timing.probe_pause(state.probes + 1)
    with own_transaction(alias):
        _same_block(alias, state).update(probe_at=from_now(pause))
    return True


def trip(alias: str, application: Application | None, error: InfusionsoftError) -> bool:
    """Block an application after ``ConfigurationError`` or ``TemporarilyUnavailable``.

    :returns: False if Keap accepts the client in a probe: the error concerns this credential only,
        and the application is not blocked.
    """
    block_reason = _block_reason(error)
    # The first probe is sent at once if only one reply may have been wrong or lost.
    pause = _pause(0, error) if block_reason == BlockReason.UNAVAILABLE else 0.0
    with own_transaction(alias):
        state = state_of(alias, application)
        has_tripped = (
            row_of(alias, state)
            .filter(block_reason__in=(BlockReason.NONE, BlockReason.DISTRUSTED))
            .update(
                block_reason=block_reason,
                last_error=str(error),
                tried_clients=mark_of(application, block_reason),
                since=DatabaseNow(),
                notified_at=_notified_at(),
                probes=0,
                probe_at=from_now(pause),
            )
        )
        state = row_of(alias, state).get()
    if has_tripped:
        logger.warning("application_blocked application=%s reason=%s", _name(state), block_reason)
    must_confirm = has_tripped and block_reason in ACTION_REQUIRED
    return not (must_confirm and _probe(alias, state))


def require_closed(alias: str, application: Application | None) -> None:
    """Return if an application is not blocked, if need be after a probe.

    :raises ClientRejected: Keap rejects its client, in a probe or before the next one is due.
    :raises ConfigurationError: no request could be made, as above.
    :raises TemporarilyUnavailable: Keap does not answer, in a probe or before the next one is due.
    """
    found = blocked(alias).filter(application=application)
    with own_transaction(alias):
        state = found.first()
    if state is None or (not _is_distrusted(state) and _probe(alias, state)):
        return
    with own_transaction(alias):
        state = found.first()
    if state is None:
        return
    if state.block_reason == BlockReason.REJECTED:
        raise ClientRejected(
            f"Keap rejects the client ({state}), so no request is sent: check the client id and "
            f"the client secret. The app checks automatically whether Keap accepts them again."
        )
    if _is_distrusted(state):
        raise RejectionDoubted(state.last_error, retry_after=timing.MIN_PROBE_PAUSE_SECONDS)
    if state.block_reason == BlockReason.MISCONFIGURED:
        raise ConfigurationError(
            f"{state.last_error} The app checks automatically whether this is resolved."
        )
    what = (
        "accepted a request but did not reply"
        if state.block_reason == BlockReason.UNANSWERED
        else "could not be reached or returned errors"
    )
    raise TemporarilyUnavailable(
        f"Keap {what}, so nothing is sent until it replies again.",
        retry_after=max(0.0, (state.probe_at - state.database_now).total_seconds()),
    )


def count_blocked(alias: str) -> int:
    """Return how many applications are blocked."""
    with own_transaction(alias):
        return blocked(alias).count()


def probe_all(alias: str, *, is_over: Callable[[], bool]) -> tuple[int, bool]:
    """Probe the blocked applications whose probes are due, the first due first.

    Ends at the first one that Keap leaves waiting: all applications have the same token endpoint.

    :param is_over: called after each probe; if it returns true, no more are sent.
    :returns: how many are still blocked, and whether Keap left a probe waiting.
    """
    with own_transaction(alias):
        found = list(blocked(alias).order_by("probe_at", "pk"))
    count, hanging_seconds, is_hanging = len(found), _hanging_seconds(), False
    for state in found:
        if _is_distrusted(state):
            continue
        started = elapsed.monotonic()
        if _probe(alias, state):
            count -= 1
        else:
            is_hanging = elapsed.monotonic() - started >= hanging_seconds
        if is_over() or is_hanging:
            break
    return count, is_hanging


def _hanging_seconds() -> float:
    """Return after how many seconds a failed probe shows that Keap hangs."""
    return min(HANGING_SECONDS, conf.CONNECT_TIMEOUT_SECONDS, conf.READ_TIMEOUT_SECONDS)


def _is_distrusted(state: ApplicationState) -> bool:
    """Whether only a refresh token can show that the application may be used again."""
    return state.block_reason == BlockReason.DISTRUSTED


def _block_reason(error: InfusionsoftError) -> BlockReason:
    if isinstance(error, ClientRejected):
        return BlockReason.REJECTED
    if isinstance(error, ConfigurationError):
        return BlockReason.MISCONFIGURED
    return BlockReason.UNANSWERED if isinstance(error, OutcomeUnknown) else BlockReason.UNAVAILABLE


def _pause(probes: int, error: InfusionsoftError) -> float:
    """Return the seconds until the next probe, after this many failed ones."""
    if isinstance(error, ClientRejected):
        return timing.probe_pause(probes)
    pause = timing.probe_pause(probes, longest=timing.MAX_OUTAGE_PAUSE_SECONDS)
    retry_after = error.retry_after if isinstance(error, TemporarilyUnavailable) else None
    # Limited: Keap meant one refresh token, and the pause stops all of them.
    return max(pause, min(retry_after or 0.0, timing.MAX_PROBE_PAUSE_SECONDS))


def _probe(alias: str, state: ApplicationState) -> bool:
    """Probe if it is time and no other process does; return whether the client may be used."""
    # In less time a caller's limit would end the probe before Keap can reply.
    if waiting.seconds_left() < _hanging_seconds() or not _claim_probe(alias, state):
        return False
    close_own_connection(alias)
    try:
        oauth.probe(client_of(state.application))
    except InfusionsoftError as error:
        is_cut = isinstance(error, TemporarilyUnavailable) and waiting.seconds_left() <= 0
        _keep_open(alias, state, error, is_cut=is_cut)
        return False
    return _close(alias, state)


def _claim_probe(alias: str, state: ApplicationState) -> bool:
    """Claim one probe: when it is due, or at once with a client that was not rejected yet."""
    mark = mark_of(state.application, BlockReason(state.block_reason))
    marks = state.tried_clients.split()
    row = _same_block(alias, state).filter(probes=state.probes)
    if state.block_reason not in ACTION_REQUIRED or mark in marks:
        # Later than it can be: the database's clock has stepped back. A probe costs no grant.
        longest = max(timing.MAX_PROBE_PAUSE_SECONDS, longest_call_seconds())
        row = row.filter(Q(probe_at__lte=DatabaseNow()) | Q(probe_at__gt=from_now(2 * longest)))
    with own_transaction(alias):
        return bool(
            row.update(
                probes=F("probes") + 1,
                tried_clients=" ".join([*(each for each in marks if each != mark), mark][-10:]),
                # No other process probes while this probe may be under way.
                probe_at=from_now(longest_call_seconds()),
            )
        )


def _same_block(alias: str, state: ApplicationState) -> QuerySet[ApplicationState]:
    """The row, unless its application was unblocked since, even if it is blocked again."""
    # Not "equal": SQLite compares text, and its clock writes other digits than a parameter has.
    return row_of(alias, state).filter(since__lt=state.since + timedelta(microseconds=1))


def _keep_open(
    alias: str, state: ApplicationState, error: InfusionsoftError, *, is_cut: bool
) -> None:
    """Set the time of the next probe, and report, once, what an administrator must fix.

    :param is_cut: the caller's limit ended the probe, which says nothing about Keap.
    """
    logger.warning("probe_failed application=%s error=%s", _name(state), quoted(error))
    if is_cut:
        pause = _pause(max(0, state.probes - 1), error)
        with own_transaction(alias):
            _same_block(alias, state).update(probes=state.probes, probe_at=from_now(pause))
        return
    block_reason = _block_reason(error)
    must_act = block_reason in ACTION_REQUIRED
    columns: dict[str, Any] = {"probe_at": from_now(_pause(state.probes, error))}
    if must_act or state.block_reason == BlockReason.MISCONFIGURED:
        columns |= {"block_reason": block_reason, "last_error": str(error)}
    with own_transaction(alias):
        row = _same_block(alias, state)
        row.update(**columns)
        must_report = must_act and _note_report(row)
    if must_report:
        _report_block(state, str(error))


def _close(alias: str, state: ApplicationState) -> bool:
    """Unblock the application; return whether it is unblocked, by this process or another."""
    row = _same_block(alias, state).exclude(block_reason=BlockReason.NONE)
    with own_transaction(alias):
        was_reported, is_changed = _unblock(row)
        is_closed = is_changed or not blocked(alias).filter(pk=state.pk).exists()
    if is_closed and state.block_reason == BlockReason.UNAVAILABLE:
        _reschedule_failed(alias, state)
    if was_reported:
        _report_end(state)
    return is_closed


def _unblock(row: QuerySet[ApplicationState]) -> tuple[bool, bool]:
    """Unblock the application; return whether its block was reported, and whether it had one."""
    was_reported = bool(row.filter(was_notified()).update(block_reason=BlockReason.NONE))
    was_unreported = bool(row.update(block_reason=BlockReason.NONE))
    return was_reported, was_reported or was_unreported


def _notified_at() -> Case:
    """Return when the site was notified last, for an application that is blocked now.

    A time ahead is not of this block: the database's clock has stepped back.
    """
    return Case(When(notified_at__gt=DatabaseNow(), then=None), default=F("notified_at"))


def _note_report(row: QuerySet[ApplicationState]) -> bool:
    """Return whether the block must be reported, and note that it is."""
    # Not more often if machines with different clients make the block come and go.
    is_quiet = Q(notified_at__gt=from_now(-QUIET_SECONDS), notified_at__lte=DatabaseNow())
    unreported = row.exclude(was_notified()).exclude(is_quiet)
    return bool(unreported.update(notified_at=DatabaseNow()))


def _report_block(state: ApplicationState, error: str) -> None:
    logger.error("application_rejected application=%s error=%s", _name(state), quoted(error))
    receivers.send(
        signals.application_rejected,
        sender=type(state),
        application=state.application,
        error=error,
    )


def _report_end(state: ApplicationState) -> None:
    logger.info("application_accepted application=%s", _name(state))
    receivers.send(signals.application_accepted, sender=type(state), application=state.application)


def _reschedule_failed(alias: str, state: ApplicationState) -> None:
    """Make the credentials that failed during the outage due first: they were the most urgent."""
    failed = (
        credential_model()
        ._base_manager.using(alias)
        .filter(
            application_key=state.application_id or 0,
            status=Status.CONNECTED,
            failures__gt=0,
            unanswered_attempts=0,  # the repeat keeps its own time
            lease_until__isnull=True,
            refresh_at__gt=DatabaseNow(),
            refresh_at__lte=from_now(timing.MAX_PAUSE_SECONDS),
        )
    )
    with own_transaction(alias):
        failed.update(refresh_at=F("issued_at"))


def _name(state: ApplicationState) -> str:
    """Return the application's name in the log, independent of the active language."""
    return quoted(state.application or "settings")


def mark_of(
    application: Application | None, block_reason: BlockReason = BlockReason.REJECTED
) -> str:
    """Return a keyed hash that tells clients apart and reveals nothing of their secrets.

    It also tells machines apart if the environment may be wrong.
    """
    try:
        client = client_of(application)
    except ConfigurationError:
        return "-"
    secret = f"{client.client_id}\0{client.client_secret}"
    if block_reason == BlockReason.MISCONFIGURED:
        secret += f"\0{socket.gethostname()}"
    key = secret.encode(errors="surrogatepass")  # what cannot be sent can be told apart, too
    return salted_hmac("django_infusionsoft.breaker", key, algorithm="sha256").hexdigest()[:16]
