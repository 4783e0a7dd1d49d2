"""The only door to the authorization server (RFC 6749 as Keap does it). Knows no model.

No exception of an HTTP library leaves this module: what goes wrong comes out as one of ours, told
apart by what became of the grant. Nothing here repeats a request or follows a redirect.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final, TypeGuard
from urllib.parse import urlsplit

import requests
from django.views.decorators.debug import sensitive_variables
from oauthlib.oauth2 import WebApplicationClient
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth
from requests_oauthlib import OAuth2Session
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError

from django_infusionsoft import transport
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import (
    ClientRejected,
    ConfigurationError,
    GrantRejected,
    InfusionsoftError,
    OutcomeUnknown,
    RateLimited,
    TemporarilyUnavailable,
)

# A token reply has some 300 bytes; whatever is this large is not one.
MAX_REPLY_BYTES: Final = 256 * 1024
# Keap names 86,400 s in every reply. Where a reply names none that can be believed, a short life
# costs one refresh too many, and a long one would hand out dead access tokens.
DEFAULT_LIFETIME_SECONDS: Final = 3600
MAX_LIFETIME_SECONDS: Final = 366 * 86_400
# What a probe presents.
NO_TOKEN: Final = "django-infusionsoft-asks-whether-anybody-answers"  # noqa: S105

FORM_HEADERS: Final = {
    "Accept": "application/json",
    "Content-Type": "application/x-www-form-urlencoded",
}


@dataclass(frozen=True, slots=True)
class Client:
    """An OAuth client as registered at Keap's developer portal."""

    client_id: str
    client_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A successful reply of the token endpoint (RFC 6749 section 5.1).

    ``refresh_token`` is ``None`` where the reply names none: the old one stays valid (section 6).
    ``account`` is Keap's app id, such as ``ab123``, or ``None`` where ``scope`` does not tell it.
    ``expires_in`` counts seconds from ``received_at``, a reading of ``time.monotonic()``.
    """

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_in: int
    account: str | None
    received_at: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        """Seconds that the access token still lives, however long the pair has been kept."""
        return self.expires_in - (time.monotonic() - self.received_at)


def authorization_url(client: Client, *, redirect_uri: str, state: str) -> str:
    """Return the URL to send a person to (RFC 6749 section 4.1.1)."""
    endpoint = urlsplit(conf.AUTHORIZE_URL)
    with OAuth2Session(client.client_id, redirect_uri=redirect_uri, scope=[conf.SCOPE]) as session:
        # oauthlib takes only https, and conf has allowed http for this machine.
        url, _ = session.authorization_url(endpoint._replace(scheme="https").geturl(), state=state)
    return urlsplit(url)._replace(scheme=endpoint.scheme).geturl()


@sensitive_variables()
def exchange_code(client: Client, *, code: str, redirect_uri: str) -> TokenPair:
    """Exchange an authorization code for a pair; id and secret travel in the body.

    :param redirect_uri: exactly the one that the authorization URL had.
    :raises GrantRejected: the code is unknown, used or too old, or the redirect URI differs.
    :raises ClientRejected: the client id or secret is wrong.
    :raises ConfigurationError: the server grants no refresh tokens.
    :raises TemporarilyUnavailable: no pair came; its subclass ``OutcomeUnknown`` where the
        request was sent. Either way the person has to start again: a code works once.
    """
    body = WebApplicationClient(client.client_id).prepare_request_body(
        code=code, redirect_uri=redirect_uri, client_secret=client.client_secret
    )
    pair = _post(body, _NoAuth(), refused=_is_refused_code)
    if pair.refresh_token is None:
        raise ConfigurationError(
            f"{urlsplit(conf.TOKEN_URL).hostname} gave no refresh token, and without one nothing "
            f"can be kept connected: let the client and INFUSIONSOFT_SCOPE ask for it there."
        )
    return pair


@sensitive_variables()
def refresh(client: Client, refresh_token: str, *, until: float = math.inf) -> TokenPair:
    """Present ``refresh_token`` once (RFC 6749 section 6); Basic authentication, no other fields.

    :param until: the reading of ``time.monotonic()`` after which nothing is sent any more.
    :raises GrantRejected: Keap says that the refresh token is unknown, used, revoked or expired.
        ``reason`` is ``"expired"`` where it says so, else empty.
    :raises ClientRejected: the client id or secret is wrong; the refresh token was not looked at.
    :raises OutcomeUnknown: the request was sent and no whole answer came back.
    :raises RateLimited: Keap wants fewer requests.
    :raises TemporarilyUnavailable: Keap could not be reached or is not itself.
    """
    body = WebApplicationClient(client.client_id).prepare_refresh_body(refresh_token=refresh_token)
    with transport.sending_until(until):
        return _post(body, _basic(client), refused=_is_refused_refresh_token)


@sensitive_variables()
def probe(client: Client) -> None:
    """Find out, at the cost of no grant, whether Keap answers and takes the client.

    Presents a refresh token that has never been one. Being told so is the answer hoped for: the
    client has been looked at by then (keap-facts 2.3).

    :raises ClientRejected: the client id or secret is wrong.
    :raises TemporarilyUnavailable: no such answer came.
    """
    body = WebApplicationClient(client.client_id).prepare_refresh_body(refresh_token=NO_TOKEN)
    with suppress(GrantRejected):
        _post(body, _basic(client), refused=lambda error, description: True)


def account_in_scope(scope: object) -> str | None:
    """Return ``ab123`` for ``full|ab123.infusionsoft.com`` (keap-facts 2.2), else ``None``."""
    if not isinstance(scope, str) or "|" not in scope:
        return None
    return normalize_account(scope.split("|", 1)[1])


def normalize_account(account: object) -> str | None:
    """Return the bare app id of a tenant's host name or id, or ``None`` where there is none."""
    if not isinstance(account, str):
        return None
    name = account.strip().lower().removesuffix(".infusionsoft.com")
    return name if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,99}", name) else None


def _basic(client: Client) -> AuthBase:
    return HTTPBasicAuth(client.client_id.encode(), client.client_secret.encode())


class _NoAuth(AuthBase):
    """Keeps requests from adding what it finds in a netrc file."""

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        return r


class _Sessions(threading.local):
    """A session for each thread. Making one takes as long as half a request."""

    _session: requests.Session | None = None
    _adapter: HTTPAdapter | None = None

    def current(self) -> requests.Session:
        """Return this thread's, with the connections that are in use now."""
        adapter = transport.adapter()
        if self._session is None or self._adapter is not adapter:
            self._session, self._adapter = requests.Session(), adapter
            self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            self._session.mount("https://", adapter)
            self._session.mount("http://", adapter)
        return self._session


_sessions = _Sessions()


@sensitive_variables()
def _post(body: str, auth: AuthBase, *, refused: Callable[[str, str], bool]) -> TokenPair:
    # Not an OAuth2Session: that raises where a reply's scope differs, writes headers and body to
    # the log at DEBUG, and allows a loopback http:// only to a whole process at once.
    try:
        response = _sessions.current().post(
            conf.TOKEN_URL,
            data=body,
            headers=FORM_HEADERS,
            auth=auth,
            timeout=(conf.CONNECT_TIMEOUT_SECONDS, conf.READ_TIMEOUT_SECONDS),
            allow_redirects=False,
            stream=True,
        )
        with response:
            content = transport.read(response.raw, MAX_REPLY_BYTES)
    except (requests.RequestException, HTTPError, TimeoutError) as error:
        raise _transport_error(error) from None  # the cause may carry the request's body
    return _judge(response, content, refused)


def _transport_error(error: Exception) -> InfusionsoftError:
    host = urlsplit(conf.TOKEN_URL).netloc
    if (failure := _failure_to_connect(error)) is not None:
        what = type(failure.__cause__ or failure).__name__
        return TemporarilyUnavailable(f"No connection to {host} ({what}): nothing was sent.")
    return OutcomeUnknown(
        f"{host} took the request and the answer was lost ({type(error).__name__})."
    )


def _failure_to_connect(error: Exception) -> BaseException | None:
    """Return it only where it is certain; a reset may come after Keap has rotated."""
    if isinstance(error, requests.ConnectTimeout | requests.exceptions.ProxyError):
        return error
    cause = error.args[0] if error.args else None
    reason = cause.reason if isinstance(cause, MaxRetryError) else cause
    return reason if isinstance(reason, NewConnectionError | ConnectTimeoutError) else None


def _judge(
    response: requests.Response, content: bytes, refused: Callable[[str, str], bool]
) -> TokenPair:
    """Tell the outcomes apart by keap-facts section 2.3."""
    if len(content) > MAX_REPLY_BYTES:
        raise _unavailable(response, "with more than a token reply can have")
    reply = _parse(content)
    if response.ok and (pair := _token_pair(reply)):
        # Whatever else is odd about such a reply: refusing it would lose the pair.
        return pair
    error, description = _error(reply)
    if response.status_code == 401 or error in ("invalid_client", "unauthorized_client"):
        raise ClientRejected(
            f"Keap refused the client itself (HTTP {response.status_code}): check the client id "
            f"and the client secret."
        )
    if re.search("redirect.?uri", description, re.IGNORECASE):
        raise ConfigurationError(
            "Keap refused the redirect URI: it must be the same, to the letter, in both requests. "
            "Set INFUSIONSOFT_REDIRECT_URI to the address of the callback view."
        )
    if response.status_code == 400 and refused(error, description):
        reason = "expired" if re.search(r"\bexpired\b", description, re.IGNORECASE) else ""
        raise GrantRejected("Keap refused the grant: it has ended or was used.", reason=reason)
    if response.ok and not error and content.lstrip().startswith(b"{"):
        # Perhaps cut off: what it was meant to say may have cost the refresh token.
        raise OutcomeUnknown("Keap answered with success and without usable tokens.")
    raise _unavailable(response, f"error {error!r}" if error else "no token reply")


def _is_refused_refresh_token(error: str, description: str) -> bool:
    # Keap says invalid_request today and said invalid_grant in its earlier era.
    return error == "invalid_grant" or (
        error == "invalid_request"
        and bool(re.search("refresh.?token", description, re.IGNORECASE))
    )


def _is_refused_code(error: str, description: str) -> bool:
    return error in ("invalid_grant", "invalid_request")


def _parse(content: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return {}
    return reply if isinstance(reply, dict) else {}


def _token_pair(reply: dict[str, Any]) -> TokenPair | None:
    access_token, refresh_token = reply.get("access_token"), reply.get("refresh_token")
    if not _is_text(access_token) or not (refresh_token is None or _is_text(refresh_token)):
        return None
    return TokenPair(
        access_token=access_token,
        refresh_token=refresh_token,
        expires_in=_lifetime(reply.get("expires_in")),
        account=account_in_scope(reply.get("scope")),
    )


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _lifetime(expires_in: object) -> int:
    """Return seconds. Apigee can send them as a string."""
    try:
        seconds = int(float(str(expires_in)))
    except (ValueError, OverflowError):
        return DEFAULT_LIFETIME_SECONDS
    return min(seconds, MAX_LIFETIME_SECONDS) if seconds > 0 else DEFAULT_LIFETIME_SECONDS


def _error(reply: dict[str, Any]) -> tuple[str, str]:
    """Return RFC 6749's error and description, or those of a gateway fault (keap-facts 2.3)."""
    fault = reply.get("fault")
    if isinstance(fault, dict):
        detail = fault.get("detail")
        code = str(detail.get("errorcode", "")) if isinstance(detail, dict) else ""
        error = "invalid_client" if "invalid_client" in code else code
        return error[:100], str(fault.get("faultstring", ""))
    return str(reply.get("error", ""))[:100], str(reply.get("error_description", ""))


def _unavailable(response: requests.Response, what: str) -> TemporarilyUnavailable:
    kind = RateLimited if response.status_code == 429 else TemporarilyUnavailable
    return kind(
        f"Keap's token endpoint answered HTTP {response.status_code}, {what}.",
        retry_after=_retry_after(response.headers.get("Retry-After")),
    )


def _retry_after(value: str | None) -> float | None:
    """Return seconds from now: RFC 9110 section 10.2.3 allows seconds or a date."""
    if not value:
        return None
    if value.strip().isdecimal():
        return min(float(value), 86_400.0)
    try:
        seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), 86_400.0)
