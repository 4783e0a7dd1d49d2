"""Sends a credential's access token, and replaces it if the API rejects it."""

from typing import Any, Final

import requests
from requests.auth import AuthBase
from requests.utils import rewind_body

from django_infusionsoft.exceptions import ReplacedRecently
from django_infusionsoft.keap.headers import (
    AUTHORIZATION,
    KEY_HEADER,
    access_token_in,
    authorization,
)
from django_infusionsoft.keap.urls import is_at_keap, refusal
from django_infusionsoft.redaction import clears_locals
from django_infusionsoft.refresh import single
from django_infusionsoft.storage.credentials import CredentialRow

UNKNOWN: Final = "unknown"
UNAUTHORIZED: Final = 401


class Bearer(AuthBase):
    """Sends the access token in the header (RFC 6750 section 2.1)."""

    def __init__(self, credential: CredentialRow) -> None:
        self._credential = credential
        # The header of the last request, and the encrypted access token that it was made from.
        self._sealed: object = UNKNOWN
        self._header = ("", "")

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        name, value = self._current()
        r.headers[name] = value
        return r

    def __getstate__(self) -> dict[str, Any]:
        # A pickle must contain no secret in plain text.
        return {**self.__dict__, "_sealed": UNKNOWN, "_header": ("", "")}

    def _current(self) -> tuple[str, str]:
        """Return the name and the value of the header."""
        credential = self._credential
        sealed = credential.__dict__.get("access_token")
        if sealed is self._sealed and credential.has_fresh_access_token:
            return self._header
        access_token = single.get_access_token(credential)
        sealed = credential.__dict__.get("access_token")
        header = authorization(access_token, is_key=credential.is_key)
        if credential.access_token == access_token:  # another thread may have replaced it
            self._sealed, self._header = sealed, header
        return header

    def after_401(self, request: requests.PreparedRequest) -> requests.PreparedRequest | None:
        """Return the request with another access token, after the API has rejected this one.

        A 401 does not mean that the grant has ended (keap-facts 7). The row is read again, and the
        token pair (access and refresh token) is refreshed at most once. If Keap rejects the new
        access token too, the 401 has another cause, and for a while causes no refresh.

        :returns: ``None`` for a request without an access token, for one whose body cannot be
            sent twice, and if the access token was replaced shortly before.
        """
        rejected = access_token_in(request.headers)
        if rejected is None:
            return None
        try:
            access_token = single.replace_access_token(self._credential, rejected)
        except ReplacedRecently:
            return None
        if not can_repeat(request):
            return None  # the caller can repeat it, with the new access token
        again = request.copy()
        name, value = authorization(access_token, is_key=self._credential.is_key)
        for each in (AUTHORIZATION, KEY_HEADER):  # a key may have replaced a grant
            again.headers.pop(each, None)
        again.headers[name] = value
        return again


class BearerAuth(Bearer):
    """The same for a ``requests`` session of the caller's own: a hook repeats it after a 401.

    :raises ConfigurationError: the URL is on another host, which must not get the access token.
    """

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        if not is_at_keap(str(r.url)):
            raise refusal(str(r.url))
        r.hooks["response"].append(self._repeat_after_401)
        return super().__call__(r)

    @clears_locals
    def _repeat_after_401(self, response: requests.Response, **kwargs: Any) -> requests.Response:
        if response.is_redirect:
            # requests removes only Authorization before it follows one to another host.
            response.request.headers.pop(KEY_HEADER, None)
        if response.status_code != UNAUTHORIZED:
            return response
        # A request redirected to another host has this hook, but not the access token.
        if (again := self.after_401(response.request)) is None:
            return response
        response.content  # noqa: B018  # the connection can be reused once the body is read
        response.close()
        rewind(again)
        repeated = response.connection.send(again, **kwargs)
        repeated.history.append(response)
        return repeated


def can_repeat(request: requests.PreparedRequest) -> bool:
    """Whether the body can be sent again: requests records the start position of a stream."""
    if not is_stream(request.body):
        return True
    is_marked = isinstance(getattr(request, "_body_position", None), int)
    return is_marked and callable(getattr(request.body, "seek", None))


def rewind(request: requests.PreparedRequest) -> None:
    """Set a stream to its start, if it is one that can be repeated."""
    if is_stream(request.body):
        rewind_body(request)


def is_stream(body: object) -> bool:
    """Whether the body is read while it is sent."""
    return body is not None and not isinstance(body, str | bytes)
