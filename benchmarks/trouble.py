"""What goes wrong, when, and to whom: all by the seed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Final

from django.db import DatabaseError, connection

from benchmarks.crew import Crew
from django_infusionsoft.sandbox import Fault, Sandbox, faults

# Longer than a process waits for a reply.
TOO_LONG_SECONDS: Final = 3.0


def _named(name: str, weight: int, fault: Fault) -> tuple[Fault, int]:
    return replace(fault, names=(name,)), weight


# What a presentation can meet, and how often. First those that spend the refresh token and whose
# reply nobody can have read.
LOSING: Final = [
    _named("reply dropped", 3, faults.drop_after()),
    _named("reply reset", 1, faults.drop_after(is_reset=True)),
    _named("reply cut off midway", 1, faults.drop_midway()),
    _named("reply too late", 1, faults.latency_after(TOO_LONG_SECONDS)),
    _named("rotated too late", 1, faults.latency(TOO_LONG_SECONDS)),
]
HARMLESS: Final = [
    _named("request dropped", 4, faults.drop_before()),
    _named("request reset", 2, faults.drop_before(is_reset=True)),
    _named("503", 4, faults.error_503()),
    _named("503, retry after", 1, faults.error_503(retry_after=2)),
    _named("429", 1, faults.throttled()),
    _named("HTML", 1, faults.html()),
]
# So slow that a process can be killed with a reply on its way, and in time for all others.
SLOW_SECONDS: Final = (0.02, 0.4)
# How to see the other sessions of this database, and how to end one.
SESSIONS: Final = {
    "postgresql": (
        """SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY pid""",
        "SELECT pg_terminate_backend(%s)",
    ),
    "mysql": (
        """SELECT id FROM information_schema.processlist
        WHERE db = DATABASE() AND id <> CONNECTION_ID() ORDER BY id""",
        "KILL CONNECTION %s",
    ),
}


class Trouble:
    """Makes each kind of trouble so many times a minute, at random moments."""

    def __init__(
        self,
        sandbox: Sandbox,
        crew: Crew,
        *,
        rates: Mapping[str, float],
        stop_seconds: tuple[float, float],
        random: Random,
    ) -> None:
        """
        :param rates: of ``kills``, ``stops``, ``faults``, ``slow`` and ``cuts``, per minute.
        :param stop_seconds: the shortest and the longest time that a process is stopped for.
        """
        self._sandbox = sandbox
        self._crew = crew
        self._rates = {name: rate for name, rate in rates.items() if rate > 0}
        self._stop_seconds = stop_seconds
        self._random = random
        started = time.monotonic()
        self._next = {name: started + self._pause(name) for name in self._rates}
        self.cuts = 0
        """Connections to the database that were ended."""

    def make(self) -> None:
        """Make the trouble that is due."""
        for name in self._next:
            while time.monotonic() > self._next[name]:
                self._make(name)
                self._next[name] += self._pause(name)

    def _pause(self, name: str) -> float:
        return self._random.expovariate(self._rates[name] / 60)

    def _make(self, name: str) -> None:
        match name:
            case "kills":
                self._crew.kill()
            case "stops":
                self._crew.stop(self._random.uniform(*self._stop_seconds))
            case "faults":
                known, weights = zip(*LOSING, *HARMLESS, strict=True)
                self._plan(self._random.choices(known, weights=weights)[0])
            case "slow":
                seconds = self._random.uniform(*SLOW_SECONDS)
                self._plan(replace(faults.latency_after(seconds), names=("slow",)))
            case "cuts":
                self._cut()

    def _plan(self, fault: Fault) -> None:
        account = self._random.choice(self._sandbox.accounts).app_id
        # For one account: a probe, which is of none, is not to use it up.
        self._sandbox.plan(fault, endpoint="refresh", account=account)

    def _cut(self) -> None:
        """End somebody else's connection to the database."""
        if connection.vendor not in SESSIONS:
            return
        others, end = SESSIONS[connection.vendor]
        with connection.cursor() as cursor:
            cursor.execute(others)
            found = [row[0] for row in cursor.fetchall()]
            if found:
                with suppress(DatabaseError):  # gone meanwhile
                    cursor.execute(end, [self._random.choice(found)])
                    self.cuts += 1
