"""The ceiling of refreshes per second, which all workers of an application keep together.

Who has claimed some books as many places in the application's row, one after the other, and sends
at these times. Nobody talks to anybody else.
"""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from django_infusionsoft.application_states import from_now, row_of, state_of, states
from django_infusionsoft.conf import conf
from django_infusionsoft.database import own_transaction

if TYPE_CHECKING:
    from django_infusionsoft.models import Application

# How far ahead places may be booked before others wait with their claims: leases are short.
AHEAD_SECONDS: Final = 1.0


def seconds_until_free(alias: str) -> float:
    """Return in how many seconds places may be booked again; infinite where none is booked out."""
    if not conf.REFRESH_RATE:
        return math.inf
    with own_transaction(alias):
        found = list(states(alias).filter(booked_until__gt=from_now(AHEAD_SECONDS)))
    ends = [each.booked_until - each.database_now for each in found if each.booked_until]
    return max(0.0, min((end.total_seconds() for end in ends), default=math.inf) - AHEAD_SECONDS)


def book(alias: str, application: Application | None, count: int) -> list[float]:
    """Book that many places; return when each of them is, as ``time.monotonic()`` reads."""
    if not conf.REFRESH_RATE:
        return [0.0] * count
    interval = timedelta(seconds=1 / conf.REFRESH_RATE)
    while True:
        with own_transaction(alias):
            state = state_of(alias, application)
            local = time.monotonic()
            now, seen = state.database_now, state.booked_until
            start = now if seen is None else max(now, seen)
            same = row_of(alias, state).filter(booked_until=seen)
            if same.update(booked_until=start + count * interval):
                wait = (start - now).total_seconds()
                return [local + wait + n * interval.total_seconds() for n in range(count)]
