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

ROOT: Final = Path(__file__).resolve().parent.parent
# Longer than a run, and than a process that was stopped needs to find out.
END_SECONDS: Final = 30.0
# How long to wait for a process to be at it, and how soon after that it is killed or stopped.
AIM_SECONDS: Final = 0.5
AFTER_SECONDS: Final = 0.1


@dataclass(slots=True)
class Worker:
    """One process."""

    role: str
    process: subprocess.Popen[bytes]
    log: Path
    resumes_at: float | None = None
    """While it is stopped: until when, as monotonic time."""


class Crew:
    """As many processes of each role as there should be, at any time."""

    def __init__(self, folder: Path, roles: list[str], random: Random) -> None:
        self._folder = folder
        self._random = random
        self.killed: set[int] = set()
        self.crashed: list[str] = []
        """What processes said that ended by themselves."""
        self.stops = 0
        self.workers: list[Worker] = [self._start(role) for role in roles]

    def kill(self) -> None:
        """Kill one of them, perhaps while it is at it, and replace it at once."""
        worker = self._random.choice(self.workers)
        self._aim(worker)
        worker.process.kill()
        if worker.process.wait() != -signal.SIGKILL:
            return  # it was faster, by a crash
        self.killed.add(worker.process.pid)
        self._replace(worker)

    def stop(self, seconds: float) -> None:
        """Stop one of them, perhaps while it is at it, for so long."""
        running = [worker for worker in self.workers if worker.resumes_at is None]
        if not running:
            return
        worker = self._random.choice(running)
        self._aim(worker)
        worker.process.send_signal(signal.SIGSTOP)
        worker.resumes_at = time.monotonic() + seconds
        # From a thread: it may hold a lock that the rest of this process waits for.
        timer = threading.Timer(seconds, worker.process.send_signal, [signal.SIGCONT])
        timer.daemon = True
        timer.start()
        self.stops += 1

    def look_after(self) -> None:
        """Note which ones go on again, and replace those that have ended."""
        for worker in list(self.workers):
            if worker.resumes_at is not None and time.monotonic() > worker.resumes_at:
                worker.resumes_at = None
            if worker.process.poll() is not None:
                self.crashed.append(self._last_words(worker))
                self._replace(worker)

    def end(self) -> None:
        """Let each of them finish what it is doing."""
        for worker in self.workers:
            worker.process.send_signal(signal.SIGCONT)
            worker.process.terminate()
        ends_at = time.monotonic() + END_SECONDS
        for worker in self.workers:
            try:
                code = worker.process.wait(max(0.0, ends_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.crashed.append(f"{worker.process.pid} did not end in {END_SECONDS:g} s")
                worker.process.kill()
            else:
                if code not in (0, -signal.SIGTERM):  # the latter: before it was ready
                    self.crashed.append(self._last_words(worker))

    def abandon(self) -> None:
        """Kill whatever is left."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()

    def _start(self, role: str) -> Worker:
        seed = self._random.randrange(2**32)
        command = ["-m", "benchmarks.worker", role, str(self._folder), str(seed)]
        with (self._folder / "errors.txt").open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                # Not ours: whoever waits for our last word does not wait for a stray process.
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        return Worker(role, process, self._folder / f"{process.pid}.log")

    def _replace(self, worker: Worker) -> None:
        self.workers[self.workers.index(worker)] = self._start(worker.role)

    def _aim(self, worker: Worker) -> None:
        """Most times, wait until it writes down something that it does."""
        if self._random.random() < 0.25:
            return
        size, ends_at = _size(worker.log), time.monotonic() + AIM_SECONDS
        while _size(worker.log) == size and time.monotonic() < ends_at:
            time.sleep(0.0005)
        # Sooner rather than later: what follows a reply is over in a few milliseconds.
        time.sleep(AFTER_SECONDS * self._random.random() ** 3)

    def _last_words(self, worker: Worker) -> str:
        words = (self._folder / "errors.txt").read_text(errors="replace").splitlines()[-1:]
        code = worker.process.returncode
        return f"{worker.role} {worker.process.pid} ended with code {code}: {' '.join(words)}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
