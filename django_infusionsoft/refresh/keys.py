"""Keys: Keap's personal access tokens and service account keys, which are never refreshed."""

from datetime import UTC, datetime
from typing import Any, Final

from django.contrib.auth.base_user import AbstractBaseUser
from django.db.models import Q

from django_infusionsoft import signals
from django_infusionsoft.choices import EventKind, Outcome, Reason, Status
from django_infusionsoft.exceptions import (
    ConfigurationError,
    InfusionsoftError,
    ReplacedRecently,
)
from django_infusionsoft.keap import userinfo
from django_infusionsoft.monitoring import alerts, history
from django_infusionsoft.refresh import receivers
from django_infusionsoft.refresh.storing import reauthorization_error
from django_infusionsoft.storage.applications import from_now
from django_infusionsoft.storage.credentials import (
    CredentialRow,
    alias_of,
    reload,
    row_of,
)
from django_infusionsoft.storage.database import DatabaseNow, own_transaction

# Between two questions about a key: the API may reject every request for another reason.
PAUSE_SECONDS: Final = 60.0
ACCEPTED: Final = 200
UNAUTHORIZED: Final = 401
# Keap publishes no end of a key.
NEVER: Final = datetime(9999, 1, 1, tzinfo=UTC)


def key_instead_of(credential: CredentialRow, rejected: str) -> str:
    """Return the key that has replaced a rejected one.

    A 401 may have another cause, so Keap is asked once more, by a request that needs no
    permission. If it rejects the key again, the account needs attention.

    :raises ReauthorizationRequired: Keap rejects the key.
    :raises ReplacedRecently: Keap accepts it, or was asked less than a minute ago: the 401 has
        another cause.
    """
    reload(credential)
    if _is_current(credential, rejected):
        if not (_may_ask(credential) and _is_rejected(rejected)):
            raise ReplacedRecently(
                f"Keap's API rejected a request with the key of {credential}, and accepts the "
                f"key: the cause must be another one.",
                retry_after=PAUSE_SECONDS,
            )
        _mark_rejected(credential)
    if credential.status != Status.CONNECTED:
        raise reauthorization_error(credential)
    return credential.access_token


def ask_again(credential: CredentialRow, *, user: AbstractBaseUser | None) -> None:
    """Use a rejected key again if Keap accepts it now: the rejection may have been an error.

    :raises ReauthorizationRequired: Keap rejects it, or cannot be reached.
    """
    reload(credential)
    if not credential.is_key or credential.reason != Reason.KEY_REJECTED:
        return
    if userinfo.status_for(credential.access_token, is_key=True) != ACCEPTED:
        raise reauthorization_error(credential)
    columns = {"status": Status.CONNECTED, "reason": "", "last_error": "", "expires_at": NEVER}
    if _update(credential, Status.REAUTHORIZATION_REQUIRED, columns):
        history.record(credential, EventKind.RECONNECTED, user=user)


def not_refreshed(credential: CredentialRow) -> InfusionsoftError:
    """Return the exception for a refresh of a key."""
    if credential.status != Status.CONNECTED:
        return reauthorization_error(credential)
    return ConfigurationError(
        f"{credential} has a key, which is never refreshed: replace it with add_key()."
    )


def _is_current(credential: CredentialRow, key: str) -> bool:
    return credential.status == Status.CONNECTED and credential.access_token == key


def _may_ask(credential: CredentialRow) -> bool:
    """Let one process ask about a key, once a minute."""
    is_recent = Q(
        presented_again_at__gt=from_now(-PAUSE_SECONDS), presented_again_at__lte=DatabaseNow()
    )
    with own_transaction(alias_of(credential)):
        row = row_of(credential).filter(~is_recent, generation=credential.generation)
        return bool(row.update(presented_again_at=DatabaseNow()))


def _is_rejected(key: str) -> bool:
    return userinfo.status_for(key, is_key=True) == UNAUTHORIZED


def _mark_rejected(credential: CredentialRow) -> None:
    """Record and report that Keap rejects a key, unless it has been replaced meanwhile."""
    columns = {
        "status": Status.REAUTHORIZATION_REQUIRED,
        "reason": Reason.KEY_REJECTED,
        "last_error": "Keap rejects the key.",
        "expires_at": DatabaseNow(),
        "is_alerted": False,
    }
    if not _update(credential, Status.CONNECTED, columns):
        return
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
    alerts.send_soon(alias_of(credential))


def _update(credential: CredentialRow, status: Status, columns: dict[str, Any]) -> bool:
    """Write the columns if the key and its status are still the same, and reload the row."""
    known = {"generation": credential.generation, "status": status}
    with own_transaction(alias_of(credential)):
        is_ours = bool(row_of(credential).filter(**known).update(**columns))
    reload(credential)
    return is_ours
