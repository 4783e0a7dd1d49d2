"""When to refresh: arithmetic on seconds, without a clock or a database."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from zlib import crc32

from django_infusionsoft.conf import conf

# Around the full hour Keap's token endpoint is slowest (infusionsoft-php #220).
BUSY_SECONDS: Final = 300
# Shorter lifetimes are a sandbox's: they need not avoid the full hour.
SHORT_LIFETIME_SECONDS: Final = 2 * 3600
# Spread of the refresh time around the fraction of the lifetime, each way.
SPREAD: Final = 0.05
MIN_BACKOFF_SECONDS: Final = 120.0
MAX_BACKOFF_SECONDS: Final = 3600.0
# Including the jitter.
MAX_PAUSE_SECONDS: Final = 1.25 * MAX_BACKOFF_SECONDS
# Between two replacements of an access token that the API rejects.
MIN_REPLACEMENT_PAUSE_SECONDS: Final = 60.0
MIN_PROBE_PAUSE_SECONDS: Final = 15.0
MAX_PROBE_PAUSE_SECONDS: Final = 600.0
# While Keap is down, and every account waits for it.
MAX_OUTAGE_PAUSE_SECONDS: Final = 60.0


def jitter(seed: str) -> float:
    """Return a number in [0, 1) that is always the same for the same seed."""
    return crc32(seed.encode()) / 2**32


@dataclass(frozen=True, slots=True)
class Plan:
    """When token pairs are refreshed."""

    fraction: float = 0.75
    """The part of the lifetime after which a pair is refreshed."""
    refresh_token_seconds: float = 45 * 86_400.0
    """How long an unused refresh token stays valid."""

    def delay(self, seconds_left: float, *, seed: str, now: datetime) -> float:
        """Return the seconds until the pair should be refreshed.

        :param seconds_left: the rest of the access token's lifetime.
        :param seed: keeps one credential's offset in the spread the same.
        :param now: needed to avoid the full hour.
        """
        offset = jitter(seed)
        # However long the access token is valid: an unused refresh token expires.
        lifetime = min(max(0.0, seconds_left), self.refresh_token_seconds)
        delay = lifetime * (self.fraction + SPREAD * (2 * offset - 1))
        if lifetime < SHORT_LIFETIME_SECONDS:
            return delay
        return delay - _seconds_into_rush(now.timestamp() + delay, offset)


def refresh_plan() -> Plan:
    """Return the plan of the settings."""
    return Plan(conf.REFRESH_FRACTION, conf.REFRESH_TOKEN_DAYS * 86_400.0)


def backoff(failures: int, *, seed: str) -> float:
    """Return the pause in seconds after this many failures in a row: 2 minutes, 4, … 1 hour."""
    pause = min(MIN_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 10), MAX_BACKOFF_SECONDS)
    return pause * (0.75 + 0.5 * jitter(f"{seed}:{failures}"))


def replacement_pause(rejections: int) -> float:
    """Return the pause in seconds after this many replacements in a row: 1 minute, 2, … 1 hour."""
    pause = MIN_REPLACEMENT_PAUSE_SECONDS * 2.0 ** min(max(rejections - 1, 0), 10)
    return min(pause, MAX_BACKOFF_SECONDS)


def turn_pause(failures: int) -> float:
    """Return the pause in seconds of an account whose rejection is not believed: 1 h or 1 day."""
    return 3600.0 if failures < 24 else 86_400.0


def probe_pause(probes: int, *, longest: float = MAX_PROBE_PAUSE_SECONDS) -> float:
    """Return the pause in seconds after this many failed probes: 15, 30, … ``longest``."""
    return min(MIN_PROBE_PAUSE_SECONDS * 2.0 ** min(probes, 10), longest)


def _seconds_into_rush(timestamp: float, offset: float) -> float:
    """Return how many seconds to go back, to spread evenly over the 50 quiet minutes before."""
    since_rush = (timestamp + BUSY_SECONDS) % 3600
    if since_rush >= 2 * BUSY_SECONDS:
        return 0.0
    return since_rush + offset * (3600 - 2 * BUSY_SECONDS)
