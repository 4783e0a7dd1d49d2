"""Store the replies that the spool holds.

A token pair in the spool is the answer to one refresh token. It is stored if the row still has
that refresh token in the same generation, and never replaces a newer one. Any other outcome is
stored if the row still has the lease of its attempt. If the lease was taken over, the attempt was
counted as one without a reply, and this is corrected.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress

from django_infusionsoft.choices import EventKind, Outcome
from django_infusionsoft.exceptions import DecryptionError
from django_infusionsoft.keap.transport import lease_seconds
from django_infusionsoft.monitoring import history
from django_infusionsoft.refresh import spool
from django_infusionsoft.refresh.leases import is_suspect
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
    TableSchema,
    close_idle_connection,
    database_name,
    own_transaction,
    table_schema,
)

logger = logging.getLogger("django_infusionsoft")


def reload_and_release(credential: CredentialRow) -> bool:
    """Reload the credential; first store the outcome in the spool that its lease waits for.

    :returns: whether a lease is valid.
    """
    leased = reload(credential)
    if outcome := spooled_error_of(credential):
        _settle(outcome, type(credential), alias_of(credential))
        leased = reload(credential)
    return leased


def recover(credential: CredentialRow) -> bool:
    """Store the credential's token pair from the spool, if there is one; return whether it was.

    :raises SpoolError: there is one, and it cannot be read.
    """
    spooled = None
    with suppress(DecryptionError):  # reported when the refresh token itself is needed
        spooled = spool.load(spool_key_of(credential))
    if spooled is None or _settle(spooled, type(credential), alias_of(credential)) is None:
        return False
    reload(credential)
    return True


def recover_all(model: type[CredentialRow], alias: str) -> Iterator[AttemptResult]:
    """Store the replies in the spool, and remove those that no row needs any more.

    One that fails is logged and kept: it must not keep the others waiting.
    """
    with own_transaction(alias):
        schema = table_schema(alias, model)
    for spooled in spool.pending(database_name(alias), schema):
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
    key, rows = spooled.key, model._base_manager.using(alias).select_related("application")
    with own_transaction(alias):
        found = rows.annotate(
            is_leased=is_leased(),
            schema=TableSchema(model),
            is_suspect=is_suspect(alias),  # type: ignore[no-redef]  # declared with its default
        )
        credential = found.filter(pk=key.credential_id, identity=key.identity).first()
    if credential is None or credential.generation < key.generation:
        # Another database may have the same name, or this one may be an older copy.
        spool.keep_for_a_week(spooled)
        return None
    credential.table_schema = credential.schema
    is_current = credential.generation == key.generation and (
        not key.fingerprint or spool_key_of(credential) == key
    )
    if not is_current:
        _drop(credential, spooled)
        return None
    is_its_own = credential.lease_id == spooled.lease_id
    if isinstance(spooled, spool.SpooledError):
        return _settle_error(spooled, credential, is_its_own=is_its_own)
    # A valid lease may be about to present the refresh token, or to store this pair.
    if credential.is_leased and (spooled.is_in_flight or not is_its_own):
        return None
    return _store(credential, spooled)


def _settle_error(
    spooled: spool.SpooledError, credential: CredentialRow, *, is_its_own: bool
) -> AttemptResult | None:
    """Store the outcome of an attempt whose lease the row still has, or correct its count."""
    result = None
    if is_its_own:
        result = _store(credential, spooled)
    else:
        with own_transaction(alias_of(credential)):
            correct_abandoned(row_of(credential), spooled)
    spooled.discard()
    return result


def _store(credential: CredentialRow, spooled: spool.Spooled) -> AttemptResult:
    # Without retries: the reply is safe, and a caller may be waiting.
    result = record_outcome(attempt_from(credential, spooled), retry_delays=iter(()))
    report([result])
    return result


def _drop(credential: CredentialRow, spooled: spool.Spooled) -> None:
    """Discard a reply that came too late, once its holder has had the time to do so.

    Only if the history shows that the row has had the refresh token that it is the reply to.
    """
    if isinstance(spooled, spool.SpooledPair):
        if spooled.age_seconds < lease_seconds():
            return
        if is_stored(credential, spooled):
            spooled.discard()
            return
    fingerprint = spooled.key.fingerprint
    if isinstance(spooled, spool.SpooledError) and not fingerprint:  # nothing was sent
        spooled.discard()
        return
    if not history.knows(credential, fingerprint):
        spool.keep_for_a_week(spooled)
        return
    if isinstance(spooled, spool.SpooledPair):
        late = EventKind.LATE_REPLY_DROPPED
        history.record(credential, late, outcome=Outcome.OK, fingerprint=fingerprint)
    spooled.discard()
