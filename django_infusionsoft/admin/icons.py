"""Icons in the colour of their meaning. Text always accompanies them: never colour alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from django_infusionsoft.choices import Condition, EventKind

# Paths in a square of 16 by 16. Inline, they take the page's colours, light or dark, and need no
# other file, which a Content-Security-Policy might forbid.
_SHAPES: Final[Mapping[str, str]] = {
    "check": '<circle cx="8" cy="8" r="6.5"/><path d="m5 8.2 2.1 2.1L11 6"/>',
    "turn": '<path d="M13.6 8A5.6 5.6 0 1 1 12 4.1L13.5 5.6M13.6 2v3.7H9.9"/>',
    "clock": '<circle cx="8" cy="8" r="6.5"/><path d="M8 4.4V8l2.4 1.5"/>',
    "alert": '<path d="M8 1.9 14.7 13.8H1.3zM8 6.4v3.2M8 11.6v.3"/>',
    "cross": '<circle cx="8" cy="8" r="6.5"/><path d="m5.7 5.7 4.6 4.6m0-4.6-4.6 4.6"/>',
    "minus": '<circle cx="8" cy="8" r="6.5"/><path d="M5 8h6"/>',
}


@dataclass(frozen=True, slots=True)
class Icon:
    """An icon, and the tone (good, bad, ...) of its meaning."""

    shape: str
    tone: str

    @property
    def svg(self) -> SafeString:
        """The icon for a page, hidden from screen readers, which read the text beside it."""
        return format_html(
            '<svg class="infusionsoft-icon infusionsoft-{}" viewBox="0 0 16 16" width="16" '
            'height="16" aria-hidden="true" focusable="false">{}</svg>',
            self.tone,
            mark_safe(_SHAPES[self.shape]),  # noqa: S308  # a constant
        )


GOOD: Final = Icon("check", "good")
BUSY: Final = Icon("turn", "busy")
WAITING: Final = Icon("clock", "waiting")
BAD: Final = Icon("alert", "bad")
OFF: Final = Icon("minus", "off")

OF_CONDITIONS: Final[Mapping[str, Icon]] = {
    Condition.CONNECTED: GOOD,
    Condition.REFRESHING: BUSY,
    Condition.RETRYING: WAITING,
    Condition.FAILING: Icon("cross", "bad"),
    Condition.NEEDS_ATTENTION: BAD,
    Condition.DISCONNECTED: OFF,
}
OF_EVENTS: Final[Mapping[str, Icon]] = {
    EventKind.CONNECTED: GOOD,
    EventKind.RECONNECTED: GOOD,
    EventKind.IMPORTED: GOOD,
    EventKind.IDENTIFIED: GOOD,
    EventKind.REFRESHED: Icon("turn", "good"),
    EventKind.RECOVERED: Icon("turn", "good"),
    EventKind.REFRESH_REQUESTED: BUSY,
    EventKind.TESTED: GOOD,
    EventKind.REFRESH_FAILED: WAITING,
    EventKind.LATE_REPLY_DROPPED: WAITING,
    EventKind.ABANDONED: WAITING,
    EventKind.REAUTHORIZATION_REQUIRED: BAD,
    EventKind.DISCONNECTED: OFF,
}
