"""The app's exceptions, by what the caller must do: configure, reconnect, or retry later."""

from collections.abc import Sequence
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


class RefreshesLimited(TemporarilyUnavailable):
    """The token endpoint asks for fewer requests of this application (HTTP 429)."""


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


class ApiError(InfusionsoftError):
    """Keap's API did not do what a call asked for. It holds no access token.

    ``response.request`` has neither an access token nor a stream.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status: int | None = None,
        code: str = "",
        details: Sequence[Any] = (),
        response: Any = None,
        quota: Any = None,
        retry_after: float | None = None,
    ) -> None:
        """
        :param message: Keap's own, or why there is no answer.
        :param status: the HTTP status; ``None`` without an answer.
        :param code: the ``code`` of a JSON answer, or the ``errorcode`` of a gateway's fault
            (keap-facts 6 and 7); empty if there is none, as in v1.
        :param details: the items that v2 adds: objects with ``domain`` and ``resource``.
        :param response: of the HTTP client, such as a ``requests.Response``; ``None`` without one.
        :param quota: what the answer says about the quotas; ``None`` without an answer.
        :param retry_after: seconds until a repeat makes sense, if Keap named a time.
        """
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.details = details
        self.response = response
        self.quota = quota
        self.retry_after = retry_after

    def __str__(self) -> str:
        if self.status is None:
            return self.message
        return f"Keap's API responded with HTTP {self.status}: {self.message}"


class NotFound(ApiError):
    """The object does not exist (HTTP 404)."""


class Forbidden(ApiError):
    """The user who authorized the account lacks a permission, or its edition a feature (403)."""


class Invalid(ApiError):
    """The request has a wrong value (HTTP 400, 409, 413, 414, 415 or 422): correct it first."""


class RateLimited(ApiError, TemporarilyUnavailable):
    """A quota is used up, or too many requests came at once (HTTP 429). Keap has done nothing."""


class ApiUnavailable(ApiError, TemporarilyUnavailable):
    """The API is down, or did not answer in time. Keap has changed nothing."""


class WriteUnconfirmed(ApiError):
    """The answer to a POST, PUT, PATCH or DELETE was lost: Keap may have acted on the request.

    Find out before you repeat it. ``status`` is 500 or more if a gateway or the API failed, and
    ``None`` if there was no answer.
    """


class PartialFailure(ApiError):
    """Keap did a part of what a call asked for, and answered with a success.

    ``failures`` are pairs of an item, such as a contact's id, and Keap's words for it;
    ``succeeded`` are the other items.
    """

    def __init__(
        self,
        message: str = "",
        *,
        failures: Sequence[tuple[Any, str]] = (),
        succeeded: Sequence[Any] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(message, **kwargs)
        self.failures = failures
        self.succeeded = succeeded
