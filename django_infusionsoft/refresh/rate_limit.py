"""The limit of refreshes per second, which all workers of an application share.

A worker reserves one slot for each claim in the application's row, and sends at these times. The
workers need no other communication.
"""

import math
import time
from datetime import timedelta
from typing import Final

from django_infusionsoft.conf import conf
from django_infusionsoft.storage.applications import Application, row_of, state_of, states
from django_infusionsoft.storage.database import DatabaseNow, own_transaction

# If slots are reserved further ahead than this, workers wait before they claim: leases are short.
AHEAD_SECONDS: Final = 1.0


def seconds_until_free(alias: str) -> float:
    """Return the seconds until more may be claimed; infinite if no slot is reserved."""
    if not conf.REFRESH_RATE:
        return math.inf
    with own_transaction(alias):
        found = list(states(alias).filter(reserved_until__gt=DatabaseNow()))
    ends = [each.reserved_until - each.database_now for each in found if each.reserved_until]
    return max(0.0, min((end.total_seconds() for end in ends), default=math.inf) - AHEAD_SECONDS)


def reserve(alias: str, application: Application | None, count: int) -> list[float]:
    """Reserve slots; return the time of each by ``time.monotonic()``."""
    if not conf.REFRESH_RATE:
        return [0.0] * count
    interval = timedelta(seconds=1 / conf.REFRESH_RATE)
    while True:
        with own_transaction(alias):
            state = state_of(alias, application)
            local = time.monotonic()
            now, seen = state.database_now, state.reserved_until
            start = now if seen is None else max(now, seen)
            same = row_of(alias, state).filter(reserved_until=seen)
            if same.update(reserved_until=start + count * interval):
                wait = (start - now).total_seconds()
                return [local + wait + n * interval.total_seconds() for n in range(count)]
