"""What callers catch, split by what they must do: configure, reconnect, or try again later."""

from django.core.exceptions import ImproperlyConfigured


class InfusionsoftError(Exception):
    """The base of every exception that this app raises."""


class ConfigurationError(InfusionsoftError, ImproperlyConfigured):
    """Somebody who runs the site must fix a setting; trying again changes nothing."""


class ClientRejected(ConfigurationError):
    """Keap refused the client id or the client secret. No credential is harmed by it."""


class DecryptionError(ConfigurationError):
    """No key in ``INFUSIONSOFT_ENCRYPTION_KEYS`` opens a stored value; the value is kept."""


class ReauthorizationRequired(InfusionsoftError):
    """A person must connect the account again; ``reason`` is one of ``Credential.Reason``."""

    def __init__(self, message: str = "", *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class GrantRejected(ReauthorizationRequired):
    """The token endpoint refused the code or the refresh token itself."""


class TemporarilyUnavailable(InfusionsoftError):
    """Nothing is lost: try again later, after ``retry_after`` seconds where Keap named them."""

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(TemporarilyUnavailable):
    """Keap wants fewer requests of this application (HTTP 429), whatever the credential."""


class OutcomeUnknown(TemporarilyUnavailable):
    """The request was sent and no whole answer came: Keap may or may not have acted on it."""


class RefreshInProgress(TemporarilyUnavailable):
    """Another process is refreshing this credential and has not finished in time."""


class SpoolError(ConfigurationError):
    """The spool holds an answer of Keap's that this process cannot read; it is kept."""


class DatabaseBusy(TemporarilyUnavailable):
    """The refresh could not be written down beforehand, so Keap was not asked."""
