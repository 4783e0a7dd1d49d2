"""API clients on a credential."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
from requests.auth import AuthBase
from requests.exceptions import InvalidURL
from requests.utils import rewind_body

from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError

if TYPE_CHECKING:
    from django_infusionsoft.models import Credential


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

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        access_token = self._credential.get_access_token()
        r.headers["Authorization"] = f"Bearer {access_token}"
        if self._survives_401 and access_token != self._rejected_when_new:
            r.register_hook(  # type: ignore[no-untyped-call]
                "response", self._repeat_after(access_token)
            )
        return r

    def _repeat_after(self, rejected: str) -> Callable[..., requests.Response]:
        def handle(response: requests.Response, **kwargs: Any) -> requests.Response:
            request = response.request
            # A redirect to another host brings this hook along, and not the access token.
            is_ours = request.headers.get("Authorization") == f"Bearer {rejected}"
            if response.status_code != 401 or not is_ours:
                return response
            response.content  # noqa: B018  # read to the end, the connection can be used again
            response.close()
            access_token = self._credential.replace_access_token(rejected)
            if not _can_repeat(request):
                return response  # but the caller can, and meets the new access token
            again = request.copy()
            again.headers["Authorization"] = f"Bearer {access_token}"
            if _is_stream(again.body):
                rewind_body(again)
            repeated = response.connection.send(again, **kwargs)
            repeated.history.append(response)
            if repeated.status_code == 401:
                self._rejected_when_new = access_token
            return repeated

        return handle


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
    try:
        resolved = urlsplit(urljoin(base, url.lstrip("/")))
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
