"""What each process has done, in a file of its own that outlives it.

A line is written with one system call, right when it has happened, and nothing is kept back: a
process that is killed has told everything up to then.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from django_infusionsoft import oauth, spool
from django_infusionsoft.exceptions import InfusionsoftError
from django_infusionsoft.history import fingerprint

# A refresh token is about to be presented.
PRESENTS: Final = "presents"
# The reply with its pair has been read …
READ: Final = "read"
# … and is in the spool, from where it can be stored whatever becomes of this process.
KEPT: Final = "kept"
NOT_KEPT: Final = "not-kept"
# An event of the history that the database did not take.
UNTOLD: Final = "untold"
# The database failed a run, or a reader.
DATABASE_ERROR: Final = "database-error"
# A run that fails does so this soon after the last reply that it could not deal with.
FAILED_RUN_SECONDS: Final = 10.0
API_CALL: Final = "api-call"
API_REFUSED: Final = "api-refused"


class Log:
    """This process's file."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(folder / f"{os.getpid()}.log", flags, 0o600)

    def write(self, what: str, of: str = "-") -> None:
        """Append a line, past every buffer of this process's."""
        os.write(self._file, f"{time.time():.6f} {what} {of}\n".encode())


def record(log: Log) -> None:
    """Let this process write down every refresh token that it presents, and every reply."""
    refresh, keep = oauth.refresh, spool.keep

    def recorded_refresh(
        client: oauth.Client, refresh_token: str, *, until: float = math.inf
    ) -> oauth.TokenPair:
        presented = fingerprint(refresh_token)
        log.write(PRESENTS, presented)
        try:
            pair = refresh(client, refresh_token, until=until)
        except InfusionsoftError as error:
            log.write(type(error).__name__, presented)
            raise
        log.write(READ, presented)
        return pair

    def recorded_keep(place: spool.Place, pair: oauth.TokenPair) -> spool.Slip:
        slip = keep(place, pair)
        log.write(KEPT if slip.path else NOT_KEPT, place.fingerprint)
        return slip

    oauth.refresh, spool.keep = recorded_refresh, recorded_keep
    logging.getLogger("django_infusionsoft").addHandler(_Untold(log))


class _Untold(logging.Handler):
    """Writes down which events the database did not take."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("event_not_written"):
            found = re.search(r"fingerprint=(\w+)", message)
            self._log.write(UNTOLD, found[1] if found else "-")


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that a process has done."""

    process: int
    at: float
    """Epoch seconds."""
    what: str
    of: str
    """The fingerprint of the refresh token that it is about."""

    def __str__(self) -> str:
        return f"{self.at:.6f} process {self.process}: {self.what} {self.of}"


@dataclass(frozen=True)
class Evidence:
    """What all processes of a run have written down."""

    lines: list[Line]

    @classmethod
    def read(cls, folder: Path) -> Evidence:
        """Return what the files of a folder say, in the order of time."""
        lines = []
        for path in folder.glob("*.log"):
            for text in path.read_text().splitlines():
                at, what, of = text.split(" ")
                lines.append(Line(int(path.stem), float(at), what, of))
        return cls(sorted(lines, key=lambda line: line.at))

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each thing happened, whoever did it."""
        return Counter(line.what for line in self.lines)

    @cached_property
    def presentations(self) -> Counter[tuple[int, str]]:
        """How often each process has presented each refresh token."""
        return Counter((line.process, line.of) for line in self.lines if line.what == PRESENTS)

    def about(self, presented: str) -> list[Line]:
        """Return what was done with one refresh token."""
        return [line for line in self.lines if line.of == presented]

    def who(self, *whats: str, of: str) -> set[int]:
        """Return the processes that did one of these things with one refresh token."""
        return {line.process for line in self.about(of) if line.what in whats}

    def waiting_for(self, presented: str, arrived_at: float) -> int | None:
        """Return the process whose presentation this was, if it has never told what came of it.

        :param arrived_at: when Keap had the request.
        """
        presentations = [line for line in self.about(presented) if line.what == PRESENTS]
        before = [line for line in presentations if line.at <= arrived_at]
        if not before:
            return None
        last = before[-1]
        after = (line for line in self.about(presented) if line.at > last.at)
        return None if any(line.process == last.process for line in after) else last.process

    def failed_after(self, process: int, presented: str) -> bool:
        """Tell whether the database failed a process before it could tell of a presentation."""
        times = [line.at for line in self.about(presented) if line.process == process]
        return any(
            0 < line.at - times[-1] < FAILED_RUN_SECONDS
            for line in self.lines
            if (line.process, line.what) == (process, DATABASE_ERROR)
        )
