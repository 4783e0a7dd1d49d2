"""The client of the authorization server (RFC 6749 as Keap implements it).

This module raises only the app's own exceptions, which say what became of the grant. It never
retries a request and never follows a redirect.
"""

import json
import re
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeGuard
from urllib.parse import urlsplit

import requests
from oauthlib.oauth2 import WebApplicationClient
from requests.auth import HTTPBasicAuth
from requests_oauthlib import OAuth2Session

from django_infusionsoft import elapsed, waiting
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import (
    ClientRejected,
    ConfigurationError,
    GatewayFailed,
    GrantRejected,
    InfusionsoftError,
    OutcomeUnknown,
    RefreshesLimited,
    TemporarilyUnavailable,
)
from django_infusionsoft.keap import transport
from django_infusionsoft.keap.headers import retry_after
from django_infusionsoft.keap.sent import Call, making
from django_infusionsoft.redaction import Secret, clears_locals

# A token reply has some 300 bytes.
MAX_REPLY_BYTES: Final = 256 * 1024
# Every reply of Keap's says 86,400 s. For a reply without a valid lifetime, a short one costs an
# unnecessary refresh, and a long one would return expired access tokens.
DEFAULT_LIFETIME_SECONDS: Final = 3600
MAX_LIFETIME_SECONDS: Final = 366 * 86_400
UNRECOGNIZED: Final = "which is not a token response"
CLIENT_ERRORS: Final = ("invalid_client", "unauthorized_client")
# The invalid refresh token that a probe presents.
NO_TOKEN: Final = "django-infusionsoft-probe"  # noqa: S105

FORM_HEADERS: Final = {
    **requests.utils.default_headers(),
    "Accept": "application/json",
    "Content-Type": "application/x-www-form-urlencoded",
}


@dataclass(frozen=True, slots=True)
class Client:
    """An OAuth client as registered at Keap's developer portal."""

    client_id: str
    client_secret: str = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "client_secret", Secret(self.client_secret))


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A successful reply of the token endpoint: access and refresh token (RFC 6749 section 5.1).

    ``refresh_token`` is ``None`` if the reply has none: the old one stays valid (section 6).
    ``account`` is Keap's app id, such as ``ab123``, or ``None`` if ``scope`` does not contain it.
    ``expires_in`` counts seconds from ``received_at``, a reading of ``elapsed.monotonic()``.
    """

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_in: int
    account: str | None
    received_at: float = field(default_factory=elapsed.monotonic)

    def __post_init__(self) -> None:
        for name in ("access_token", "refresh_token"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Secret(value))

    @property
    def seconds_left(self) -> float:
        """The remaining lifetime of the access token."""
        return self.expires_in - (elapsed.monotonic() - self.received_at)


def authorization_url(client: Client, *, redirect_uri: str, state: str) -> str:
    """Return the URL to which to redirect the user (RFC 6749 section 4.1.1)."""
    endpoint = urlsplit(conf.AUTHORIZE_URL)
    with OAuth2Session(client.client_id, redirect_uri=redirect_uri, scope=[conf.SCOPE]) as session:
        # oauthlib accepts only https, but the setting may be http for a loopback host.
        url, _ = session.authorization_url(endpoint._replace(scheme="https").geturl(), state=state)
    return urlsplit(url)._replace(scheme=endpoint.scheme).geturl()


@clears_locals
def exchange_code(client: Client, *, code: str, redirect_uri: str) -> TokenPair:
    """Exchange an authorization code for a token pair; the body holds the client id and secret.

    :param redirect_uri: must be identical to the one in the authorization URL.
    :raises GrantRejected: the code is unknown, used or expired.
    :raises ClientRejected: the client id or secret is wrong.
    :raises ConfigurationError: the redirect URI differs, or the server issues no refresh tokens.
    :raises TemporarilyUnavailable: there is no token pair; its subclass ``OutcomeUnknown`` if the
        request was sent. Either way the user has to start again: a code works only once.
    """

    def body() -> str:
        return WebApplicationClient(client.client_id).prepare_request_body(
            code=code, redirect_uri=redirect_uri, client_secret=client.client_secret
        )

    pair = _in_time(lambda call: _post(call, body, None, is_rejected=_is_rejected_code))
    if pair.refresh_token is None:
        raise ConfigurationError(
            f"{urlsplit(conf.TOKEN_URL).hostname} issued no refresh token, which is required to "
            f"stay connected: enable refresh tokens for the client, or set INFUSIONSOFT_SCOPE to "
            f"a scope that includes them."
        )
    return pair


@clears_locals
def refresh(client: Client, refresh_token: str, call: Call | None = None) -> TokenPair:
    """Present ``refresh_token`` once (RFC 6749 section 6); Basic authentication, no other fields.

    There is no limit for headers that arrive byte by byte: call it in a thread that can be left.

    :param call: records whether anything was sent.
    :raises GrantRejected: Keap says that the refresh token is unknown, used, revoked or expired.
        ``reason`` is ``"expired"`` if Keap says so, otherwise empty.
    :raises ClientRejected: the client id or secret is wrong; the refresh token was not checked.
    :raises OutcomeUnknown: the request was sent, but no complete reply was received.
    :raises GatewayFailed: a gateway replied in Keap's place.
    :raises RefreshesLimited: Keap asks for fewer requests.
    :raises TemporarilyUnavailable: Keap could not be reached or returned an error.
    """
    body = _refresh_body(client, refresh_token)
    return _post(call or Call(), body, client, is_rejected=_is_rejected_refresh_token)


@clears_locals
def probe(client: Client) -> None:
    """Check that Keap replies and accepts the client, without using a grant.

    Presents an invalid refresh token. Keap checks the client before it rejects the refresh token
    (keap-facts 2.3), so this rejection means success.

    :raises ClientRejected: the client id or secret is wrong.
    :raises TemporarilyUnavailable: Keap gave another reply or none.
    """
    body = _refresh_body(client, NO_TOKEN)
    with suppress(GrantRejected):
        _in_time(lambda call: _post(call, body, client, is_rejected=lambda *_: True))


def give_up(call: Call) -> InfusionsoftError:
    """Stop waiting for a call, and return its error."""
    call.give_up()
    return _failure(call, requests.Timeout())


def account_in_scope(scope: object) -> str | None:
    """Return ``ab123`` for ``full|ab123.infusionsoft.com`` (keap-facts 2.2), else ``None``."""
    if not isinstance(scope, str) or "|" not in scope:
        return None
    return normalize_account(scope.split("|", 1)[1])


def normalize_account(account: object) -> str | None:
    """Return the app id for a tenant's host name or id, or ``None`` if it is neither."""
    if not isinstance(account, str):
        return None
    name = account.strip().lower().removesuffix(".infusionsoft.com")
    return name if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,99}", name) else None


def _refresh_body(client: Client, refresh_token: str) -> Callable[[], str]:
    return partial(
        WebApplicationClient(client.client_id).prepare_refresh_body, refresh_token=refresh_token
    )


def _basic(client: Client) -> HTTPBasicAuth:
    return HTTPBasicAuth(client.client_id.encode(), client.client_secret.encode())


def _in_time(ask: Callable[[Call], TokenPair]) -> TokenPair:
    """Call ``ask`` in a thread; wait for the longest call at most, or as long as the caller may.

    The timeouts of the socket do not limit headers that arrive byte by byte.
    """
    call, reply = Call(), Future[TokenPair]()

    def run() -> None:
        try:
            reply.set_result(ask(call))
        except BaseException as error:  # noqa: BLE001  # raised by result() below
            reply.set_exception(error)

    try:
        # A daemon thread does not keep the interpreter from exiting.
        threading.Thread(target=run, name="infusionsoft-call", daemon=True).start()
        return reply.result(min(transport.longest_call_seconds(), waiting.seconds_left()))
    except TimeoutError:
        raise give_up(call) from None
    except RuntimeError as error:  # no more threads
        raise _failure(call, error) from None


def _post(
    call: Call,
    body: Callable[[], str],
    client: Client | None,
    *,
    is_rejected: Callable[[str, str], bool],
) -> TokenPair:
    """Send one request and judge its reply.

    :param body: makes the form: what fails before anything is sent has an outcome too.
    :param client: authenticates with the Basic scheme, if the body does not.
    """
    # Not an OAuth2Session: it raises if the scope in the reply differs, logs headers and body at
    # DEBUG level, and allows http:// on a loopback host only for the whole process.
    try:
        with making(call):
            auth = _basic(client) if client else None
            response = transport.post(conf.TOKEN_URL, body(), headers=FORM_HEADERS, auth=auth)
            with response:
                content = transport.read_reply(response.raw, call, MAX_REPLY_BYTES)
    except InfusionsoftError:
        raise
    except Exception as error:  # noqa: BLE001  # proxies, certificates and names raise many kinds
        raise _failure(call, error) from None  # the cause may contain the request's body
    return _judge(response, content, is_rejected)


def _failure(call: Call, error: Exception) -> InfusionsoftError:
    """Return the exception to raise, depending on whether anything was sent."""
    host = "the token endpoint"
    with suppress(ConfigurationError):  # changed during the call; its outcome must be recorded
        host = urlsplit(conf.TOKEN_URL).netloc
    if call.is_sent:
        return OutcomeUnknown(
            f"The request to {host} was sent, but the reply was lost ({type(error).__name__})."
        )
    cause = _root_cause(error)
    kind = type(cause).__name__
    # Not the server's certificate, but this machine's own ones.
    is_own = isinstance(cause, ssl.SSLError) and cause.library == "X509"
    is_of_network = isinstance(error, requests.ConnectionError | requests.Timeout | RuntimeError)
    if is_of_network and not is_own:
        return TemporarilyUnavailable(f"Could not connect to {host} ({kind}): nothing was sent.")
    return ConfigurationError(
        f"No request to {host} could be made ({kind}): nothing was sent. Check the environment "
        f"variables for proxies (HTTPS_PROXY, ALL_PROXY; those with socks5h:// need the package "
        f"PySocks) and certificates (REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE)."
    )


def _root_cause(error: BaseException) -> BaseException:
    """Return the innermost exception, which the HTTP libraries wrap."""
    while deeper := error.__cause__ or error.__context__:
        error = deeper
    return error


def _judge(
    response: requests.Response, content: bytes | None, is_rejected: Callable[[str, str], bool]
) -> TokenPair:
    """Return the token pair of a reply, or raise its error (keap-facts 2.3)."""
    if content is None:
        raise _unavailable(response, "which is too large for a token response")
    reply = _parse(content)
    if response.ok and (pair := _token_pair(reply)):
        # Even if the rest of the reply is invalid: to reject it would lose the token pair.
        return pair
    error, description = _error(reply)
    # Some servers report an error with HTTP 200. It is judged as a 400 with the same body.
    status = 400 if response.ok and error else response.status_code
    # Keap has sent invalid_grant with this text for a wrong client (keap-facts 2.3).
    names_client = "unable to authenticate" in description.lower()
    is_about_grant = error == "invalid_grant" and not names_client
    if (status == 401 and not is_about_grant) or error in CLIENT_ERRORS:
        raise ClientRejected(
            f"Keap rejected the client (HTTP {response.status_code}): check the client id "
            f"and the client secret."
        )
    if re.search("redirect.?uri", description, re.IGNORECASE):
        raise ConfigurationError(
            "Keap rejected the redirect URI: it must be identical in both requests. Set "
            "INFUSIONSOFT_REDIRECT_URI to the URL of the callback view."
        )
    if status in (400, 401) and is_rejected(error, description):
        reason = "expired" if re.search(r"\bexpired\b", description, re.IGNORECASE) else ""
        raise GrantRejected(
            "Keap rejected the grant: it is no longer valid or has already been used.",
            reason=reason,
        )
    if response.ok and not error and content.lstrip().startswith(b"{"):
        # Perhaps truncated: Keap may have rotated the refresh token.
        raise OutcomeUnknown("Keap reported success but returned no usable tokens.")
    raise _unavailable(response, f"error {error!r}" if error else UNRECOGNIZED)


def _is_rejected_refresh_token(error: str, description: str) -> bool:
    # Keap sends invalid_request today, and used to send invalid_grant. GitHub has its own code.
    return error in ("invalid_grant", "bad_refresh_token") or (
        error == "invalid_request"
        and bool(re.search("refresh.?token", description, re.IGNORECASE))
    )


def _is_rejected_code(error: str, description: str) -> bool:
    return error in ("invalid_grant", "invalid_request")


def _parse(content: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return {}
    return reply if isinstance(reply, dict) else {}


def _token_pair(reply: dict[str, Any]) -> TokenPair | None:
    access_token, refresh_token = reply.get("access_token"), reply.get("refresh_token")
    if not is_token(access_token) or not (refresh_token is None or is_token(refresh_token)):
        return None
    return TokenPair(
        access_token=access_token,
        refresh_token=refresh_token,
        expires_in=_lifetime(reply.get("expires_in")),
        account=account_in_scope(reply.get("scope")),
    )


def is_token(value: object) -> TypeGuard[str]:
    """Whether it is a token by RFC 6749, appendix A.12: printable ASCII. Others fit no header."""
    return isinstance(value, str) and bool(re.fullmatch("[ -~]*[!-~][ -~]*", value))


def _lifetime(expires_in: object) -> int:
    """Return the lifetime in seconds. Apigee can send it as a string."""
    try:
        seconds = int(float(str(expires_in)))
    except (ValueError, OverflowError):
        return DEFAULT_LIFETIME_SECONDS
    return min(seconds, MAX_LIFETIME_SECONDS) if seconds > 0 else DEFAULT_LIFETIME_SECONDS


def _error(reply: dict[str, Any]) -> tuple[str, str]:
    """Return the error code and description of RFC 6749 or a gateway fault (keap-facts 2.3)."""
    fault = reply.get("fault")
    if isinstance(fault, dict):
        detail = fault.get("detail")
        code = str(detail.get("errorcode", "")) if isinstance(detail, dict) else ""
        error = "invalid_client" if "invalid_client" in code else code
        return error[:100], str(fault.get("faultstring", ""))
    return str(reply.get("error", ""))[:100], str(reply.get("error_description", ""))


def _unavailable(response: requests.Response, what: str) -> TemporarilyUnavailable:
    status, kind = response.status_code, TemporarilyUnavailable
    if status == 429:
        kind = RefreshesLimited
    elif status in (502, 504) or (status < 300 and what == UNRECOGNIZED):
        kind = GatewayFailed
    return kind(
        f"Keap's token endpoint responded with HTTP {status}, {what}.",
        retry_after=retry_after(response.headers),
    )
