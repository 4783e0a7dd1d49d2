"""API clients on a credential."""

from __future__ import annotations

import re
from copy import copy
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
from requests.auth import AuthBase
from requests.exceptions import InvalidURL
from requests.utils import rewind_body

from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError

if TYPE_CHECKING:
    from django_infusionsoft.models import Credential

# For a question whose answer is not worth a longer wait.
LOOK_TIMEOUT_SECONDS: Final = 5.0
# Tells the user who authorized, and needs no permission (keap-facts 3).
USER_PATH: Final = "v2/oauth/connect/userinfo"
BEARER: Final = "Bearer "
UNKNOWN: Final = "unknown"
# What nobody can read otherwise than as a path below the base: no scheme, no host, no dots.
PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", re.ASCII)


def is_accepted(access_token: str) -> bool:
    """Tell whether Keap's API takes an access token; no answer is no.

    Asks for the user who connected it.
    """

    def bearing(request: requests.PreparedRequest) -> requests.PreparedRequest:
        # Not by the headers: requests would prefer what it finds in a netrc file.
        request.headers["Authorization"] = f"Bearer {access_token}"
        return request

    try:
        with requests.get(
            _resolve(USER_PATH),
            auth=bearing,
            timeout=LOOK_TIMEOUT_SECONDS,
            allow_redirects=False,
            stream=True,
        ) as response:
            return response.status_code == 200
    except (requests.RequestException, ConfigurationError):
        return False


class BearerAuth(AuthBase):
    """Sends the access token in the header (RFC 6750 section 2.1) and survives one 401.

    A 401 does not mean that the grant has ended (keap-facts 7): the row is read again, the pair is
    refreshed at most once, and the request is repeated once, unless its body cannot be sent twice.
    Where a new access token is rejected as well it is not about that, and nothing is refreshed.

    :param survives_401: without it a 401 is left as it is.
    """

    def __init__(self, credential: Credential, *, survives_401: bool = True) -> None:
        self._credential = credential
        self._survives_401 = survives_401
        self._rejected_when_new = ""
        # What was decrypted last, and what it was.
        self._sealed: object = UNKNOWN
        self._bearer = ""

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        bearer = r.headers["Authorization"] = self._current()
        if self._survives_401 and bearer != self._rejected_when_new:
            r.hooks["response"].append(self._repeat_after_401)
        return r

    def __getstate__(self) -> dict[str, Any]:
        # A pickle holds no secret that is not encrypted.
        return {**self.__dict__, "_sealed": UNKNOWN, "_bearer": "", "_rejected_when_new": ""}

    def _current(self) -> str:
        credential = self._credential
        sealed = credential.__dict__.get("access_token")
        if sealed is self._sealed and credential.has_fresh_access_token:
            return self._bearer
        access_token = credential.get_access_token()
        sealed = credential.__dict__.get("access_token")
        bearer = f"{BEARER}{access_token}"
        if credential.access_token == access_token:  # and not another thread's newer one by now
            self._sealed, self._bearer = sealed, bearer
        return bearer

    def _repeat_after_401(self, response: requests.Response, **kwargs: Any) -> requests.Response:
        if response.status_code != 401:
            return response
        request = response.request
        # A redirect to another host brings this hook along, and not the access token.
        rejected = request.headers.get("Authorization", "")
        if not rejected.startswith(BEARER):
            return response
        response.content  # noqa: B018  # read to the end, the connection can be used again
        response.close()
        access_token = self._credential.replace_access_token(rejected.removeprefix(BEARER))
        if not _can_repeat(request):
            return response  # but the caller can, and meets the new access token
        again = request.copy()
        bearer = again.headers["Authorization"] = f"{BEARER}{access_token}"
        if _is_stream(again.body):
            rewind_body(again)
        repeated = response.connection.send(again, **kwargs)
        repeated.history.append(response)
        if repeated.status_code == 401:
            self._rejected_when_new = bearer
        return repeated


class CredentialSession(requests.Session):
    """A ``requests.Session`` for one account: base URL, bearer, timeouts, 401 handling.

    Relative URLs, with a leading slash or without, are resolved against ``INFUSIONSOFT_API_URL``.
    As any requests session it is for one thread at a time.

    :raises ConfigurationError: on a URL of another host: the access token is not for it.
    :raises InfusionsoftError: where there is no access token that works, as
        ``Credential.get_access_token()`` does.
    """

    def __init__(self, credential: Credential) -> None:
        super().__init__()
        self.auth = BearerAuth(credential)
        self.headers["Accept"] = "application/json"

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        resolved = copy(request)
        resolved.url = _resolve(str(request.url))
        return super().prepare_request(resolved)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = (conf.CONNECT_TIMEOUT_SECONDS, conf.READ_TIMEOUT_SECONDS)
        return super().send(request, **kwargs)


def _resolve(url: str) -> str:
    base = conf.API_URL
    base = base if base.endswith("/") else base + "/"
    path = url.lstrip("/")
    if PLAIN_PATH.fullmatch(path):
        return base + path
    try:
        resolved = urlsplit(urljoin(base, path))
        is_keap = _origin(resolved) == _origin(api := urlsplit(base))
    except ValueError as error:
        raise InvalidURL(f"{error}: {url!r}") from None
    if not is_keap:
        raise ConfigurationError(
            f"This session sends the account's access token, and only to {base} "
            f"(INFUSIONSOFT_API_URL): use another one for {resolved.hostname}."
        )
    # In the setting's own spelling, whatever another parser would read in the caller's.
    return resolved._replace(scheme=api.scheme, netloc=api.netloc).geturl()


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None, str | None]:
    """Return scheme, host, port, and the userinfo that no URL of Keap's has."""
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port, parts.username


def _can_repeat(request: requests.PreparedRequest) -> bool:
    """Whether the body, if any, can be sent a second time: requests marks a stream's start."""
    if not _is_stream(request.body):
        return True
    is_marked = isinstance(getattr(request, "_body_position", None), int)
    return is_marked and callable(getattr(request.body, "seek", None))


def _is_stream(body: object) -> bool:
    return body is not None and not isinstance(body, str | bytes)
