"""Injects faults at random moments, which the seed determines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Final

from django.db import DatabaseError, connection

from django_infusionsoft.sandbox import Fault, Sandbox, faults
from tests.system.soak.worker_pool import WorkerPool

# Longer than a process waits for a reply.
TOO_LONG_SECONDS: Final = 3.0


def _fault(name: str, weight: int, fault: Fault) -> tuple[Fault, int]:
    return replace(fault, names=(name,)), weight


# The faults of Keap's replies, with their weights. First those that spend the refresh token and
# lose the reply.
REPLY_LOST: Final = [
    _fault("reply dropped", 3, faults.drop_after()),
    _fault("reply reset", 1, faults.drop_after(is_reset=True)),
    _fault("reply cut off midway", 1, faults.drop_midway()),
    _fault("reply too late", 1, faults.latency_after(TOO_LONG_SECONDS)),
    _fault("rotated too late", 1, faults.latency(TOO_LONG_SECONDS)),
]
NOT_ROTATED: Final = [
    _fault("request dropped", 4, faults.drop_before()),
    _fault("request reset", 2, faults.drop_before(is_reset=True)),
    _fault("503", 4, faults.error_503()),
    _fault("503, retry after", 1, faults.error_503(retry_after=2)),
    _fault("429", 1, faults.throttled()),
    _fault("HTML", 1, faults.html()),
]
# Slow enough to kill a process while a reply is under way, and fast enough for the timeout.
SLOW_SECONDS: Final = (0.02, 0.4)
# How to list the other sessions of this database, and how to end one.
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


class FaultInjector:
    """Injects each kind of fault so many times a minute, at random moments."""

    def __init__(
        self,
        sandbox: Sandbox,
        pool: WorkerPool,
        *,
        rates: Mapping[str, float],
        stop_seconds: tuple[float, float],
        random: Random,
    ) -> None:
        """
        :param rates: of ``kills``, ``stops``, ``faults``, ``slow`` and ``disconnects``, per
            minute.
        :param stop_seconds: the shortest and the longest time for which a process is stopped.
        """
        self._sandbox = sandbox
        self._pool = pool
        self._rates = {kind: rate for kind, rate in rates.items() if rate > 0}
        self._stop_seconds = stop_seconds
        self._random = random
        started = time.monotonic()
        self._next = {kind: started + self._interval(kind) for kind in self._rates}
        self.disconnects = 0
        """How many connections to the database were ended."""

    def inject_due(self) -> None:
        """Inject the faults whose time has come."""
        for kind in self._next:
            while time.monotonic() > self._next[kind]:
                self._inject(kind)
                self._next[kind] += self._interval(kind)

    def _interval(self, kind: str) -> float:
        return self._random.expovariate(self._rates[kind] / 60)

    def _inject(self, kind: str) -> None:
        match kind:
            case "kills":
                self._pool.kill()
            case "stops":
                self._pool.stop(self._random.uniform(*self._stop_seconds))
            case "faults":
                choices, weights = zip(*REPLY_LOST, *NOT_ROTATED, strict=True)
                self._plan(self._random.choices(choices, weights=weights)[0])
            case "slow":
                seconds = self._random.uniform(*SLOW_SECONDS)
                self._plan(replace(faults.latency_after(seconds), names=("slow",)))
            case "disconnects":
                self._disconnect()

    def _plan(self, fault: Fault) -> None:
        account = self._random.choice(self._sandbox.accounts).app_id
        # For one account: a probe, which belongs to none, must not use it up.
        self._sandbox.plan(fault, endpoint="refresh", account=account)

    def _disconnect(self) -> None:
        """End another process's connection to the database."""
        if connection.vendor not in SESSIONS:
            return
        others, end = SESSIONS[connection.vendor]
        with connection.cursor() as cursor:
            cursor.execute(others)
            found = [row[0] for row in cursor.fetchall()]
            if found:
                with suppress(DatabaseError):  # it may have ended
                    cursor.execute(end, [self._random.choice(found)])
                    self.disconnects += 1
