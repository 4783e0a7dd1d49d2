"""Keys: Keap's personal access tokens and service account keys, which are never refreshed."""

from typing import Final

from django_infusionsoft import signals
from django_infusionsoft.choices import EventKind, Outcome, Reason, Status
from django_infusionsoft.exceptions import (
    ConfigurationError,
    InfusionsoftError,
    ReauthorizationRequired,
    ReplacedRecently,
)
from django_infusionsoft.keap import userinfo
from django_infusionsoft.monitoring import alerts, history
from django_infusionsoft.refresh import receivers
from django_infusionsoft.refresh.storing import reauthorization_error
from django_infusionsoft.storage.credentials import (
    CredentialRow,
    alias_of,
    reload,
    row_of,
)
from django_infusionsoft.storage.database import DatabaseNow, own_transaction

# How soon a request that was rejected for another reason may be repeated.
PAUSE_SECONDS: Final = 60.0
UNAUTHORIZED: Final = 401


def key_instead_of(credential: CredentialRow, rejected: str) -> str:
    """Return the key that has replaced a rejected one.

    A 401 may have another cause, so Keap is asked once more, by a request that needs no
    permission. If it rejects the key again, the account needs attention.

    :raises ReauthorizationRequired: Keap rejects the key.
    :raises ReplacedRecently: Keap accepts it: the 401 has another cause.
    """
    reload(credential)
    if credential.status != Status.CONNECTED:
        raise reauthorization_error(credential)
    if credential.access_token != rejected:
        return credential.access_token
    if userinfo.status_for(rejected, is_key=True) != UNAUTHORIZED:
        raise ReplacedRecently(
            f"Keap's API rejected a request with the key of {credential}, and accepts the key: "
            f"the cause must be another one.",
            retry_after=PAUSE_SECONDS,
        )
    raise _rejected(credential)


def not_refreshed(credential: CredentialRow) -> InfusionsoftError:
    """Return the exception for a refresh of a key."""
    if credential.status != Status.CONNECTED:
        return reauthorization_error(credential)
    return ConfigurationError(
        f"{credential} has a key, which is never refreshed: replace it with add_key()."
    )


def _rejected(credential: CredentialRow) -> ReauthorizationRequired:
    """Record that Keap rejects a key, unless it has been replaced meanwhile."""
    columns = {
        "status": Status.REAUTHORIZATION_REQUIRED,
        "reason": Reason.KEY_REJECTED,
        "last_error": "Keap rejects the key.",
        "expires_at": DatabaseNow(),
        "is_alerted": False,
    }
    alias, known = alias_of(credential), {"generation": credential.generation}
    with own_transaction(alias):
        row = row_of(credential).filter(**known, status=Status.CONNECTED)
        is_ours = bool(row.update(**columns))
    reload(credential)
    if is_ours:
        history.record(
            credential,
            EventKind.REAUTHORIZATION_REQUIRED,
            outcome=Outcome.REJECTED,
            reason=Reason.KEY_REJECTED,
        )
        receivers.send(
            signals.reauthorization_required,
            sender=type(credential),
            credential=credential,
            reason=credential.reason,
        )
        alerts.send_soon(alias)
    return reauthorization_error(credential)
