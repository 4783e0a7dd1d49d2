"""The clock for limits, pauses and durations.

A site's tests may stop the clocks of the module ``time``, as freezegun does. A loop that waits for
a moment on one of them would never end.
"""

import time
from typing import Final

_HAS_POSIX_CLOCKS: Final = hasattr(time, "clock_gettime")


def monotonic() -> float:
    """Return seconds that only grow, as ``time.monotonic()`` does, and that no tool stops."""
    # Windows has only the other.
    return time.clock_gettime(time.CLOCK_MONOTONIC) if _HAS_POSIX_CLOCKS else time.monotonic()  # noqa: TID251
