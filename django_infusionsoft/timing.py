"""When to refresh: pure arithmetic, in seconds, from nothing but its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from zlib import crc32

# Around the full hour Keap's token endpoint is slowest (infusionsoft-php #220).
BUSY_SECONDS: Final = 300
# Lives shorter than this are a sandbox's; an hour's rush means nothing to them.
SHORT_LIFE_SECONDS: Final = 2 * 3600
# Spread of the refresh time around the fraction of the life, each way.
SPREAD: Final = 0.05
MIN_BACKOFF_SECONDS: Final = 120.0
MAX_BACKOFF_SECONDS: Final = 3600.0
# With the jitter.
MAX_PAUSE_SECONDS: Final = 1.25 * MAX_BACKOFF_SECONDS
MIN_PROBE_PAUSE_SECONDS: Final = 15.0
MAX_PROBE_PAUSE_SECONDS: Final = 600.0
# Where Keap is down and every account waits for it.
MAX_OUTAGE_PAUSE_SECONDS: Final = 60.0


def jitter(seed: str) -> float:
    """Return a number in [0, 1) that is always the same for the same seed."""
    return crc32(seed.encode()) / 2**32


@dataclass(frozen=True, slots=True)
class Plan:
    """When pairs are refreshed."""

    fraction: float = 0.75
    """The part of the life to let pass."""
    refresh_token_seconds: float = 45 * 86_400.0
    """How long a refresh token lives that is not used."""

    def delay(self, seconds_left: float, *, seed: str, now: datetime) -> float:
        """Return in how many seconds the pair should be refreshed.

        :param seconds_left: of the access token's life.
        :param seed: what keeps one credential's place in the spread the same.
        :param now: to stay away from the full hour with.
        """
        place = jitter(seed)
        # However long the access token lives: an idle refresh token dies.
        life = min(max(0.0, seconds_left), self.refresh_token_seconds)
        delay = life * (self.fraction + SPREAD * (2 * place - 1))
        if life < SHORT_LIFE_SECONDS:
            return delay
        return delay - _seconds_into_rush(now.timestamp() + delay, place)


def backoff(failures: int, *, seed: str) -> float:
    """Return the pause in seconds after this many failures in a row: 2 minutes, 4, … 1 hour."""
    pause = min(MIN_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 10), MAX_BACKOFF_SECONDS)
    return pause * (0.75 + 0.5 * jitter(f"{seed}:{failures}"))


def probe_pause(probes: int, *, longest: float = MAX_PROBE_PAUSE_SECONDS) -> float:
    """Return the pause in seconds after this many probes in vain: 15, 30, … and no longer."""
    return min(MIN_PROBE_PAUSE_SECONDS * 2.0 ** min(probes, 10), longest)


def _seconds_into_rush(timestamp: float, place: float) -> float:
    """Return how much earlier to go, so as to land evenly in the 50 quiet minutes before."""
    since_rush = (timestamp + BUSY_SECONDS) % 3600
    if since_rush >= 2 * BUSY_SECONDS:
        return 0.0
    return since_rush + place * (3600 - 2 * BUSY_SECONDS)
