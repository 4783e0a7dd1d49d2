"""Runs the sweeps to measure: those of the app, and those to compare them with."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from django.db import connection

from benchmarks import credentials
from benchmarks.sandbox_process import SandboxProcess
from benchmarks.scales import Scale
from benchmarks.timed_process import TimedProcess, Timing, run_timed

WAN_SECONDS: Final = 0.05
POLL_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Sweep:
    """The figures of a sweep by one process or several."""

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
        """CPU time of the processes per refresh, in milliseconds."""
        return self.cpu_seconds / self.refreshed * 1000


class Bench:
    """Runs sweeps with this run's sandbox and sizes."""

    def __init__(self, sandbox: SandboxProcess, scale: Scale, *, concurrency: int) -> None:
        self.sandbox = sandbox
        self.scale = scale
        self.concurrency = concurrency
        self._swept: dict[int, Sweep] = {}

    def refresh_due(
        self,
        due: int,
        *,
        latency: float = WAN_SECONDS,
        concurrency: int = 0,
        processes: int = 1,
        watch: Callable[[], None] | None = None,
    ) -> Sweep:
        """Refresh all due credentials with worker processes of the app.

        :param latency: at the server, in seconds.
        :param watch: called repeatedly while the first process runs.
        """
        credentials.make_due()
        self.sandbox.set_latency(latency)
        settings = {"INFUSIONSOFT_REFRESH_CONCURRENCY": concurrency or self.concurrency}
        workers = [TimedProcess("refresh_due", settings=settings) for _ in range(processes)]
        try:
            for worker in workers:
                worker.run()
            while watch and workers[0].is_running:
                watch()
                time.sleep(POLL_SECONDS)
            return _summed_up([worker.result() for worker in workers], due)
        finally:
            for worker in workers:
                worker.kill()

    def plain_threads(
        self, due: int, *, latency: float = WAN_SECONDS, concurrency: int = 0
    ) -> Sweep:
        """Post as many requests from plain threads."""
        return self._post("plain_threads", due, latency, concurrency or self.concurrency)

    def raw_sockets(self, due: int, *, concurrency: int) -> Sweep:
        """Post as many requests with the cheapest client."""
        return self._post("raw_sockets", due, 0.0, concurrency)

    def peer(self, name: str, due: int) -> Sweep:
        """Refresh as many accounts with one of the packages that sites use today."""
        from benchmarks import peers

        peers.store(self.sandbox.issue(due))
        self.sandbox.set_latency(WAN_SECONDS)
        return _summed_up([run_timed("peers", {**self.client, "peer": name})], due)

    def store_due(self, due: int) -> None:
        """Store this number of credentials, all of them due, and no others."""
        credentials.delete_all()
        credentials.add_due(self.sandbox.issue(due))

    def sweep_without_latency(self, due: int) -> Sweep:
        """Refresh this number without latency at the server; each number is measured once."""
        if due not in self._swept:
            print_progress(f"sweep of {due:,}, 0 ms")
            self.store_due(due)
            self._swept[due] = self.refresh_due(due, latency=0.0)
        return self._swept[due]

    @property
    def client(self) -> dict[str, str]:
        """The URL and the client for a process that calls the token endpoint."""
        names = ("token_url", "client_id", "client_secret")
        return {name: self.sandbox.settings[f"INFUSIONSOFT_{name.upper()}"] for name in names}

    def _post(self, workload: str, due: int, latency: float, concurrency: int) -> Sweep:
        refresh_tokens = [grant.refresh_token for grant in self.sandbox.issue(due)]
        self.sandbox.set_latency(latency)
        job = {**self.client, "refresh_tokens": refresh_tokens, "concurrency": concurrency}
        return _summed_up([run_timed(workload, job)], due)


def median(sweeps: list[Sweep]) -> Sweep:
    """Return the sweep whose rate is the median one."""
    return sorted(sweeps, key=lambda each: each.rate)[len(sweeps) // 2]


def median_ratio(ours: list[Sweep], theirs: list[Sweep], figure: str) -> float:
    """Return the median of the ratios of a property, one ratio for each round."""
    pairs = zip(ours, theirs, strict=True)
    ratios: list[float] = [getattr(a, figure) / getattr(b, figure) for a, b in pairs]
    return statistics.median(ratios)


def count_connections() -> int:
    """Return the number of other connections to this database."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        return int(cursor.fetchone()[0])


def print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _summed_up(timings: list[Timing], due: int) -> Sweep:
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
