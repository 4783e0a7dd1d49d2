"""The ``requests`` session of a credential."""

from copy import copy
from typing import Any, Final

import requests
from requests.auth import AuthBase
from requests.hooks import default_hooks
from requests.utils import rewind_body

from django_infusionsoft.api.errors import error_for
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ApiError, ReplacedRecently
from django_infusionsoft.keap.sessions import Session
from django_infusionsoft.keap.urls import resolve
from django_infusionsoft.redaction import Secret, clears_locals
from django_infusionsoft.refresh import single
from django_infusionsoft.storage.credentials import CredentialRow

BEARER: Final = "Bearer "
UNKNOWN: Final = "unknown"
SECRET_HEADERS: Final = ("Authorization", "Proxy-Authorization", "X-Keap-API-Key", "Cookie")


class BearerAuth(AuthBase):
    """Sends the access token in the header (RFC 6750 section 2.1) and handles one 401.

    A 401 does not mean that the grant has ended (keap-facts 7). The row is read again, the token
    pair (access and refresh token) is refreshed at most once, and the request is repeated once,
    unless its body cannot be sent twice. If Keap rejects the new access token too, the 401 has
    another cause: it is returned, and for a while causes no refresh.

    :param survives_401: if false, a 401 is returned as it is.
    """

    def __init__(self, credential: CredentialRow, *, survives_401: bool = True) -> None:
        self._credential = credential
        self._survives_401 = survives_401
        # The header of the last request, and the encrypted access token that it was made from.
        self._sealed: object = UNKNOWN
        self._bearer = ""

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        r.headers["Authorization"] = self._current()
        if self._survives_401:
            r.hooks["response"].append(self._repeat_after_401)
        return r

    def __getstate__(self) -> dict[str, Any]:
        # A pickle must contain no secret in plain text.
        return {**self.__dict__, "_sealed": UNKNOWN, "_bearer": ""}

    def _current(self) -> str:
        credential = self._credential
        sealed = credential.__dict__.get("access_token")
        if sealed is self._sealed and credential.has_fresh_access_token:
            return self._bearer
        access_token = single.get_access_token(credential)
        sealed = credential.__dict__.get("access_token")
        bearer = Secret(f"{BEARER}{access_token}")
        if credential.access_token == access_token:  # another thread may have replaced it
            self._sealed, self._bearer = sealed, bearer
        return bearer

    def _repeat_after_401(self, response: requests.Response, **kwargs: Any) -> requests.Response:
        if response.status_code != 401:
            return response
        request = response.request
        # A request redirected to another host has this hook, but not the access token.
        rejected = request.headers.get("Authorization", "")
        if not rejected.startswith(BEARER):
            return response
        response.content  # noqa: B018  # the connection can be reused once the body is read
        response.close()
        try:
            access_token = single.replace_access_token(
                self._credential, Secret(rejected.removeprefix(BEARER))
            )
        except ReplacedRecently:
            return response
        if not _can_repeat(request):
            return response  # the caller can repeat it, with the new access token
        again = request.copy()
        again.headers["Authorization"] = Secret(f"{BEARER}{access_token}")
        if _is_stream(again.body):
            rewind_body(again)
        repeated = response.connection.send(again, **kwargs)
        repeated.history.append(response)
        return repeated


class CredentialSession(Session):
    """A ``requests.Session`` for one account: base URL, bearer, timeouts, 401 handling.

    Relative URLs, with or without a leading slash, are resolved against ``INFUSIONSOFT_API_URL``.
    Like any requests session, use it in one thread at a time.

    :raises ConfigurationError: the URL is on another host, which must not get the access token.
    :raises InfusionsoftError: there is no valid access token, as in
        ``Credential.get_access_token()``.
    """

    def __init__(self, credential: CredentialRow) -> None:
        super().__init__()
        self.auth = BearerAuth(credential)
        self.headers["Accept"] = "application/json"

    @clears_locals
    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        resolved = copy(request)
        resolved.url = resolve(str(request.url))
        return super().prepare_request(resolved)

    @clears_locals
    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        return super().request(*args, **kwargs)

    @clears_locals
    def call(self, method: str, url: str, **kwargs: Any) -> Any:
        """Return the decoded JSON of an answer; ``None`` if it has no body.

        :param kwargs: as ``request()``, such as ``params`` and ``json``.
        :raises ApiError: any other answer than a success with JSON, in one of its subclasses.
        :raises InfusionsoftError: there is no valid access token.
        """
        response = self.request(method, url, **kwargs)
        if not 200 <= response.status_code < 300:
            raise error_of(response)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise ApiError(
                "The answer is not JSON.",
                status=response.status_code,
                response=without_secrets(response),
            ) from None

    @clears_locals
    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = (conf.CONNECT_TIMEOUT_SECONDS, conf.READ_TIMEOUT_SECONDS)
        return super().send(request, **kwargs)


def error_of(response: requests.Response) -> ApiError:
    """Return the exception for a response that is not a success."""
    return error_for(
        str(response.request.method),
        response.status_code,
        response.headers,
        response.content,
        response=without_secrets(response),
    )


def without_secrets(response: requests.Response) -> requests.Response:
    """Return a copy that can be pickled and reported: without access tokens and streams."""
    request = response.request.copy()
    for name in SECRET_HEADERS:
        request.headers.pop(name, None)
    request.hooks = default_hooks()  # of which one has the credential
    if _is_stream(request.body):
        request.body = None
    copied = copy(response)  # with its content, and without its connection
    copied.request = request
    copied.history = [without_secrets(each) for each in response.history]
    return copied


def _can_repeat(request: requests.PreparedRequest) -> bool:
    """Whether the body can be sent again: requests records the start position of a stream."""
    if not _is_stream(request.body):
        return True
    is_marked = isinstance(getattr(request, "_body_position", None), int)
    return is_marked and callable(getattr(request.body, "seek", None))


def _is_stream(body: object) -> bool:
    return body is not None and not isinstance(body, str | bytes)
