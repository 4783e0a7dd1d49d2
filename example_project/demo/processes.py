"""The demo's processes: started, monitored and stopped together."""

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
    """One process in its own session, so that Ctrl-C in the terminal does not stop it."""

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
        """:raises DemoError: the process has ended; contains the end of its log."""
        code = self._popen.poll()
        if code is not None:
            raise DemoError(f"The {self.name} has ended (exit code {code}). {self.log_end()}")

    def log_end(self, count: int = 15) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-count:]
        return "\n".join([f"The end of {self.log}:", *(f"    {line}" for line in lines)])

    def stop(self) -> None:
        """Terminate the process, wait, and kill the rest of its group."""
        self._popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()


class Processes:
    """All processes of a demo. On exit, they are stopped in reverse order."""

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
        """:raises DemoError: a process has ended."""
        for process in self._started:
            process.raise_if_ended()

    def wait_until(self, is_ready: Callable[[], bool], process: Process) -> None:
        """Wait until a started process is ready.

        :raises DemoError: a process ended, or this one was not ready after a minute.
        """
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            self.raise_if_one_ended()
            if time.monotonic() > deadline:
                raise DemoError(
                    f"The {process.name} was not ready within {START_SECONDS} s. "
                    f"{process.log_end()}"
                )
            time.sleep(POLL_SECONDS)
