"""One call of a ``requests`` session: its request, and the repeats that ``retries`` allows."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urljoin

import requests
from requests.exceptions import ChunkedEncodingError, ContentDecodingError
from requests.utils import requote_uri
from urllib3.exceptions import HTTPError, ReadTimeoutError

from django_infusionsoft import elapsed, waiting
from django_infusionsoft.api import retries
from django_infusionsoft.api.auth import UNAUTHORIZED, Bearer, can_repeat, rewind
from django_infusionsoft.api.errors import SAFE_METHODS
from django_infusionsoft.api.limits import Limits
from django_infusionsoft.api.responses import discard, error_of, read_body
from django_infusionsoft.exceptions import ApiUnavailable, WriteUnconfirmed
from django_infusionsoft.keap.sent import Call, making
from django_infusionsoft.keap.urls import is_same_origin

# The errors of a request that has no answer; others are of a wrong call.
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


@dataclass(kw_only=True)
class Exchange:
    """A request, with all its repeats, and what was answered so far."""

    request: requests.PreparedRequest
    send: Callable[..., requests.Response]
    """Sends a request once: ``requests.Session.send()``."""
    options: dict[str, Any]
    """Its arguments besides ``stream``."""
    limits: Limits
    stream: bool
    max_redirects: int
    auth: Bearer | None
    """Replaces the access token after a 401."""
    repeats: bool
    """Whether requests are repeated for any other reason."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the last answer."""
    _call: Call = field(default_factory=Call)
    _count: int = 0
    _history: list[requests.Response] = field(default_factory=list)

    @property
    def method(self) -> str:
        """The method of all its requests."""
        return str(self.request.method)

    def run(self) -> requests.Response:
        """Send the request until it is answered for good, and return that response.

        :raises ApiError: it was not, within the limits.
        """
        while True:
            self._call = Call(until=elapsed.monotonic() + waiting.seconds_left())
            try:
                response = self._attempt()
            except NoAnswer as failure:
                self._wait_unanswered(failure)
            else:
                self.headers = response.headers
                response.history = list(self._history)
                following = self._following(response)
                if following is None:
                    return response
                discard(response, self._call)
                self._history.append(response)
                self.request = following
            rewind(self.request)

    def _attempt(self) -> requests.Response:
        """Send the request once.

        :raises NoAnswer: there is no answer, or only a part of one.
        """
        limits, call, started_at = self.limits, self._call, elapsed.monotonic()
        limits.require_time_left()
        options = {**self.options, "timeout": limits.timeout(self.options.get("timeout"))}
        try:
            with making(call):
                response = self.send(self.request, stream=True, allow_redirects=False, **options)
            if not self.stream:
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

    def _following(self, response: requests.Response) -> requests.PreparedRequest | None:
        """Return the request to send after a response, when it is time; ``None`` at the end."""
        status = response.status_code
        if status == UNAUTHORIZED and self.auth is not None:
            auth, self.auth = self.auth, None  # once
            return auth.after_401(self.request)
        if response.is_redirect:
            return self._redirected(response)
        if not (self.repeats and retries.may_repeat_answered(self.method, status)):
            return None
        if not self._wait(pause := retries.pause(self._count, response.headers)):
            discard(response, self._call)
            error = error_of(response)
            error.retry_after = pause if error.retry_after is None else error.retry_after
            raise error
        return self.request

    def _redirected(self, response: requests.Response) -> requests.PreparedRequest | None:
        """Return the request that follows a redirect, if it is a safe one on the same origin."""
        redirects = sum(each.is_redirect for each in self._history)
        if self.method not in SAFE_METHODS or redirects >= self.max_redirects:
            return None
        try:
            url = requote_uri(urljoin(response.url, response.headers["Location"]))
            if not is_same_origin(url, response.url):
                return None
        except ValueError:  # it is malformed
            return None
        following = self.request.copy()
        following.url = url
        return following

    def _wait_unanswered(self, failure: NoAnswer) -> None:
        """Wait for the next attempt, or raise the error of a request without an answer."""
        cause = failure.__cause__
        pause = retries.pause(self._count, {})
        may_repeat = self.repeats and not failure.is_final
        is_safe = retries.may_repeat_unanswered(self.method, is_sent=failure.is_sent)
        if may_repeat and is_safe and self._wait(pause):
            return
        fact = "did not answer" if failure.is_sent else "cannot be reached"
        what = f"Keap's API {fact} ({type(cause).__name__})."
        if is_safe:
            raise ApiUnavailable(what, retry_after=pause) from cause
        raise WriteUnconfirmed(
            f"{what} It may have acted on the {self.method} request: check before you repeat it."
        ) from cause

    def _wait(self, pause: float) -> bool:
        """Wait if there is time for another attempt, and return whether there is."""
        if not can_repeat(self.request) or not retries.fits(pause, waiting.seconds_left()):
            return False
        time.sleep(pause)
        self._count += 1
        return True
