"""The processes of the site: started, stopped, killed and replaced."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.processes import ROOT

# Longer than a run takes, even for a process that was stopped in the middle of it.
TERMINATE_SECONDS: Final = 30.0
# How long to wait until a process does something, and how soon afterwards it is killed or stopped.
ACTIVITY_SECONDS: Final = 0.5
MAX_DELAY_SECONDS: Final = 0.1


@dataclass(slots=True)
class Worker:
    """One process."""

    role: str
    process: subprocess.Popen[bytes]
    log: Path
    continues_at: float | None = None
    """While it is stopped: until when, as monotonic time."""


class WorkerPool:
    """Keeps the same number of processes of each role running."""

    def __init__(self, folder: Path, roles: list[str], random: Random) -> None:
        self._folder = folder
        self._random = random
        self.killed: set[int] = set()
        self.crashes: list[str] = []
        """A line for each process that ended without being killed."""
        self.stops = 0
        self.workers: list[Worker] = [self._start(role) for role in roles]

    def kill(self) -> None:
        """Kill a process, preferably while it works, and replace it at once."""
        worker = self._random.choice(self.workers)
        self._wait_for_activity(worker)
        worker.process.kill()
        if worker.process.wait() != -signal.SIGKILL:
            return  # it crashed first
        self.killed.add(worker.process.pid)
        self._replace(worker)

    def stop(self, seconds: float) -> None:
        """Stop a process for some seconds, preferably while it works."""
        running = [worker for worker in self.workers if worker.continues_at is None]
        if not running:
            return
        worker = self._random.choice(running)
        self._wait_for_activity(worker)
        worker.process.send_signal(signal.SIGSTOP)
        worker.continues_at = time.monotonic() + seconds
        # From a thread: the stopped process may hold a lock that this process waits for.
        timer = threading.Timer(seconds, worker.process.send_signal, [signal.SIGCONT])
        timer.daemon = True
        timer.start()
        self.stops += 1

    def check(self) -> None:
        """Note which stopped processes continue, and replace those that have ended."""
        for worker in list(self.workers):
            if worker.continues_at is not None and time.monotonic() > worker.continues_at:
                worker.continues_at = None
            if worker.process.poll() is not None:
                self.crashes.append(self._describe_exit(worker))
                self._replace(worker)

    def terminate(self) -> None:
        """Let each process finish its work and exit."""
        for worker in self.workers:
            worker.process.send_signal(signal.SIGCONT)
            worker.process.terminate()
        deadline = time.monotonic() + TERMINATE_SECONDS
        for worker in self.workers:
            try:
                code = worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pid = worker.process.pid
                self.crashes.append(f"{pid} did not end in {TERMINATE_SECONDS:g} s")
                worker.process.kill()
            else:
                if code not in (0, -signal.SIGTERM):  # the latter: while it was starting
                    self.crashes.append(self._describe_exit(worker))

    def kill_all(self) -> None:
        """Kill all processes that still run."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()

    def _start(self, role: str) -> Worker:
        seed = self._random.randrange(2**32)
        command = ["-m", "tests.system.soak.worker", role, str(self._folder), str(seed)]
        with (self._folder / "errors.txt").open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                # Not inherited: a leftover process would keep the stream of the caller open.
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        return Worker(role, process, self._folder / f"{process.pid}.log")

    def _replace(self, worker: Worker) -> None:
        self.workers[self.workers.index(worker)] = self._start(worker.role)

    def _wait_for_activity(self, worker: Worker) -> None:
        """Most times, wait until a process logs something."""
        if self._random.random() < 0.25:
            return
        size, deadline = _size(worker.log), time.monotonic() + ACTIVITY_SECONDS
        while _size(worker.log) == size and time.monotonic() < deadline:
            time.sleep(0.0005)
        # Short delays are likelier: what follows a reply takes a few milliseconds.
        time.sleep(MAX_DELAY_SECONDS * self._random.random() ** 3)

    def _describe_exit(self, worker: Worker) -> str:
        last_line = (self._folder / "errors.txt").read_text(errors="replace").splitlines()[-1:]
        code = worker.process.returncode
        return f"{worker.role} {worker.process.pid} ended with code {code}: {' '.join(last_line)}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
