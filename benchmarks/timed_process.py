"""A process that times its own work, without its startup."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Job = Mapping[str, Any]
Work = Callable[[], dict[str, Any]]
Prepare = Callable[[Job], Work]

READY: Final = "ready"


@dataclass(frozen=True, slots=True)
class Timing:
    """The measurements of a process. Moments are values of ``time.monotonic()``."""

    started_at: float
    ended_at: float
    cpu_seconds: float
    """User and system time of all its threads."""
    peak_bytes: int
    """Its largest resident memory since its start."""
    facts: dict[str, Any]
    """The result of the work."""

    @property
    def seconds(self) -> float:
        return self.ended_at - self.started_at


class TimedProcess:
    """Starts a process and waits until it is ready; ``run()`` starts the work.

    :param workload: a name in ``workloads.WORKLOADS``.
    :param settings: Django settings in addition to those of this process.
    """

    def __init__(
        self, workload: str, job: Job | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        self._workload = workload
        inherited = json.loads(os.environ.get("BENCHMARKS_SETTINGS", "{}"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.workloads", workload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "BENCHMARKS_SETTINGS": json.dumps({**inherited, **(settings or {})}),
            },
        )
        self._send(json.dumps(job or {}))
        if self._receive() != READY:
            self.kill()
            raise RuntimeError(f"The process {workload} failed to start: see above.")

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def run(self) -> None:
        """Start the work."""
        self._send("run")

    def kill(self) -> None:
        """Kill the process if it is still running."""
        if self.is_running:
            self._process.kill()
        self._process.communicate()

    def result(self) -> Timing:
        """Wait until the work is done, and return the measurements.

        :raises RuntimeError: the process failed.
        """
        line = self._receive()
        code = self._process.wait()
        if code or not line:
            raise RuntimeError(f"The process {self._workload} ended with code {code}: see above.")
        return Timing(**json.loads(line))

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101  # it is a pipe
        print(line, file=self._process.stdin, flush=True)

    def _receive(self) -> str:
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        return self._process.stdout.readline().strip()


def run_timed(
    workload: str, job: Job | None = None, settings: Mapping[str, Any] | None = None
) -> Timing:
    """Start a process, let it work, and return its measurements."""
    process = TimedProcess(workload, job, settings)
    try:
        process.run()
        return process.result()
    finally:
        process.kill()


def serve(prepare: Prepare) -> None:
    """Run in the process: prepare, wait for the start, work, and print the timing."""
    work = prepare(json.loads(sys.stdin.readline()))
    print(READY, flush=True)
    if not sys.stdin.readline():
        return  # the parent process is gone
    cpu_before, started_at = _cpu_seconds(), time.monotonic()
    facts = work()
    ended_at, cpu_after = time.monotonic(), _cpu_seconds()
    timing = {
        "started_at": started_at,
        "ended_at": ended_at,
        "cpu_seconds": cpu_after - cpu_before,
        "peak_bytes": _peak_bytes(),
        "facts": facts,
    }
    print(json.dumps(timing), flush=True)


def _cpu_seconds() -> float:
    return sum(os.times()[:2])


def _peak_bytes() -> int:
    # Not ru_maxrss, which starts at the memory of the parent process.
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise RuntimeError("This system does not report the peak memory of a process.")
