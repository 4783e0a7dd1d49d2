"""Formats untrusted text and times for mails, terminals and logs."""

from datetime import datetime
from typing import Any, Final

from django.utils.translation import gettext_lazy as _

# Seconds per unit. A unit is used from two of it on.
UNITS: Final[tuple[tuple[int, Any], ...]] = (
    (86_400, _("%(count)d d")),
    (3_600, _("%(count)d h")),
    (60, _("%(count)d min")),
)
SECONDS: Final = _("%(count)d s")


def one_line(text: str) -> str:
    """Return the text without line breaks, control characters and other invisible characters."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def quoted(value: object) -> str:
    """Return any value as the value of one field in a log line."""
    text = one_line(str(value)).replace('"', "'")
    return f'"{text}"' if " " in text else text


def iso_format(moment: datetime | None) -> str | None:
    """Return a time in ISO 8601 format, to the second."""
    return moment.isoformat(timespec="seconds") if moment else None


def distance(seconds: float) -> str:
    """Return a duration in the largest unit that it has at least two of: ``22 h``, ``119 s``."""
    for size, unit in UNITS:
        if seconds >= 2 * size:
            return str(unit % {"count": round(seconds / size)})
    return str(SECONDS % {"count": round(seconds)})
