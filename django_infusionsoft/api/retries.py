"""Which requests are repeated, and when. Whoever sends them, it decides for all.

A request is repeated if Keap has not acted on it. There are no idempotency keys, so a repeated
write may be a second order (keap-facts 4):

* After a 429 every request is repeated. The gateway counts before it hands on a request.
* After a 502, 503 or 504, or without an answer, only requests that change nothing are repeated: a
  gateway sends these also when it has handed on the request, and the answer was lost.
* A write without an answer is repeated if nothing of it was sent.
"""

import random
from collections.abc import Mapping
from typing import Final

from django_infusionsoft.api.errors import SAFE_METHODS, wait_for

# RFC 9110 section 15.6: the gateway or the server behind it may work again soon. Not 500, which
# Keap also sends for wrong values (keap-facts 14).
OUTAGES: Final = frozenset({502, 503, 504})
TOO_MANY_REQUESTS: Final = 429
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 10.0
# A request that is sent too late to be answered is worse than none: a write would be unconfirmed.
SHORTEST_ATTEMPT_SECONDS: Final = 0.5


def may_repeat_answered(method: str, status: int) -> bool:
    """Whether a request with this answer may be repeated."""
    if status == TOO_MANY_REQUESTS:
        return True
    return status in OUTAGES and method.upper() in SAFE_METHODS


def may_repeat_unanswered(method: str, *, is_sent: bool) -> bool:
    """Whether a request without an answer may be repeated.

    :param is_sent: whether any of it may have been sent.
    """
    return not is_sent or method.upper() in SAFE_METHODS


def pause(repeats: int, headers: Mapping[str, str]) -> float:
    """Return how many seconds to wait before the next attempt.

    At least as long as Keap asks, and not at the same moment as others.

    :param repeats: how many there have been in this call.
    :param headers: of the answer; empty without one.
    """
    longest = min(FIRST_PAUSE_SECONDS * 2.0 ** min(repeats, 9), LONGEST_PAUSE_SECONDS)
    backoff = random.uniform(longest / 2, longest)  # noqa: S311  # only spreads the attempts
    asked = wait_for(headers)
    if asked is None:
        return backoff
    return max(asked + random.uniform(0, FIRST_PAUSE_SECONDS / 2), backoff)  # noqa: S311


def fits(pause_seconds: float, seconds_left: float) -> bool:
    """Whether there is time for another attempt after a pause."""
    return pause_seconds + SHORTEST_ATTEMPT_SECONDS <= seconds_left
