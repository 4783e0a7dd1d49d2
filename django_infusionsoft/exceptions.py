"""The app's exceptions, by what the caller must do: configure, reconnect, or retry later."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured


class InfusionsoftError(Exception):
    """The base class of all exceptions that this app raises."""


class ConfigurationError(InfusionsoftError, ImproperlyConfigured):
    """A site administrator must fix a setting first; a retry fails again."""


class ClientRejected(ConfigurationError):
    """Keap rejected the client id or the client secret. All credentials stay valid."""


class DecryptionError(ConfigurationError):
    """No key in ``INFUSIONSOFT_ENCRYPTION_KEYS`` can decrypt a stored value; it is kept."""


class ImportRejected(InfusionsoftError):
    """A token pair is not imported. The message says why and what to do; it has no token."""


class NotAllowed(InfusionsoftError):
    """The user may not connect this account.

    ``existing`` is the ``Credential`` that the account has, or ``None``.
    """

    def __init__(self, existing: Any) -> None:
        super().__init__("The user may not connect this account.")
        self.existing = existing


class ReauthorizationRequired(InfusionsoftError):
    """The account must be reconnected; ``reason`` is one of ``Credential.Reason``."""

    def __init__(self, message: str = "", *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class GrantRejected(ReauthorizationRequired):
    """The token endpoint rejected the authorization code or the refresh token."""


class TemporarilyUnavailable(InfusionsoftError):
    """Nothing is lost: retry later, after ``retry_after`` seconds if Keap named a time."""

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(TemporarilyUnavailable):
    """Keap asks for fewer requests of this application (HTTP 429), for all its credentials."""


class OutcomeUnknown(TemporarilyUnavailable):
    """The request was sent, but no complete reply was received: Keap may have acted on it."""


class GatewayFailed(OutcomeUnknown):
    """A gateway replied in Keap's place: a later attempt shows what Keap did."""


class RefreshInProgress(TemporarilyUnavailable):
    """Another process is refreshing this credential, and did not finish in time."""


class SpoolError(ConfigurationError):
    """The spool holds a reply of Keap's that this process cannot read; it is kept."""


class RejectionDoubted(TemporarilyUnavailable):
    """Keap rejected the grant, as many others in a row: the app retries, and asks for help."""


class ReplacedRecently(TemporarilyUnavailable):
    """The API rejected an access token, and a new one was issued or requested shortly before."""


class DatabaseBusy(TemporarilyUnavailable):
    """The refresh or the connection could not be stored outside the caller's transaction.

    A refresh has sent nothing to Keap.
    """


class AnotherSession(DatabaseBusy):
    """The caller's transaction has another role or search path than other connections have."""


class LockedByCaller(DatabaseBusy):
    """The caller's transaction has locked the SQLite database, so nothing else can be written."""
