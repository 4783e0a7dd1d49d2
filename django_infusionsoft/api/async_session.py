"""The async session of a credential: the same rules as ``session()``, with httpx2."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urljoin

from django_infusionsoft import elapsed, waiting
from django_infusionsoft.api import retries
from django_infusionsoft.api.async_client import client, failures
from django_infusionsoft.api.async_records import AsyncRecords
from django_infusionsoft.api.decoding import decode
from django_infusionsoft.api.errors import SAFE_METHODS, error_for
from django_infusionsoft.api.limits import Limits
from django_infusionsoft.api.quota import Quota
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import (
    ApiError,
    ApiUnavailable,
    ReplacedRecently,
    WriteUnconfirmed,
)
from django_infusionsoft.keap.headers import authorization
from django_infusionsoft.keap.urls import is_same_origin, resolve
from django_infusionsoft.redaction import Secret, async_clears_locals
from django_infusionsoft.refresh import coroutines
from django_infusionsoft.storage.credentials import CredentialRow

if TYPE_CHECKING:
    import httpx2

MAX_REDIRECTS: Final = 5
UNAUTHORIZED: Final = 401
SENT: Final = ".send_request_headers.started"
# Headers that no longer apply to a body which has been read.
OF_THE_BODY: Final = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})


class AsyncCredentialSession(AsyncRecords):
    """An async client for one account, with the rules of ``CredentialSession``.

    ``async with credential.asession() as session``; any number of tasks may share it. All
    sessions of an event loop share their connections.

    :param max_wait: how many seconds a call takes at most, with all that belongs to it.
    :param response_timeout: how many seconds one answer takes at most.
    :param max_response_bytes: how large an answer is at most, decompressed.
    :raises InfusionsoftError: as ``CredentialSession``.
    """

    def __init__(
        self,
        credential: CredentialRow,
        *,
        max_wait: float | None = None,
        response_timeout: float | None = None,
        max_response_bytes: int | None = None,
    ) -> None:
        self._credential = credential
        self._headers_seen: Mapping[str, str] = MappingProxyType({})
        self.limits = Limits(max_wait, response_timeout, max_response_bytes)
        self.models_key = conf.API_URL, credential.identity

    async def __aenter__(self) -> Self:
        self._client = await client()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Keep the connections: others use them."""

    @property
    def quota(self) -> Quota:
        """What the last answer said about Keap's limits."""
        return Quota.in_headers(self._headers_seen)

    async def get(self, url: str, **kwargs: Any) -> httpx2.Response:
        return await self.request("GET", url, **kwargs)

    async def head(self, url: str, **kwargs: Any) -> httpx2.Response:
        return await self.request("HEAD", url, **kwargs)

    async def options(self, url: str, **kwargs: Any) -> httpx2.Response:
        return await self.request("OPTIONS", url, **kwargs)

    async def post(self, url: str, **kwargs: Any) -> httpx2.Response:
        return await self.request("POST", url, **kwargs)

    async def put(self, url: str, **kwargs: Any) -> httpx2.Response:
        return await self.request("PUT", url, **kwargs)

    async def patch(self, url: str, **kwargs: Any) -> httpx2.Response:
        return await self.request("PATCH", url, **kwargs)

    async def delete(self, url: str, **kwargs: Any) -> httpx2.Response:
        return await self.request("DELETE", url, **kwargs)

    @async_clears_locals
    async def request(
        self, method: str, url: str, *, stream: bool = False, **kwargs: Any
    ) -> httpx2.Response:
        """Send a request, and repeat it where that is safe (see ``api.retries``).

        :param url: as in ``session()``.
        :param stream: whether to leave reading the body, with its limits, to the caller.
        :param kwargs: as in ``httpx2.AsyncClient.request()``: ``params``, ``json``, ``data``,
            ``content``, ``files``, ``headers``, ``timeout``.
        """
        exchange = _Exchange(method.upper(), resolve(url), stream, kwargs)
        with waiting.at_most(self.limits.wait_seconds):
            response = await self._exchange(exchange)
        response.history = exchange.history
        return response

    @async_clears_locals
    async def call(self, method: str, url: str, **kwargs: Any) -> Any:
        """Return the decoded JSON of an answer; ``None`` if it has no body.

        :raises ApiError: any other answer than a success with JSON, in one of its subclasses.
        """
        response = await self.request(method, url, **kwargs)
        return decode(
            method,
            response.status_code,
            response.headers,
            response.content,
            without_secrets=partial(_without_secrets, response),
        )

    async def _exchange(self, exchange: _Exchange) -> httpx2.Response:
        exchange.access_token = await coroutines.get_access_token(self._credential)
        while True:
            self.limits.require_time_left()
            sent = _Sent()
            try:
                response = await self._attempt(exchange, sent)
            except failures() as error:
                await exchange.wait_unanswered(error, is_sent=sent.is_sent)
                continue
            self._headers_seen = response.headers
            if response.status_code == UNAUTHORIZED and await self._is_replaced(exchange):
                exchange.history.append(response)
            elif url := exchange.redirected(response):
                exchange.history.append(response)
                exchange.url = url
            elif not retries.may_repeat_answered(exchange.method, response.status_code):
                return response
            else:
                await exchange.wait_answered(response)

    async def _attempt(self, exchange: _Exchange, sent: _Sent) -> httpx2.Response:
        """Send the request once, and read the answer."""
        started_at = elapsed.monotonic()
        options = exchange.options
        headers = {
            "Accept": "application/json",
            **(options.get("headers") or {}),
            **dict([authorization(exchange.access_token, is_key=self._credential.is_key)]),
        }
        connect, read = self.limits.timeout(options.get("timeout"))
        request = self._client.build_request(
            exchange.method,
            exchange.url,
            **{**options, "headers": headers, "timeout": (connect, read, read, connect)},
            extensions={"trace": sent.trace},
        )
        async with asyncio.timeout(waiting.seconds_left()):
            response = await self._client.send(request, stream=True)
        if exchange.stream:
            return response
        ends_at = self.limits.response_ends_at(started_at)
        try:
            async with asyncio.timeout(max(0.0, ends_at - elapsed.monotonic())):
                content = await _read(response, self.limits.response_bytes)
        finally:
            await response.aclose()
        return _with_content(response, content)

    async def _is_replaced(self, exchange: _Exchange) -> bool:
        """Replace a rejected access token, once; return whether to repeat the request."""
        if exchange.is_replaced:
            return False
        exchange.is_replaced = True
        rejected = Secret(exchange.access_token)
        try:
            replaced = await coroutines.replace_access_token(self._credential, rejected)
        except ReplacedRecently:
            return False
        exchange.access_token = replaced
        return exchange.can_repeat


class _Sent:
    """Whether any of a request has been sent: httpcore2 says so before it sends."""

    def __init__(self) -> None:
        self.is_sent = False

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(SENT):
            self.is_sent = True


@dataclass
class _Exchange:
    """A call: its request, with all repeats, and what was answered so far."""

    method: str
    url: str
    stream: bool
    options: dict[str, Any]
    access_token: str = field(default="", repr=False)
    repeats: int = 0
    is_replaced: bool = False  # the access token, after a 401
    history: list[httpx2.Response] = field(default_factory=list)

    @property
    def can_repeat(self) -> bool:
        """Whether the body can be sent again."""
        content = self.options.get("content")
        return isinstance(content, str | bytes | None) and not self.options.get("files")

    def redirected(self, response: httpx2.Response) -> str | None:
        """Return the URL of a redirect to follow."""
        redirects = sum(each.has_redirect_location for each in self.history)
        if self.method not in SAFE_METHODS or redirects >= MAX_REDIRECTS:
            return None
        if not response.has_redirect_location:
            return None
        url = urljoin(self.url, response.headers["Location"])
        self.options["params"] = None  # they are in the first URL
        return url if is_same_origin(url, self.url) else None

    async def wait_answered(self, response: httpx2.Response) -> None:
        """Wait for the next attempt, or raise the error of the answer."""
        pause = retries.pause(self.repeats, response.headers)
        if not await self._wait(pause):
            error = _error_of(response)
            error.retry_after = pause if error.retry_after is None else error.retry_after
            raise error

    async def wait_unanswered(self, failure: Exception, *, is_sent: bool) -> None:
        """Wait for the next attempt, or raise the error of a request without an answer."""
        pause = retries.pause(self.repeats, {})
        is_safe = retries.may_repeat_unanswered(self.method, is_sent=is_sent)
        is_final = is_sent and "Timeout" in type(failure).__name__
        if is_safe and not is_final and await self._wait(pause):
            return
        fact = "did not answer" if is_sent else "cannot be reached"
        what = f"Keap's API {fact} ({type(failure).__name__})."
        if is_safe:
            raise ApiUnavailable(what, retry_after=pause) from None
        raise WriteUnconfirmed(
            f"{what} It may have acted on the {self.method} request: check before you repeat it."
        ) from None

    async def _wait(self, pause: float) -> bool:
        if not (self.can_repeat and retries.fits(pause, waiting.seconds_left())):
            return False
        await asyncio.sleep(pause)
        self.repeats += 1
        return True


async def _read(response: httpx2.Response, limit: int) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():  # decompressed piece by piece
        content += chunk
        if len(content) > limit:
            raise ApiError(
                f"The answer is larger than {limit} bytes: see max_response_bytes of asession().",
                status=response.status_code,
            )
    return bytes(content)


def _with_content(response: httpx2.Response, content: bytes) -> httpx2.Response:
    """Return the response with its body, which is decompressed already."""
    headers = [each for each in response.headers.raw if each[0].lower() not in OF_THE_BODY]
    return type(response)(
        response.status_code,
        headers=headers,
        content=content,
        request=response.request,
        extensions=response.extensions,
    )


def _error_of(response: httpx2.Response) -> ApiError:
    return error_for(
        response.request.method,
        response.status_code,
        response.headers,
        response.content,
        response=_without_secrets(response),
    )


def _without_secrets(response: httpx2.Response) -> httpx2.Response:
    """Return a copy that can be pickled and reported: without the access token."""
    request = response.request
    return type(response)(
        response.status_code,
        headers=response.headers,
        content=response.content,
        request=type(request)(request.method, request.url),
    )
