"""The sandbox's clock, which tests can move."""

import threading
import time
from collections.abc import Callable


class Clock:
    """Returns epoch seconds: those of `source`, plus the seconds added by `advance`."""

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source
        self._offset_seconds = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        """Return the time in seconds since the epoch."""
        return self._source() + self._offset_seconds

    def advance(self, seconds: float) -> None:
        """Move the clock; a negative number moves it back."""
        with self._lock:
            self._offset_seconds += seconds
