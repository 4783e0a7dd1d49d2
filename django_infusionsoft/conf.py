"""All settings of the app: name, type, default, description. Read on use, never at import."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast, overload
from urllib.parse import urlsplit

from django.conf import settings

from django_infusionsoft.exceptions import ConfigurationError

T = TypeVar("T")
PREFIX: Final = "INFUSIONSOFT_"
# Whether files have a user as their owner, and a mode: not on Windows.
HAS_OWNERS: Final = hasattr(os, "geteuid")


def is_loopback(host: str | None) -> bool:
    """Whether ``host`` (a name or an address) is this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host or "").is_loopback
    except ValueError:
        return False


def named_hosts() -> list[str]:
    """Return the hosts that ``ALLOWED_HOSTS`` names, without its wildcards."""
    return [host for host in settings.ALLOWED_HOSTS if not host.startswith(("*", "."))]


def require_endpoint(url: str, what: str, hint: str) -> str:
    """Return ``url`` if tokens or codes may be sent to it.

    :raises ConfigurationError: it is plain HTTP, and not on this machine.
    """
    if problem := _endpoint(url):
        raise ConfigurationError(f"{what}, {url}, {problem}. {hint}")
    return url


def _positive(value: Any) -> str:
    return "" if value > 0 else "must be greater than 0"


def _not_negative(value: Any) -> str:
    return "" if value >= 0 else "must not be negative"


def _fraction(value: Any) -> str:
    return "" if 0 < value < 1 else "must be between 0 and 1"


def _key_header(value: Any) -> str:
    names = ("Authorization", "X-Keap-API-Key")
    return "" if value in names else f"must be one of {', '.join(names)}"


def _endpoint(value: Any) -> str:
    """Tokens are sent to these URLs: they need TLS or a loopback host (RFC 6749 section 3.2)."""
    try:
        parts = urlsplit(value)
        is_plain = parts.username is None
    except ValueError:
        return "is not a URL"
    if not is_plain:
        return "must not hold a user name or a password"
    if parts.scheme == "https" and parts.hostname:
        return ""
    if parts.scheme == "http" and is_loopback(parts.hostname):
        return ""
    return "must be an absolute https:// URL (http:// is allowed for loopback hosts only)"


def _endpoint_or_empty(value: Any) -> str:
    return _endpoint(value) if value else ""


def _absolute_or_empty(value: Any) -> str:
    path = os.fspath(value)
    if path and not HAS_OWNERS:
        return "must be empty: this system cannot tell who may read a directory"
    return "" if not path or Path(path).is_absolute() else "must be an absolute path, or empty"


class Setting(Generic[T]):
    """One setting: ``conf.NAME`` reads the current ``settings.INFUSIONSOFT_NAME``.

    :raises ConfigurationError: on access, if the value has the wrong type or is out of range.
    """

    def __init__(
        self,
        default: T,
        description: str,
        problem_with: Callable[[Any], str] = lambda value: "",
        *,
        or_type: type | None = None,
    ) -> None:
        self.default: Final = default
        self.description: Final = description
        self.type: Final[type] = type(default)
        self._or_type = or_type
        self._problem_with = problem_with
        self._checked: Any = self  # no valid value
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = PREFIX + name

    @overload
    def __get__(self, instance: None, owner: type) -> Setting[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Setting[T] | T:
        if instance is None:
            return self
        value = getattr(settings, self.name, self.default)
        if value is self._checked:  # already valid
            return cast("T", value)
        if not self._has_type(value):
            raise ConfigurationError(
                f"{self.name} must be of type {self.type.__name__}, "
                f"not {type(value).__name__}: {self.description}"
            )
        if problem := self._problem_with(value):
            raise ConfigurationError(f"{self.name} {problem}: {self.description}")
        self._checked = value
        return value

    def _has_type(self, value: object) -> bool:
        if self._or_type and isinstance(value, self._or_type):
            return True
        if self.type is list:
            return isinstance(value, list | tuple)
        if self.type is float:
            return isinstance(value, int | float) and not isinstance(value, bool)
        return isinstance(value, self.type)


class Conf:
    """The settings by their short names."""

    CLIENT_ID = Setting("", "the client id from Keap's developer portal")
    CLIENT_SECRET = Setting("", "the client secret from Keap's developer portal")
    ENCRYPTION_KEYS: Setting[list[str]] = Setting(
        [], "Fernet keys for the stored secrets: the first encrypts, all decrypt"
    )
    REDIRECT_URI = Setting(
        "",
        "the absolute URL of the callback view; empty: it is built from the request",
        _endpoint_or_empty,
    )
    AUTHORIZE_URL = Setting(
        "https://accounts.infusionsoft.com/app/oauth/authorize",
        "the authorization endpoint",
        _endpoint,
    )
    TOKEN_URL = Setting("https://api.infusionsoft.com/token", "the token endpoint", _endpoint)
    API_URL = Setting(
        "https://api.infusionsoft.com/crm/rest/",
        "the base of relative URLs in session()",
        _endpoint,
    )
    KEY_HEADER = Setting(
        "Authorization",
        "the header that sends keys: ``Authorization``, or ``X-Keap-API-Key``",
        _key_header,
    )
    SCOPE = Setting("full", "the scope to ask for; Keap has only this one")
    CONNECT_TIMEOUT_SECONDS = Setting(5.0, "how long to wait for a connection", _positive)
    READ_TIMEOUT_SECONDS = Setting(30.0, "how long to wait for a reply", _positive)
    WAIT_SECONDS = Setting(
        10.0,
        "how long a caller waits for a refresh: for Keap, another process and the database "
        "together",
        _positive,
    )
    MAX_WAIT_SECONDS = Setting(
        10.0,
        "how long a call of ``session()`` takes at most: a refresh, repeats, pauses and the "
        "answer together",
        _positive,
    )
    RESPONSE_TIMEOUT_SECONDS = Setting(
        120.0, "how long one answer of the API takes at most, from the request on", _positive
    )
    MAX_RESPONSE_BYTES = Setting(
        64 * 1024 * 1024, "how large an answer of the API is at most, decompressed", _positive
    )
    EXPIRY_LEEWAY_SECONDS = Setting(
        300.0,
        "how long before its expiry an access token is refreshed on use; at most a tenth of "
        "its lifetime",
        _positive,
    )
    REFRESH_FRACTION = Setting(
        0.75,
        "the part of an access token's lifetime after which the worker refreshes it",
        _fraction,
    )
    REFRESH_TOKEN_DAYS = Setting(
        45.0,
        "how long an unused refresh token stays valid; it is refreshed after "
        "``INFUSIONSOFT_REFRESH_FRACTION`` of that at the latest",
        _positive,
    )
    REFRESH_RATE = Setting(
        20.0,
        "how many refreshes a second all workers together send for one application; 0: no "
        "limit. Keap allows 25 requests a second",
        _not_negative,
    )
    EVENT_RETENTION_DAYS = Setting(
        90.0,
        "how long events other than successful refreshes and imports are kept; 0: for ever",
        _not_negative,
    )
    EVENT_RETENTION_REFRESHES = Setting(
        20,
        "how many of a credential's successful refreshes its history keeps, whatever their age; "
        "0: as long as other events",
        _not_negative,
    )
    OVERDUE_SECONDS = Setting(
        900.0,
        "how long a refresh may be overdue, or no run seen, before the worker counts as behind; "
        "how long refreshes may fail before an account counts as failing",
        _positive,
    )
    ALERT_RECIPIENTS: Setting[list[str]] = Setting(
        [], "mail addresses to notify when something requires action, and when it is resolved"
    )
    SITE_URL = Setting(
        "",
        "the site's own URL, for links in mails; empty: scheme and host of "
        "``INFUSIONSOFT_REDIRECT_URI``",
        _endpoint_or_empty,
    )
    REFRESH_CONCURRENCY = Setting(
        12, "how many refreshes one worker runs at the same time", _positive
    )
    SPOOL_DIR: Setting[str | os.PathLike[str]] = Setting(
        # The spool checks owner and mode.
        "/var/tmp/django-infusionsoft-{uid}" if HAS_OWNERS else "",  # noqa: S108
        "a directory for encrypted replies that are not in the database yet; ``{uid}`` is the "
        "id of the user that runs the process; empty: none, as on Windows",
        _absolute_or_empty,
        or_type=os.PathLike,
    )


conf: Final = Conf()

SETTINGS: Final[Mapping[str, Setting[Any]]] = {
    setting.name: setting for setting in vars(Conf).values() if isinstance(setting, Setting)
}
