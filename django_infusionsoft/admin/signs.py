"""Icons in the colour of what they stand for. Each has its words beside it: never colour alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from django_infusionsoft.choices import Condition, EventKind

# Strokes in a square of 16. Drawn in the page, they take its colours, light or dark, and ask no
# other file, which a policy might forbid.
_SHAPES: Final[Mapping[str, SafeString]] = {
    name: mark_safe(shape)  # noqa: S308  # constants of ours
    for name, shape in {
        "check": '<circle cx="8" cy="8" r="6.5"/><path d="m5 8.2 2.1 2.1L11 6"/>',
        "turn": '<path d="M13.6 8A5.6 5.6 0 1 1 12 4.1L13.5 5.6M13.6 2v3.7H9.9"/>',
        "clock": '<circle cx="8" cy="8" r="6.5"/><path d="M8 4.4V8l2.4 1.5"/>',
        "alert": '<path d="M8 1.9 14.7 13.8H1.3zM8 6.4v3.2M8 11.6v.3"/>',
        "minus": '<circle cx="8" cy="8" r="6.5"/><path d="M5 8h6"/>',
    }.items()
}


@dataclass(frozen=True, slots=True)
class Sign:
    """An icon, and how good or bad what it stands for is."""

    shape: str
    tone: str

    @property
    def svg(self) -> SafeString:
        """The icon for a page; nothing to a screen reader, which has the words."""
        return format_html(
            '<svg class="infusionsoft-sign infusionsoft-{}" viewBox="0 0 16 16" width="16" '
            'height="16" aria-hidden="true" focusable="false">{}</svg>',
            self.tone,
            _SHAPES[self.shape],
        )


GOOD: Final = Sign("check", "good")
BUSY: Final = Sign("turn", "busy")
WAITING: Final = Sign("clock", "waiting")
BAD: Final = Sign("alert", "bad")
OFF: Final = Sign("minus", "off")

OF_CONDITIONS: Final[Mapping[str, Sign]] = {
    Condition.CONNECTED: GOOD,
    Condition.REFRESHING: BUSY,
    Condition.RETRYING: WAITING,
    Condition.NEEDS_ATTENTION: BAD,
    Condition.DISCONNECTED: OFF,
}
OF_EVENTS: Final[Mapping[str, Sign]] = {
    EventKind.CONNECTED: GOOD,
    EventKind.RECONNECTED: GOOD,
    EventKind.IMPORTED: GOOD,
    EventKind.IDENTIFIED: GOOD,
    EventKind.REFRESHED: Sign("turn", "good"),
    EventKind.RECOVERED: Sign("turn", "good"),
    EventKind.REFRESH_REQUESTED: BUSY,
    EventKind.TESTED: GOOD,
    EventKind.REFRESH_FAILED: WAITING,
    EventKind.LATE_REPLY_DROPPED: WAITING,
    EventKind.ABANDONED: WAITING,
    EventKind.REAUTHORIZATION_REQUIRED: BAD,
    EventKind.DISCONNECTED: OFF,
}
