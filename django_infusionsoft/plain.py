"""Short texts for mails, terminals and logs: what strangers wrote, and lengths of time."""

from __future__ import annotations

from typing import Any, Final

from django.utils.translation import gettext_lazy as _

# In each of which a length of time is told from two of them on.
UNITS: Final[tuple[tuple[int, Any], ...]] = (
    (86_400, _("%(count)d d")),
    (3_600, _("%(count)d h")),
    (60, _("%(count)d min")),
)
SECONDS: Final = _("%(count)d s")


def one_line(text: str) -> str:
    """Return the text without line breaks, terminal sequences and what else cannot be seen."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def quoted(value: object) -> str:
    """Return what is one field's value in a log line, whatever is in it."""
    text = one_line(str(value)).replace('"', "'")
    return f'"{text}"' if " " in text else text


def distance(seconds: float) -> str:
    """Return a length of time in the largest unit that it has two of: ``22 h``, ``119 s``."""
    for size, unit in UNITS:
        if seconds >= 2 * size:
            return str(unit % {"count": round(seconds / size)})
    return str(SECONDS % {"count": round(seconds)})
