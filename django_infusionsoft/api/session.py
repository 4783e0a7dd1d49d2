"""The ``requests`` session of a credential."""

from collections.abc import Iterator, Mapping
from copy import copy
from functools import partial
from types import MappingProxyType
from typing import Any, Final, cast

import requests
from django.utils.asyncio import async_unsafe
from requests.hooks import default_hooks, dispatch_hook

from django_infusionsoft import waiting
from django_infusionsoft.api.auth import Bearer
from django_infusionsoft.api.connections import connections
from django_infusionsoft.api.decoding import decode
from django_infusionsoft.api.exchange import Exchange
from django_infusionsoft.api.limits import Limits
from django_infusionsoft.api.quota import Quota
from django_infusionsoft.api.records import Records
from django_infusionsoft.api.responses import without_secrets
from django_infusionsoft.conf import conf
from django_infusionsoft.keap.sessions import Session
from django_infusionsoft.keap.urls import is_at_keap, refusal, resolve
from django_infusionsoft.redaction import clears_locals
from django_infusionsoft.storage.credentials import CredentialRow

MAX_REDIRECTS: Final = 5
ON_A_LOOP: Final = (
    "session() would stop the event loop while it waits for Keap: use asession() in async code."
)


class CredentialSession(Records, Session):
    """A ``requests.Session`` for one account: base URL, bearer, time limits, repeats.

    Relative URLs, with or without a leading slash, are resolved against ``INFUSIONSOFT_API_URL``.
    All sessions share their connections. Like any requests session, use it in one thread at a
    time.

    :param max_wait: how many seconds a call takes at most, with all that belongs to it.
    :param response_timeout: how many seconds one answer takes at most.
    :param max_response_bytes: how large an answer is at most, decompressed.
    :param replaces_rejected: if false, a 401 is returned as it is.
    :param repeats: if false, requests are not repeated for any other reason.

    The three limits are by default those of the settings. With ``stream=True`` the last two are
    left to the caller.

    :raises ConfigurationError: the URL is on another host, which must not get the access token.
    :raises InfusionsoftError: there is no valid access token, as in
        ``Credential.get_access_token()``.
    :raises RateLimited: too many requests, for longer than ``max_wait``.
    :raises ApiUnavailable: the API is down or does not answer. Keap has changed nothing.
    :raises WriteUnconfirmed: the answer to a write was lost. Keap may have acted on it.
    """

    # What a pickle contains.
    __attrs__ = [*Session.__attrs__, "limits", "replaces_rejected", "repeats", "models_key"]

    # Of the last answer.
    _headers_seen: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        credential: CredentialRow,
        *,
        max_wait: float | None = None,
        response_timeout: float | None = None,
        max_response_bytes: int | None = None,
        replaces_rejected: bool = True,
        repeats: bool = True,
    ) -> None:
        super().__init__(connections)
        self.auth = Bearer(credential)
        self.headers["Accept"] = "application/json"
        self.max_redirects = MAX_REDIRECTS
        self.limits = Limits(max_wait, response_timeout, max_response_bytes)
        self.replaces_rejected = replaces_rejected
        self.repeats = repeats
        self.models_key = conf.API_URL, credential.identity

    @property
    def quota(self) -> Quota:
        """What the last answer said about Keap's limits."""
        return Quota.in_headers(self._headers_seen)

    @clears_locals
    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        resolved = copy(request)
        resolved.url = resolve(str(request.url))
        return super().prepare_request(resolved)

    @async_unsafe(ON_A_LOOP)
    @clears_locals
    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        with waiting.at_most(self.limits.wait_seconds):  # a refresh included
            return super().request(*args, **kwargs)

    @clears_locals
    def call(self, method: str, url: str, **kwargs: Any) -> Any:
        """Return the decoded JSON of an answer; ``None`` if it has no body.

        :param kwargs: as ``request()``, such as ``params`` and ``json``.
        :raises ApiError: any other answer than a success with JSON, in one of its subclasses.
        :raises InfusionsoftError: there is no valid access token.
        """
        response = self.request(method, url, **kwargs)
        return decode(
            method,
            response.status_code,
            response.headers,
            response.content,
            without_secrets=partial(without_secrets, response),
        )

    @async_unsafe(ON_A_LOOP)
    @clears_locals
    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a prepared request, and repeat it where that is safe (see ``api.retries``).

        Hooks get the last response only.
        """
        if not is_at_keap(str(request.url)):
            raise refusal(str(request.url))
        stream = bool(kwargs.pop("stream", self.stream))
        follows_redirects = kwargs.pop("allow_redirects", True)
        exchange = Exchange(
            request=request,
            send=super().send,
            options=kwargs,
            limits=self.limits,
            stream=stream,
            max_redirects=self.max_redirects if follows_redirects else 0,
            auth=self.auth if isinstance(self.auth, Bearer) and self.replaces_rejected else None,
            repeats=self.repeats,
        )
        hooks, request.hooks = request.hooks, default_hooks()
        try:
            with waiting.at_most(self.limits.wait_seconds):
                response = exchange.run()
        finally:
            request.hooks = hooks
            self._headers_seen = exchange.headers
        options = {"stream": stream, **kwargs}
        return cast("requests.Response", dispatch_hook("response", hooks, response, **options))  # type: ignore[no-untyped-call]

    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Follow none: ``send()`` does, on the same origin only."""
        return iter(())
