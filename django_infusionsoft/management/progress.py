"""Progress of a run for ``infusionsoft_refresh``: a bar on a terminal, lines elsewhere."""

import os
import shutil
import sys
from contextlib import suppress
from typing import Final

from django.core.management.base import OutputWrapper

from django_infusionsoft import elapsed
from django_infusionsoft.refresh.run_result import Run

# A narrower bar shows nothing.
MIN_BAR_COLUMNS: Final = 5


class Lines:
    """A line now and then, for a log."""

    pause_seconds = 10.0

    def __init__(self, stream: OutputWrapper) -> None:
        self._stream = stream
        self._started = self._shown = elapsed.monotonic()

    def __call__(self, run: Run) -> None:
        """Show the run's counts, unless they were shown ``pause_seconds`` ago or less."""
        now = elapsed.monotonic()
        if now - self._shown >= self.pause_seconds:
            self._shown = now
            self._write(self._text(run))

    def finish(self, run: Run) -> None:
        """Show the final counts; a log has the command's own last line."""

    def close(self) -> None:
        """Prepare the stream for other output, even if the run failed."""

    def _text(self, run: Run) -> str:
        return f"{self._facts(run)}\n"

    def _facts(self, run: Run, of: str = "") -> str:
        seconds = elapsed.monotonic() - self._started
        speed = run.tried / seconds if seconds else 0.0
        return f"{run.tried}{of} {speed:.1f}/s failed={run.tried - run.refreshed}"

    def _write(self, text: str) -> None:
        # A closed terminal or pipe is no reason to stop the run.
        with suppress(OSError):
            self._stream.write(text, style_func=str, ending="")
            self._stream.flush()


class Bar(Lines):
    """A bar that is redrawn on one line of a terminal."""

    pause_seconds = 0.1

    def __init__(self, stream: OutputWrapper, total: int) -> None:
        super().__init__(stream)
        self._total = total
        self._write(self._line(0, f"0/{total}"))

    def finish(self, run: Run) -> None:
        self._write(self._text(run))

    def close(self) -> None:
        self._write("\n")

    def _text(self, run: Run) -> str:
        total = max(self._total, run.tried)  # more can become due during the run
        return self._line(run.tried / total if total else 1.0, self._facts(run, f"/{total}"))

    def _line(self, part: float, facts: str) -> str:
        """Return a full line: the bar, filled by ``part``, and the facts."""
        # Some terminals start a new line when the last column is written.
        columns = _columns() - 1
        length = columns - len(facts) - len("[] ")
        if length < MIN_BAR_COLUMNS:
            return f"\r{facts[:columns]:<{columns}}"
        full = int(length * part)
        return f"\r[{'#' * full}{'-' * (length - full)}] {facts}"


def _columns() -> int:
    # shutil reads COLUMNS and stdout, which may be a file while stderr is a terminal.
    size = os.terminal_size((80, 24))
    with suppress(OSError, ValueError):
        size = os.get_terminal_size(sys.stderr.fileno())
    return shutil.get_terminal_size(size).columns or 80
