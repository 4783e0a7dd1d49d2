"""How far a run has come, for those who watch it: a bar on a terminal, and lines elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from django.core.management.base import OutputWrapper

if TYPE_CHECKING:
    from django_infusionsoft.runs import Run

BAR_PAUSE_SECONDS: Final = 0.1
LINE_PAUSE_SECONDS: Final = 10.0
# A narrower bar shows nothing; and terminals that do not know their width are mostly this wide.
SHORTEST_BAR: Final = 5
USUAL_COLUMNS: Final = 80


class Progress:
    """Is told how a run goes, as often as there is something new; shows nothing."""

    def __call__(self, run: Run) -> None:
        """Hear how far it has come."""

    def finish(self, run: Run) -> None:
        """Hear that it is over."""

    def close(self) -> None:
        """Leave the stream ready for other lines, whatever has become of the run."""


class _Shown(Progress):
    """Shows now and then how far the run has come."""

    pause_seconds: float

    def __init__(self, stream: OutputWrapper) -> None:
        self._stream = stream
        self._started = self._shown = time.monotonic()

    def __call__(self, run: Run) -> None:
        now = time.monotonic()
        if now - self._shown >= self.pause_seconds:
            self._shown = now
            self._write(self._text(run))

    def _text(self, run: Run) -> str:
        raise NotImplementedError

    def _write(self, text: str) -> None:
        # A terminal that was closed, or a reader that has gone, is no reason to break off a run.
        with suppress(OSError):
            self._stream.write(text, style_func=str, ending="")
            self._stream.flush()

    def _facts(self, run: Run, of: str = "") -> str:
        seconds = time.monotonic() - self._started
        speed = run.tried / seconds if seconds else 0.0
        return f"{run.tried}{of} {speed:.1f}/s failed={run.tried - run.refreshed}"


class Bar(_Shown):
    """One line of a terminal, drawn again and again."""

    pause_seconds = BAR_PAUSE_SECONDS

    def __init__(self, stream: OutputWrapper, total: int) -> None:
        super().__init__(stream)
        self._total = total
        self._write(self._line(0, f"0/{total}"))

    def finish(self, run: Run) -> None:
        self._write(self._text(run))

    def close(self) -> None:
        self._write("\n")

    def _text(self, run: Run) -> str:
        total = max(self._total, run.tried)  # more can become due meanwhile
        return self._line(run.tried / total if total else 1.0, self._facts(run, f"/{total}"))

    def _line(self, part: float, facts: str) -> str:
        """Return what fills the line anew: how much of the bar is full, and the facts."""
        # The last column stays free: some terminals begin a new line there.
        columns = _columns() - 1
        length = columns - len(facts) - len("[] ")
        if length < SHORTEST_BAR:
            return f"\r{facts[:columns]:<{columns}}"
        full = int(length * part)
        return f"\r[{'#' * full}{'-' * (length - full)}] {facts}"


class Lines(_Shown):
    """A line now and then, for a log."""

    pause_seconds = LINE_PAUSE_SECONDS

    def _text(self, run: Run) -> str:
        return f"{self._facts(run)}\n"


def _columns() -> int:
    # shutil looks at COLUMNS and at stdout, which may be a file while stderr is a terminal.
    size = os.terminal_size((USUAL_COLUMNS, 24))
    with suppress(OSError, ValueError):
        size = os.get_terminal_size(sys.stderr.fileno())
    return shutil.get_terminal_size(size).columns or USUAL_COLUMNS
