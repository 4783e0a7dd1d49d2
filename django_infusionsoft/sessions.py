"""API clients on a credential."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.auth import AuthBase
from requests.utils import rewind_body

from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError

if TYPE_CHECKING:
    from django_infusionsoft.models import Credential


class BearerAuth(AuthBase):
    """Sends the access token in the header (RFC 6750 section 2.1) and survives one 401.

    A 401 does not mean that the grant has ended (keap-facts 7): the row is read again, the pair is
    refreshed at most once, and the request is repeated once, unless its body cannot be sent twice.
    """

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        access_token = self._credential.get_access_token()
        r.headers["Authorization"] = f"Bearer {access_token}"
        r.register_hook(  # type: ignore[no-untyped-call]
            "response", self._repeat_after(access_token)
        )
        return r

    def _repeat_after(self, rejected: str) -> Callable[..., requests.Response]:
        def handle(response: requests.Response, **kwargs: Any) -> requests.Response:
            request = response.request
            if response.status_code != 401 or not _can_repeat(request):
                return response
            response.content  # noqa: B018  # read to the end, the connection can be used again
            response.close()
            again = request.copy()
            again.hooks["response"].clear()
            access_token = self._credential.replace_access_token(rejected)
            again.headers["Authorization"] = f"Bearer {access_token}"
            if getattr(again, "_body_position", None) is not None:
                rewind_body(again)
            repeated = response.connection.send(again, **kwargs)
            repeated.history.append(response)
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

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        return super().request(method, _resolve(url), *args, **kwargs)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = (conf.CONNECT_TIMEOUT_SECONDS, conf.READ_TIMEOUT_SECONDS)
        return super().send(request, **kwargs)


def _resolve(url: str) -> str:
    base = conf.API_URL
    base = base if base.endswith("/") else base + "/"
    resolved = urljoin(base, url.lstrip("/"))
    if urlsplit(resolved)[:2] != urlsplit(base)[:2]:
        raise ConfigurationError(
            f"This session sends the account's access token, and only to {base} "
            f"(INFUSIONSOFT_API_URL): use another one for {urlsplit(resolved).hostname}."
        )
    return resolved


def _can_repeat(request: requests.PreparedRequest) -> bool:
    """Whether the body, if any, can be sent a second time: requests marks a stream's start."""
    position = getattr(request, "_body_position", None)
    return position is None or isinstance(position, int)
