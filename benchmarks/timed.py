"""A process whose work is timed inside itself, from a signal to its end, without the setup."""

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

READY: Final = "ready"


@dataclass(frozen=True, slots=True)
class Timing:
    """What a process says about its work. Moments are readings of ``time.monotonic()``."""

    started_at: float
    ended_at: float
    cpu_seconds: float
    """User and system time of all its threads."""
    peak_bytes: int
    """The most that it had in memory, from its start on."""
    facts: dict[str, Any]
    """What the work returned."""

    @property
    def seconds(self) -> float:
        return self.ended_at - self.started_at


class Timed:
    """One process: starts and prepares at once, works when told to.

    :param module: of ``benchmarks``; its process calls ``serve()``.
    :param settings: Django settings besides those of the process that starts it.
    """

    def __init__(
        self, module: str, job: Job | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        self._module = module
        known = json.loads(os.environ.get("BENCHMARKS_SETTINGS", "{}"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "BENCHMARKS_SETTINGS": json.dumps({**known, **(settings or {})})},
        )
        self._tell(json.dumps(job or {}))
        if self._hear() != READY:
            self.end()
            raise RuntimeError(f"benchmarks.{module} did not get ready: see above.")

    @property
    def is_working(self) -> bool:
        return self._process.poll() is None

    def go(self) -> None:
        """Let it work."""
        self._tell("go")

    def end(self) -> None:
        """Let nothing of it be left, whatever it is at."""
        if self.is_working:
            self._process.kill()
        self._process.communicate()

    def result(self) -> Timing:
        """Wait for the end of the work.

        :raises RuntimeError: it broke down.
        """
        line = self._hear()
        code = self._process.wait()
        if code or not line:
            raise RuntimeError(f"benchmarks.{self._module} ended with {code}: see above.")
        return Timing(**json.loads(line))

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101  # it is a pipe
        print(line, file=self._process.stdin, flush=True)

    def _hear(self) -> str:
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        return self._process.stdout.readline().strip()


def timed(
    module: str, job: Job | None = None, settings: Mapping[str, Any] | None = None
) -> Timing:
    """Start a process, let it work, and return what it says."""
    process = Timed(module, job, settings)
    try:
        process.go()
        return process.result()
    finally:
        process.end()


def serve(prepare: Callable[[Job], Work]) -> None:
    """Be such a process: prepare, wait for the signal, work, and tell."""
    work = prepare(json.loads(sys.stdin.readline()))
    print(READY, flush=True)
    if not sys.stdin.readline():
        return  # whoever started it is gone
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
    # Not ru_maxrss, which begins with what the process had that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise RuntimeError("This system does not tell how much memory a process had.")
