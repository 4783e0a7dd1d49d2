"""What all measures of a sweep share: the sandbox, the sizes, and the sweeps themselves."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from django.db import connection

from benchmarks import stock
from benchmarks.keap import Keap
from benchmarks.scales import Scale
from benchmarks.timed import Timed, Timing, timed

WAN_SECONDS: Final = 0.05
POLL_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep took, by one process or several."""

    refreshed: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int

    @property
    def rate(self) -> float:
        """Refreshes per second."""
        return self.refreshed / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU of the processes for each refresh, in milliseconds."""
        return self.cpu_seconds / self.refreshed * 1000


class Bench:
    """Makes the sweeps that measures ask for."""

    def __init__(self, keap: Keap, scale: Scale, *, concurrency: int) -> None:
        self.keap = keap
        self.scale = scale
        self.concurrency = concurrency
        self._swept: dict[int, Sweep] = {}

    def ours(
        self,
        due: int,
        *,
        latency: float = WAN_SECONDS,
        concurrency: int = 0,
        processes: int = 1,
        watch: Callable[[], None] | None = None,
    ) -> Sweep:
        """Refresh what is due, which is what is stored and not quiet.

        :param watch: called again and again while it runs.
        """
        stock.make_due()
        self.keap.be_slow(latency)
        settings = {"INFUSIONSOFT_REFRESH_CONCURRENCY": concurrency or self.concurrency}
        workers = [Timed("sweeper", settings=settings) for _ in range(processes)]
        try:
            for worker in workers:
                worker.go()
            while watch and workers[0].is_working:
                watch()
                time.sleep(POLL_SECONDS)
            return _added_up([worker.result() for worker in workers], due)
        finally:
            for worker in workers:
                worker.end()

    def plain(self, due: int, *, latency: float = WAN_SECONDS, concurrency: int = 0) -> Sweep:
        """Post the same requests from plain threads."""
        return self._posted("plain", due, latency, concurrency or self.concurrency)

    def hammered(self, due: int, *, concurrency: int) -> Sweep:
        """Post them as cheaply as can be."""
        return self._posted("hammer", due, 0.0, concurrency)

    def peer(self, name: str, due: int) -> Sweep:
        """Refresh the peers' rows, one after the other."""
        from benchmarks import peers

        peers.store(self.keap.issue(due))
        self.keap.be_slow(WAN_SECONDS)
        return _added_up([timed("peers", {**self.client, "peer": name})], due)

    def stock(self, due: int) -> None:
        """Let so many be stored, and all of them be due."""
        stock.clear()
        stock.add_due(self.keap.issue(due))

    def sweep_of(self, due: int) -> Sweep:
        """Refresh so many with nothing to wait for at the server; measured once."""
        if due not in self._swept:
            tell(f"sweep of {due:,}, 0 ms")
            self.stock(due)
            self._swept[due] = self.ours(due, latency=0.0)
        return self._swept[due]

    @property
    def client(self) -> dict[str, str]:
        """What a process needs to speak to the token endpoint."""
        names = ("token_url", "client_id", "client_secret")
        return {name: self.keap.settings[f"INFUSIONSOFT_{name.upper()}"] for name in names}

    def _posted(self, module: str, due: int, latency: float, concurrency: int) -> Sweep:
        refresh_tokens = [grant.refresh_token for grant in self.keap.issue(due)]
        self.keap.be_slow(latency)
        job = {**self.client, "refresh_tokens": refresh_tokens, "concurrency": concurrency}
        return _added_up([timed(module, job)], due)


def median(sweeps: list[Sweep]) -> Sweep:
    """Return the sweep whose rate is the median one."""
    return sorted(sweeps, key=lambda each: each.rate)[len(sweeps) // 2]


def median_ratio(ours: list[Sweep], theirs: list[Sweep], what: str) -> float:
    """Return the median of the rounds' ratios of a property."""
    pairs = zip(ours, theirs, strict=True)
    ratios: list[float] = [getattr(a, what) / getattr(b, what) for a, b in pairs]
    return statistics.median(ratios)


def connections() -> int:
    """Return how many others are connected to this database."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        return int(cursor.fetchone()[0])


def tell(line: str) -> None:
    """Say what is going on."""
    print(line, file=sys.stderr, flush=True)


def _added_up(timings: list[Timing], due: int) -> Sweep:
    refreshed = sum(each.facts["refreshed"] for each in timings)
    if refreshed != due:
        facts = "; ".join(str(each.facts) for each in timings)
        raise RuntimeError(f"{refreshed} of {due} were refreshed: {facts}")
    return Sweep(
        refreshed=refreshed,
        seconds=max(each.ended_at for each in timings) - min(each.started_at for each in timings),
        cpu_seconds=sum(each.cpu_seconds for each in timings),
        peak_bytes=max(each.peak_bytes for each in timings),
    )
