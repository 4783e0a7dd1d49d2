"""The interesting lines of a log, as they are written."""

import re
from collections.abc import Iterator
from pathlib import Path

# The app's lines in the format of the site's settings, without the ends of runs.
OF_THE_APP = re.compile(r"\S+ ([\d:]+),\d+ [A-Z]+ django_infusionsoft: (?!run_finished)(.*)")
OF_A_FAILED_TASK = re.compile(r"\[\S+ ([\d:]+),\d+: (?:ERROR|CRITICAL)/\w+\] (.*)")


class Tail:
    """Reads the lines that the app has logged since the last call."""

    def __init__(self, log: Path) -> None:
        self._file = log.open(encoding="utf-8", errors="replace")
        self._unfinished = ""

    def close(self) -> None:
        self._file.close()

    def new_lines(self) -> Iterator[str]:
        """Yield the new lines of the app and of failed tasks, each with its time."""
        *lines, self._unfinished = (self._unfinished + self._file.read()).split("\n")
        for line in lines:
            if match := OF_THE_APP.fullmatch(line) or OF_A_FAILED_TASK.fullmatch(line):
                yield " ".join(match.groups())
