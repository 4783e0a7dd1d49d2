"""Store the replies that the spool holds.

A token pair in the spool is the answer to one refresh token. It is stored if the row still has
that refresh token in the same generation, and never replaces a newer one. Any other outcome is
stored if the row still has the lease of its attempt. If the lease was taken over, the attempt was
counted as one without a reply, and this is corrected.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from django_infusionsoft.choices import EventKind, Outcome
from django_infusionsoft.exceptions import DecryptionError
from django_infusionsoft.keap.transport import lease_seconds
from django_infusionsoft.monitoring import history
from django_infusionsoft.refresh import spool
from django_infusionsoft.refresh.reporting import report
from django_infusionsoft.refresh.sending import attempt_from, spool_key_of, spooled_error_of
from django_infusionsoft.refresh.storing import (
    AttemptResult,
    correct_abandoned,
    is_stored,
    record_outcome,
)
from django_infusionsoft.storage.credentials import (
    CredentialRow,
    alias_of,
    is_leased,
    reload,
    row_of,
)
from django_infusionsoft.storage.database import (
    close_idle_connection,
    database_name,
    own_transaction,
)

logger = logging.getLogger("django_infusionsoft")

# How long a token pair without a row is kept.
ORPHAN_SECONDS: Final = 7 * 86_400.0


def reload_and_release(credential: CredentialRow) -> bool:
    """Reload the credential; first store the outcome in the spool that its lease waits for.

    :returns: whether a lease is alive.
    """
    leased = reload(credential)
    if outcome := spooled_error_of(credential):
        _settle(outcome, type(credential), alias_of(credential))
        leased = reload(credential)
    return leased


def recover(credential: CredentialRow, *, leased: bool = False) -> bool:
    """Store the credential's token pair from the spool, if there is one; return whether it was.

    :param leased: whether a lease is alive: its holder may be storing the pair at this moment.
    :raises SpoolError: there is one, and it cannot be read.
    """
    spooled = None
    with suppress(DecryptionError):  # reported when the refresh token itself is needed
        spooled = spool.load(spool_key_of(credential))
    if spooled is None or (leased and spooled.is_in_flight):
        return False
    _store(credential, spooled)
    return True


def recover_all(model: type[CredentialRow], alias: str) -> Iterator[AttemptResult]:
    """Store the replies in the spool, and remove those that no row needs any more.

    One that fails is logged and kept: it must not keep the others waiting.
    """
    for spooled in spool.pending(database_name(alias)):
        try:
            result = _settle(spooled, model, alias)
        except Exception:
            # Such as a missing encryption key; the reply may be the current one.
            logger.exception("spool_unreadable credential=%s", spooled.key.credential_id)
            close_idle_connection(alias)
            continue
        if result is not None:
            yield result


def _settle(
    spooled: spool.Spooled, model: type[CredentialRow], alias: str
) -> AttemptResult | None:
    """Store the reply if it is its row's next one, or remove it if no row needs it any more."""
    rows = model._base_manager.using(alias).select_related("application")
    with own_transaction(alias):
        found = rows.annotate(is_leased=is_leased()).filter(pk=spooled.key.credential_id)
        credential = found.first()
    if isinstance(spooled, spool.SpooledError):
        return _settle_error(spooled, credential)
    is_current = credential is not None and spool_key_of(credential) == spooled.key
    if credential is None or credential.generation < spooled.key.generation:
        _drop_in_time(spooled)
    elif not is_current:
        _drop(credential, spooled)
    elif not (spooled.is_in_flight and credential.is_leased):  # else its holder stores it
        return _store(credential, spooled)
    return None


def _settle_error(
    spooled: spool.SpooledError, credential: CredentialRow | None
) -> AttemptResult | None:
    """Store the outcome of an attempt whose lease the row still has; otherwise remove it."""
    result = None
    if credential is None or credential.generation < spooled.key.generation:
        _drop_in_time(spooled)
        return None
    if credential.generation == spooled.key.generation:
        if credential.lease_id == spooled.lease_id:
            result = _store(credential, spooled)
        else:
            with own_transaction(alias_of(credential)):
                correct_abandoned(row_of(credential), spooled.error)
    spooled.discard()
    return result


def _store(credential: CredentialRow, spooled: spool.Spooled) -> AttemptResult:
    # Without retries: the reply is safe, and a caller may be waiting.
    result = record_outcome(attempt_from(credential, spooled), retry_delays=iter(()))
    report([result])
    return result


def _drop_in_time(spooled: spool.Spooled) -> None:
    """Discard a reply without a row, or of a newer generation than the row's.

    Not at once: another database may have the same name, or this one may be an older copy.
    """
    if spooled.age_seconds > ORPHAN_SECONDS:
        logger.warning("spooled_pair_without_a_row credential=%s", spooled.key.credential_id)
        spooled.discard()


def _drop(credential: CredentialRow, spooled: spool.SpooledPair) -> None:
    """Discard a token pair that came too late, once its holder has had the time to do so."""
    if spooled.age_seconds < lease_seconds():
        return
    if not is_stored(credential, spooled):
        history.record(
            credential,
            EventKind.LATE_REPLY_DROPPED,
            outcome=Outcome.OK,
            fingerprint=spooled.key.fingerprint,
        )
    spooled.discard()
