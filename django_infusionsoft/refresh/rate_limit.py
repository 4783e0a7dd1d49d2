"""The limit of refreshes per second, which all workers of an application share.

A worker reserves one slot for each claim in the application's row, and sends at these times. The
workers need no other communication.
"""

import logging
import math
from datetime import timedelta
from typing import Final

from django_infusionsoft import elapsed
from django_infusionsoft.conf import conf
from django_infusionsoft.keap.transport import lease_seconds
from django_infusionsoft.monitoring import heartbeat
from django_infusionsoft.storage.applications import Application, row_of, state_of, states
from django_infusionsoft.storage.database import DatabaseNow, own_transaction
from django_infusionsoft.text import quoted

logger = logging.getLogger("django_infusionsoft")

# At most, including those that wait for a thread.
CLAIMS_PER_THREAD: Final = 5
# If slots are reserved further ahead than this, workers wait before they claim: leases are short.
AHEAD_SECONDS: Final = 1.0


def full_seconds() -> float:
    """Return how far ahead the slots of one worker can be reserved."""
    return AHEAD_SECONDS + CLAIMS_PER_THREAD * conf.REFRESH_CONCURRENCY / conf.REFRESH_RATE


def wait_range() -> tuple[float, float] | None:
    """Return for how many seconds slots are reserved if more must wait; ``None``: no limit.

    The greatest is what many workers together can reserve. More is an error: the database's clock
    has stepped back.
    """
    if not conf.REFRESH_RATE:
        return None
    return AHEAD_SECONDS, full_seconds() + lease_seconds()


def seconds_until_free(alias: str) -> float:
    """Return the seconds until more may be claimed; infinite if no slot is reserved."""
    if (waits := wait_range()) is None:
        return math.inf
    with own_transaction(alias):
        found = list(states(alias).filter(reserved_until__gt=DatabaseNow()))
    ends = [each.reserved_until - each.database_now for each in found if each.reserved_until]
    seconds = [end.total_seconds() for end in ends]
    least = min((each if each <= waits[1] else 0.0 for each in seconds), default=math.inf)
    return max(0.0, least - waits[0])


def reserve(alias: str, application: Application | None, count: int) -> list[float]:
    """Reserve slots; return the time of each by ``elapsed.monotonic()``."""
    if (waits := wait_range()) is None:
        return [0.0] * count
    interval = timedelta(seconds=1 / conf.REFRESH_RATE)
    while True:
        with own_transaction(alias):
            state = state_of(alias, application)
            local = elapsed.monotonic()
            now, seen = state.database_now, state.reserved_until
            start = now if seen is None else max(now, seen)
            if is_cut := start > now + timedelta(seconds=waits[1]):
                start = now + timedelta(seconds=full_seconds())
            same = row_of(alias, state).filter(reserved_until=seen)
            if same.update(reserved_until=start + count * interval):
                if is_cut:
                    logger.error("clock_stepped_back application=%s", quoted(state))
                    heartbeat.record_clock_step(alias)
                wait = (start - now).total_seconds()
                return [local + wait + n * interval.total_seconds() for n in range(count)]
