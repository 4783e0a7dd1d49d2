"""The lines of a log that are worth a person's attention, as they are written."""

import re
from collections.abc import Iterator
from pathlib import Path

# As the site's settings format a line of the app. The end of a run is no news.
OF_THE_APP = re.compile(r"\S+ ([\d:]+),\d+ [A-Z]+ django_infusionsoft: (?!run_finished)(.*)")
OF_A_FAILED_TASK = re.compile(r"\[\S+ ([\d:]+),\d+: (?:ERROR|CRITICAL)/\w+\] (.*)")


class Tail:
    """What the app has logged since the last look."""

    def __init__(self, log: Path) -> None:
        self._file = log.open(encoding="utf-8", errors="replace")
        self._unfinished = ""

    def close(self) -> None:
        self._file.close()

    def news(self) -> Iterator[str]:
        """Yield the new lines of the app, and of its tasks that failed, each with its time."""
        *lines, self._unfinished = (self._unfinished + self._file.read()).split("\n")
        for line in lines:
            if match := OF_THE_APP.fullmatch(line) or OF_A_FAILED_TASK.fullmatch(line):
                yield " ".join(match.groups())
