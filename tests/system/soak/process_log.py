"""A log file for each process, which records what the process did until the moment it died.

Each line is written by one system call as soon as the action has happened. Nothing is buffered, so
a killed process leaves a complete record.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from django_infusionsoft.exceptions import InfusionsoftError
from django_infusionsoft.keap import oauth
from django_infusionsoft.keap.sent import Call

# A refresh token is about to be presented.
PRESENTING: Final = "presenting"
# The reply with its token pair has been read …
REPLY_READ: Final = "reply-read"
# … and is in the spool, from where any process can store it.
SPOOLED: Final = "spooled"
NOT_SPOOLED: Final = "not-spooled"
# The database did not accept an event of the history.
EVENT_NOT_WRITTEN: Final = "event-not-written"
# A run of a refresher or a call of a reader failed because of the database.
DATABASE_ERROR: Final = "database-error"
API_CALL: Final = "api-call"
API_REFUSED: Final = "api-refused"
# A run whose database fails ends this soon after the last reply that it could not store.
FAILED_RUN_SECONDS: Final = 10.0


class ProcessLog:
    """The log file of this process."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(folder / f"{os.getpid()}.log", flags, 0o600)

    def write(self, action: str, subject: str = "-") -> None:
        """Append a line without buffering."""
        os.write(self._file, f"{time.time():.6f} {action} {subject}\n".encode())


def record_refreshes(log: ProcessLog) -> None:
    """Log every refresh token that this process presents, and every reply that it reads."""
    # These import models, which are there only after django.setup().
    from django_infusionsoft.monitoring.history import fingerprint
    from django_infusionsoft.refresh import spool
    from django_infusionsoft.refresh.spool_folder import Space

    refresh, save = oauth.refresh, spool.save

    def logged_refresh(
        client: oauth.Client, refresh_token: str, call: Call | None = None
    ) -> oauth.TokenPair:
        presented = fingerprint(refresh_token)
        log.write(PRESENTING, presented)
        try:
            pair = refresh(client, refresh_token, call)
        except InfusionsoftError as error:
            log.write(type(error).__name__, presented)
            raise
        log.write(REPLY_READ, presented)
        return pair

    def logged_save(
        key: spool.SpoolKey,
        pair: oauth.TokenPair,
        lease_id: str = "",
        space: Space | None = None,
    ) -> spool.SpooledPair:
        spooled = save(key, pair, lease_id, space)
        log.write(SPOOLED if spooled.path else NOT_SPOOLED, key.fingerprint)
        return spooled

    oauth.refresh, spool.save = logged_refresh, logged_save
    logging.getLogger("django_infusionsoft").addHandler(_EventNotWrittenHandler(log))


class _EventNotWrittenHandler(logging.Handler):
    """Logs which events the database did not accept."""

    def __init__(self, log: ProcessLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("event_not_written"):
            found = re.search(r"fingerprint=(\w+)", message)
            self._log.write(EVENT_NOT_WRITTEN, found[1] if found else "-")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a process's log."""

    process: int
    at: float
    """Epoch seconds."""
    action: str
    subject: str
    """The fingerprint of the refresh token, or the name of an exception."""

    def __str__(self) -> str:
        return f"{self.at:.6f} process {self.process}: {self.action} {self.subject}"


@dataclass(frozen=True)
class ProcessLogs:
    """The logs of all processes of a soak."""

    entries: list[Entry]

    @classmethod
    def read(cls, folder: Path) -> ProcessLogs:
        """Return the entries of all logs in a folder, sorted by time."""
        entries = []
        for path in folder.glob("*.log"):
            for line in path.read_text().splitlines():
                at, action, subject = line.split(" ")
                entries.append(Entry(int(path.stem), float(at), action, subject))
        return cls(sorted(entries, key=lambda entry: entry.at))

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each action happened, in all processes together."""
        return Counter(entry.action for entry in self.entries)

    @cached_property
    def presentations(self) -> Counter[tuple[int, str]]:
        """How often each process presented each refresh token."""
        presenting = (entry for entry in self.entries if entry.action == PRESENTING)
        return Counter((entry.process, entry.subject) for entry in presenting)

    def about(self, presented: str) -> list[Entry]:
        """Return the entries about one refresh token."""
        return [entry for entry in self.entries if entry.subject == presented]

    def processes(self, *actions: str, presented: str) -> set[int]:
        """Return the processes that took one of these actions with one refresh token."""
        return {entry.process for entry in self.about(presented) if entry.action in actions}

    def unfinished_process(self, presented: str, received_at: float) -> int | None:
        """Return the process that made a request, if it never logged the result.

        :param received_at: when the sandbox received the request, in epoch seconds.
        """
        entries = self.about(presented)
        requests = [e for e in entries if e.action == PRESENTING and e.at <= received_at]
        if not requests:
            return None
        request = requests[-1]
        later = (e for e in entries if e.process == request.process and e.at > request.at)
        return None if any(later) else request.process

    def database_failed_after(self, process: int, presented: str) -> bool:
        """Return whether the database failed a process before it could write the event."""
        times = [entry.at for entry in self.about(presented) if entry.process == process]
        return any(
            0 < entry.at - times[-1] < FAILED_RUN_SECONDS
            for entry in self.entries
            if (entry.process, entry.action) == (process, DATABASE_ERROR)
        )
