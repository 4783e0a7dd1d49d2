"""The ``requests`` session of a credential."""

import time
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, cast
from urllib.parse import urljoin

import requests
from django.utils.asyncio import async_unsafe
from requests.exceptions import ChunkedEncodingError, ContentDecodingError
from requests.hooks import default_hooks, dispatch_hook
from requests.utils import requote_uri
from urllib3.exceptions import HTTPError, ReadTimeoutError

from django_infusionsoft import elapsed, waiting
from django_infusionsoft.api import partial_failures, retries
from django_infusionsoft.api.auth import UNAUTHORIZED, Bearer, can_repeat, rewind
from django_infusionsoft.api.connections import connections
from django_infusionsoft.api.errors import SAFE_METHODS
from django_infusionsoft.api.limits import Limits
from django_infusionsoft.api.quota import Quota
from django_infusionsoft.api.records import Records
from django_infusionsoft.api.responses import discard, error_of, read_body, without_secrets
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ApiError, ApiUnavailable, WriteUnconfirmed
from django_infusionsoft.keap.sent import Call, making
from django_infusionsoft.keap.sessions import Session
from django_infusionsoft.keap.urls import is_at_keap, is_same_origin, refusal, resolve
from django_infusionsoft.redaction import clears_locals
from django_infusionsoft.storage.credentials import CredentialRow

MAX_REDIRECTS: Final = 5
ON_A_LOOP: Final = (
    "session() would stop the event loop while it waits for Keap: use asession() in async code."
)
# The errors of one that has no answer; others are of a wrong call.
NO_ANSWER: Final = (
    requests.ConnectionError,
    requests.Timeout,
    ChunkedEncodingError,
    ContentDecodingError,
    HTTPError,
)
# A repeat has the same result, or takes as long again.
FINAL: Final = (requests.exceptions.SSLError, requests.ReadTimeout, ReadTimeoutError)


class NoAnswer(Exception):
    """A request without an answer. Its cause is the error of the HTTP client."""

    def __init__(self, *, is_sent: bool, is_final: bool) -> None:
        """
        :param is_sent: whether any of it may have been sent.
        :param is_final: whether a repeat makes no sense.
        """
        super().__init__()
        self.is_sent = is_sent
        self.is_final = is_final


@dataclass
class _Exchange:
    """A call: its request, with all repeats, and what was answered so far."""

    request: requests.PreparedRequest
    options: dict[str, Any]
    stream: bool
    follows_redirects: bool
    call: Call = field(default_factory=Call)
    repeats: int = 0
    is_replaced: bool = False  # the access token, after a 401
    history: list[requests.Response] = field(default_factory=list)

    @property
    def method(self) -> str:
        return str(self.request.method)


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
        if not 200 <= response.status_code < 300:
            raise error_of(response)
        if not response.content:
            return None
        try:
            content = response.json()
        except ValueError:
            raise ApiError(
                "The answer is not JSON.",
                status=response.status_code,
                response=without_secrets(response),
            ) from None
        if method.upper() not in SAFE_METHODS:
            partial_failures.require_all(response.status_code, content)
        return content

    @async_unsafe(ON_A_LOOP)
    @clears_locals
    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a prepared request, and repeat it where that is safe (see ``api.retries``).

        Hooks get the last response only.
        """
        if not is_at_keap(str(request.url)):
            raise refusal(str(request.url))
        exchange = _Exchange(
            request,
            options=kwargs,
            stream=bool(kwargs.pop("stream", self.stream)),
            follows_redirects=kwargs.pop("allow_redirects", True),
        )
        hooks, request.hooks = request.hooks, default_hooks()
        try:
            with waiting.at_most(self.limits.wait_seconds):
                response = self._exchange(exchange)
        finally:
            request.hooks = hooks
        options = {"stream": exchange.stream, **kwargs}
        return cast("requests.Response", dispatch_hook("response", hooks, response, **options))  # type: ignore[no-untyped-call]

    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Follow none: ``send()`` does, on the same origin only."""
        return iter(())

    def _exchange(self, exchange: _Exchange) -> requests.Response:
        while True:
            exchange.call = Call(until=elapsed.monotonic() + waiting.seconds_left())
            try:
                response = self._attempt(exchange)
            except NoAnswer as failure:
                self._wait_unanswered(exchange, failure)
            else:
                self._headers_seen = response.headers
                response.history = list(exchange.history)
                following = self._following(exchange, response)
                if following is None:
                    return response
                discard(response, exchange.call)
                exchange.history.append(response)
                exchange.request = following
            rewind(exchange.request)

    def _attempt(self, exchange: _Exchange) -> requests.Response:
        """Send the request once.

        :raises NoAnswer: there is no answer, or only a part of one.
        """
        limits, call, started_at = self.limits, exchange.call, elapsed.monotonic()
        limits.require_time_left()
        options = {**exchange.options, "timeout": limits.timeout(exchange.options.get("timeout"))}
        try:
            with making(call):
                response = super().send(
                    exchange.request, stream=True, allow_redirects=False, **options
                )
            if not exchange.stream:
                ends_at = limits.response_ends_at(started_at)
                read_body(response, call, limits.response_bytes, ends_at=ends_at)
        except NO_ANSWER as error:
            if isinstance(error, requests.RequestException):
                error.request = error.response = None  # they have the access token
            is_sent = call.is_sent or not (
                call.is_traced or isinstance(error, requests.ConnectTimeout)
            )
            raise NoAnswer(is_sent=is_sent, is_final=isinstance(error, FINAL)) from error
        return response

    def _following(
        self, exchange: _Exchange, response: requests.Response
    ) -> requests.PreparedRequest | None:
        """Return the request to send after a response, when it is time; ``None`` at the end."""
        status, auth = response.status_code, self.auth
        if status == UNAUTHORIZED and self.replaces_rejected and isinstance(auth, Bearer):
            if exchange.is_replaced:
                return None
            exchange.is_replaced = True
            return auth.after_401(exchange.request)
        if exchange.follows_redirects and response.is_redirect:
            return self._redirected(exchange, response)
        if not (self.repeats and retries.may_repeat_answered(exchange.method, status)):
            return None
        if not self._wait(exchange, pause := retries.pause(exchange.repeats, response.headers)):
            discard(response, exchange.call)
            error = error_of(response)
            error.retry_after = pause if error.retry_after is None else error.retry_after
            raise error
        return exchange.request

    def _redirected(
        self, exchange: _Exchange, response: requests.Response
    ) -> requests.PreparedRequest | None:
        if exchange.method not in SAFE_METHODS:
            return None
        redirects = sum(each.is_redirect for each in exchange.history)
        url = requote_uri(urljoin(response.url, response.headers["Location"]))
        if redirects >= self.max_redirects or not is_same_origin(url, response.url):
            return None
        following = exchange.request.copy()
        following.url = url
        return following

    def _wait_unanswered(self, exchange: _Exchange, failure: NoAnswer) -> None:
        """Wait for the next attempt, or raise the error of a request without an answer."""
        cause = failure.__cause__
        pause = retries.pause(exchange.repeats, {})
        may_repeat = self.repeats and not failure.is_final
        is_safe = retries.may_repeat_unanswered(exchange.method, is_sent=failure.is_sent)
        if may_repeat and is_safe and self._wait(exchange, pause):
            return
        fact = "did not answer" if failure.is_sent else "cannot be reached"
        what = f"Keap's API {fact} ({type(cause).__name__})."
        if is_safe:
            raise ApiUnavailable(what, retry_after=pause) from cause
        raise WriteUnconfirmed(
            f"{what} It may have acted on the {exchange.method} request: check before you "
            f"repeat it."
        ) from cause

    def _wait(self, exchange: _Exchange, pause: float) -> bool:
        """Wait if there is time for another attempt, and return whether there is."""
        if not can_repeat(exchange.request) or not retries.fits(pause, waiting.seconds_left()):
            return False
        time.sleep(pause)
        exchange.repeats += 1
        return True
