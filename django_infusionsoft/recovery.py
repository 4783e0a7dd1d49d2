"""What the spool holds goes to where it belongs, whoever finds it first.

A pair in the spool is the answer to one refresh token. It is stored where the row still has that
refresh token, in that generation, and never over a newer one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from django_infusionsoft import history, spool
from django_infusionsoft.attempts import (
    Settled,
    attempt_from,
    is_held,
    place_of,
    settle,
    tell,
)
from django_infusionsoft.choices import EventKind, Outcome
from django_infusionsoft.conf import conf
from django_infusionsoft.database import database_name, own_transaction
from django_infusionsoft.exceptions import DecryptionError
from django_infusionsoft.rows import is_leased

if TYPE_CHECKING:
    from django_infusionsoft.models import Credential

logger = logging.getLogger("django_infusionsoft")

# How long a pair is kept that nobody here knows.
ORPHAN_SECONDS: Final = 7 * 86_400.0


def recover(credential: Credential, *, in_flight: bool) -> bool:
    """Store the answer that waits for this credential, if there is one, and take it over.

    :param in_flight: also one that nobody has failed to store: where no lease is alive.
    :raises SpoolError: there is one, and it cannot be read.
    """
    slip = None
    with suppress(DecryptionError):  # whoever needs the refresh token itself will tell
        slip = spool.find(place_of(credential), in_flight=in_flight)
    if slip is None:
        return False
    _store(credential, slip)
    return True


def recover_all(model: type[Credential], alias: str) -> Iterator[Settled]:
    """Store what waits in the spool, and empty it of what belongs nowhere any more."""
    for slip in spool.waiting(database_name(alias)):
        rows = model._base_manager.using(alias).select_related("application")
        with own_transaction(alias):
            found = rows.annotate(is_leased=is_leased()).filter(pk=slip.place.credential_id)
            credential = found.first()
        try:
            is_for_it = credential is not None and place_of(credential) == slip.place
        except DecryptionError:
            # A key is missing; the pair may well be the one that belongs here.
            logger.exception("spool_unreadable credential=%s", slip.place.credential_id)
            continue
        if credential is None or credential.generation < slip.place.generation:
            _drop_in_time(slip)
        elif not is_for_it:
            _drop(credential, slip)
        elif not (slip.is_in_flight and credential.is_leased):  # else its holder is at it
            yield _store(credential, slip)


def _store(credential: Credential, slip: spool.Slip) -> Settled:
    # Without patience: the pair is safe, and somebody may be waiting.
    settled = settle(attempt_from(credential, slip), patience=iter(()))
    tell([settled])
    return settled


def _drop_in_time(slip: spool.Slip) -> None:
    """Forget a pair whose row is gone, or was never here.

    Not at once: another database may have the same name, or this one may be an older copy.
    """
    if slip.age_seconds > ORPHAN_SECONDS:
        logger.warning("spooled_pair_without_a_row credential=%s", slip.place.credential_id)
        slip.forget()


def _drop(credential: Credential, slip: spool.Slip) -> None:
    """Forget a pair that came too late, unless whoever stored it is about to do so."""
    if slip.age_seconds < conf.LEASE_SECONDS:
        return
    stored = history.knows_stored(credential, slip.place.fingerprint, slip.pair.refresh_token)
    if not stored and not is_held(credential, slip.pair):
        history.record(
            credential,
            EventKind.LATE_REPLY_DROPPED,
            outcome=Outcome.OK,
            fingerprint=slip.place.fingerprint,
        )
    slip.forget()
