"""The demo's processes: started together, watched, and stopped together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from . import tethered
from .errors import DemoError

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.1
START_SECONDS = 60
STOP_SECONDS = 15  # a Celery worker takes about five


class Process:
    """One process in a session of its own, so that a Ctrl-C in the terminal spares it."""

    def __init__(
        self, name: str, python_arguments: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        tether = [sys.executable, tethered.__file__, str(os.getpid())]
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                [*tether, sys.executable, *python_arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def raise_if_ended(self) -> None:
        """:raises DemoError: where the process has ended, with its last words."""
        code = self._popen.poll()
        if code is not None:
            raise DemoError(
                f"The {self.name} ended by itself (exit code {code}). {self.last_words()}"
            )

    def last_words(self, count: int = 15) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-count:]
        return "\n".join([f"The end of {self.log}:", *(f"    {line}" for line in lines)])

    def stop(self) -> None:
        """Ask the process to end, wait, and end by force what is left of its group."""
        self._popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()


class Processes:
    """All processes of a demo. On leaving, the one that was started last stops first."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._environment = environment
        self._started: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._started:
            self._started.pop().stop()

    def start(self, name: str, *python_arguments: str) -> Process:
        log = self._logs / f"{name}.log"
        process = Process(name, python_arguments, self._environment, log)
        self._started.append(process)
        return process

    def raise_if_one_ended(self) -> None:
        """:raises DemoError: where one has ended that should be running."""
        for process in self._started:
            process.raise_if_ended()

    def wait_until(self, is_ready: Callable[[], bool], process: Process) -> None:
        """Wait until a process that was started is ready.

        :raises DemoError: where a process ends meanwhile, or this one takes a minute.
        """
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            self.raise_if_one_ended()
            if time.monotonic() > deadline:
                raise DemoError(
                    f"The {process.name} was not ready within {START_SECONDS} s. "
                    f"{process.last_words()}"
                )
            time.sleep(POLL_SECONDS)
