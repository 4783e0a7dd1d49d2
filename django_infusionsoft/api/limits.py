"""How long a call may take, and how large its answer may be."""

from dataclasses import dataclass
from typing import Any

from urllib3 import Timeout

from django_infusionsoft import elapsed, waiting
from django_infusionsoft.api.retries import SHORTEST_ATTEMPT_SECONDS
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ApiUnavailable


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a session; ``None`` is the limit of the settings."""

    max_wait: float | None = None
    response_timeout: float | None = None
    max_response_bytes: int | None = None

    @property
    def wait_seconds(self) -> float:
        """How long a call takes at most, everything together."""
        return conf.MAX_WAIT_SECONDS if self.max_wait is None else self.max_wait

    @property
    def response_bytes(self) -> int:
        """How large the body of an answer is at most, decompressed."""
        if self.max_response_bytes is None:
            return conf.MAX_RESPONSE_BYTES
        return self.max_response_bytes

    def response_ends_at(self, started_at: float) -> float:
        """Return the reading of ``elapsed.monotonic()`` until which an answer must have arrived.

        :param started_at: when the request was sent.
        """
        seconds = self.response_timeout
        if seconds is None:
            seconds = conf.RESPONSE_TIMEOUT_SECONDS
        return min(started_at + seconds, elapsed.monotonic() + waiting.seconds_left())

    def require_time_left(self) -> None:
        """Require time for an answer: without it, a write would be unconfirmed.

        :raises ApiUnavailable: the call has waited too long; nothing was sent.
        """
        left = waiting.seconds_left()
        if left < SHORTEST_ATTEMPT_SECONDS and left <= self.wait_seconds / 4:
            raise ApiUnavailable(
                f"Nothing was sent: {self.wait_seconds:g} seconds are over (max_wait)."
            )

    def timeout(self, given: Any) -> Any:
        """Return the timeout of one request, so that it fits into the call.

        :param given: the caller's, as ``requests`` and urllib3 take it; ``None``: the settings'.
        """
        left = waiting.seconds_left()
        if isinstance(given, Timeout):
            total = given.total
            return Timeout(total=min(left, total) if isinstance(total, int | float) else left)
        connect, read = given if isinstance(given, tuple) else (given, given)
        connect = conf.CONNECT_TIMEOUT_SECONDS if connect is None else connect
        read = conf.READ_TIMEOUT_SECONDS if read is None else read
        return min(connect, left), min(read, left)
