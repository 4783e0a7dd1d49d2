"""The breaker: a client that Keap refuses, or leaves without an answer, is not used.

Each request that is not answered may have cost a grant, so one is enough; of errors it takes
several in a row. Then a probe asks what can cost no grant, and only once that is answered are
refresh tokens presented again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from django.apps import apps
from django.db.models import Exists, F, OuterRef, Q
from django.utils.crypto import salted_hmac

from django_infusionsoft import oauth, signals, timing
from django_infusionsoft.application_states import from_now, row_of, state_of, troubled
from django_infusionsoft.choices import Status, Trouble
from django_infusionsoft.database import DatabaseNow, own_transaction
from django_infusionsoft.exceptions import (
    ClientRejected,
    ConfigurationError,
    InfusionsoftError,
    OutcomeUnknown,
    TemporarilyUnavailable,
)
from django_infusionsoft.plain import quoted
from django_infusionsoft.transport import longest_call_seconds

if TYPE_CHECKING:
    from django_infusionsoft.models import Application, ApplicationState, Credential

logger = logging.getLogger("django_infusionsoft")

QUIET_SECONDS: Final = 3600.0


def is_open(alias: str) -> Exists:
    """Whether the client of a credential's application is not to be used: for ``filter()``."""
    return Exists(troubled(alias).filter(application_key=OuterRef("application_key")))


def trip(
    alias: str, application: Application | None, client: oauth.Client, error: InfusionsoftError
) -> bool:
    """Stop using an application's client after ``ClientRejected`` or ``TemporarilyUnavailable``.

    :returns: False where a probe has been answered at once: Keap refuses the client for one
        credential and for no other, and it is in use.
    """
    trouble = _trouble(error)
    # The first probe at once where it may have been one reply that went astray.
    pause = 0.0
    if trouble == Trouble.UNAVAILABLE:
        pause = _pause(0, trouble, error)
    with own_transaction(alias):
        state = state_of(alias, application)
        has_tripped = (
            row_of(alias, state)
            .filter(trouble=Trouble.NONE)
            .update(
                trouble=trouble,
                client_marks=_mark(client),
                trips=F("trips") + 1,
                since=DatabaseNow(),
                probes=0,
                probe_at=from_now(pause),
            )
        )
        state = row_of(alias, state).get()
    if has_tripped:
        logger.warning("application_stopped application=%s trouble=%s", _name(state), trouble)
    is_refused = trouble == Trouble.REJECTED
    return not (has_tripped and is_refused and _probe(alias, state))


def admit(alias: str, application: Application | None) -> None:
    """Return if an application's client may be used, perhaps because a probe has been answered.

    :raises ClientRejected: Keap refuses it, and it is too early to ask again.
    :raises TemporarilyUnavailable: Keap does not answer, and it is too early to ask again.
    """
    found = troubled(alias).filter(application=application)
    with own_transaction(alias):
        state = found.first()
    if state is None or _probe(alias, state):
        return
    with own_transaction(alias):
        state = found.first()
    if state is None:
        return
    if state.trouble == Trouble.REJECTED:
        raise ClientRejected(
            f"Keap refuses the client ({state}), so it is not asked: check the client id and the "
            f"client secret. Whether it takes the client again is tried by itself."
        )
    what = (
        "took a request and did not answer"
        if state.trouble == Trouble.UNANSWERED
        else "could not be reached or answered with errors"
    )
    raise TemporarilyUnavailable(
        f"Keap {what}, so nothing is sent before it answers again.",
        retry_after=_seconds_until_probe(state),
    )


def reconsider(alias: str) -> int:
    """Find out which of the clients that are not used may be used again, where it is time.

    :returns: how many are still not used.
    """
    with own_transaction(alias):
        found = list(troubled(alias))
    return sum(not _probe(alias, state) for state in found)


def _seconds_until_probe(state: ApplicationState) -> float:
    return max(0.0, (state.probe_at - state.database_now).total_seconds())


def _trouble(error: InfusionsoftError) -> Trouble:
    if isinstance(error, ClientRejected):
        return Trouble.REJECTED
    return Trouble.UNANSWERED if isinstance(error, OutcomeUnknown) else Trouble.UNAVAILABLE


def _pause(probes: int, trouble: str, error: InfusionsoftError) -> float:
    """Return for how many seconds Keap is left alone after this many probes in vain."""
    if trouble == Trouble.REJECTED:
        return timing.probe_pause(probes)
    pause = timing.probe_pause(probes, longest=timing.MAX_OUTAGE_PAUSE_SECONDS)
    wished = error.retry_after if isinstance(error, TemporarilyUnavailable) else None
    # What Keap wishes, within reason: it is asked for one refresh token, and stops all of them.
    return max(pause, min(wished or 0.0, timing.MAX_PROBE_PAUSE_SECONDS))


def _probe(alias: str, state: ApplicationState) -> bool:
    """Ask Keap if it is time and nobody else does; return whether the client may be used."""
    try:
        client = state.client
    except ConfigurationError:
        return False
    if not _take_probe(alias, state, client):
        return False
    try:
        oauth.probe(client)
    except InfusionsoftError as error:
        _stay_open(alias, state, error)
        return False
    return _close(alias, state)


def _take_probe(alias: str, state: ApplicationState, client: oauth.Client) -> bool:
    """Take the right to one probe: in its time, or at once with a client that was not refused."""
    marks, mark = state.client_marks.split(), _mark(client)
    mine = row_of(alias, state).filter(trips=state.trips, probes=state.probes)
    if state.trouble != Trouble.REJECTED or mark in marks:
        mine = mine.filter(probe_at__lte=DatabaseNow())
    with own_transaction(alias):
        return bool(
            mine.update(
                probes=F("probes") + 1,
                client_marks=" ".join([*(each for each in marks if each != mark), mark][-10:]),
                # Nobody else probes while this one may be under way.
                probe_at=from_now(longest_call_seconds()),
            )
        )


def _stay_open(alias: str, state: ApplicationState, error: InfusionsoftError) -> None:
    """Name the time of the next probe, and tell, once, that Keap refuses the client."""
    logger.warning("probe_failed application=%s error=%s", _name(state), quoted(error))
    trouble = _trouble(error)
    is_refused = trouble == Trouble.REJECTED
    columns: dict[str, Any] = {"probe_at": from_now(_pause(state.probes, trouble, error))}
    if is_refused:
        columns["trouble"] = Trouble.REJECTED
    # Not again where machines with different clients make it come and go.
    is_news = Q(told_at__isnull=True) | Q(told_at__lte=from_now(-QUIET_SECONDS))
    with own_transaction(alias):
        row = row_of(alias, state).filter(trips=state.trips)
        row.update(**columns)
        untold = row.filter(is_news).exclude(told_trip=state.trips)
        is_told = is_refused and untold.update(told_at=DatabaseNow(), told_trip=state.trips)
    if is_told:
        logger.error("application_rejected application=%s error=%s", _name(state), quoted(error))
        signals.application_rejected.send_robust(
            sender=type(state), application=state.application, error=str(error)
        )


def _close(alias: str, state: ApplicationState) -> bool:
    """Use the client again; return whether that is how it stands, by whomever."""
    row = row_of(alias, state).filter(trips=state.trips).exclude(trouble=Trouble.NONE)
    with own_transaction(alias):
        was_told = row.filter(told_trip=state.trips).update(trouble=Trouble.NONE)
        was_quiet = row.update(trouble=Trouble.NONE)
        is_closed = was_told or was_quiet or not troubled(alias).filter(pk=state.pk).exists()
    if is_closed and state.trouble == Trouble.UNAVAILABLE:
        _bring_forward(alias, state)
    if was_told:
        logger.info("application_accepted application=%s", _name(state))
        signals.application_accepted.send_robust(sender=type(state), application=state.application)
    return bool(is_closed)


def _bring_forward(alias: str, state: ApplicationState) -> None:
    """Let those that failed while Keap was away come first now: they were the most urgent ones,
    and their own pauses were for a Keap that is away.
    """
    model: type[Credential] = apps.get_model("django_infusionsoft", "Credential")
    waiting = model._base_manager.using(alias).filter(
        application_key=state.application_id or 0,
        status=Status.CONNECTED,
        failures__gt=0,
        unanswered_attempts=0,  # whose repeat has a time of its own
        lease_until__isnull=True,
        refresh_at__gt=DatabaseNow(),
        refresh_at__lte=from_now(timing.MAX_PAUSE_SECONDS),
    )
    with own_transaction(alias):
        waiting.update(refresh_at=F("issued_at"))


def _name(state: ApplicationState) -> str:
    """Return what a log calls it, in whatever language."""
    return quoted(state.application or "settings")


def _mark(client: oauth.Client) -> str:
    """Return what tells clients apart and reveals nothing of their secrets."""
    secret = f"{client.client_id}\0{client.client_secret}"
    return salted_hmac("django_infusionsoft.breaker", secret, algorithm="sha256").hexdigest()[:16]
