"""In plain words: how a credential is, what to do next, and what has happened to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.templatetags.static import static
from django.utils import timezone
from django.utils.formats import localize
from django.utils.html import format_html
from django.utils.timesince import timesince
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_infusionsoft.choices import Condition, EventKind, Reason, Trouble
from django_infusionsoft.health import Health
from django_infusionsoft.models import ApplicationState, Credential, CredentialEvent

# A demo's access tokens live a minute or two.
SHORTEST_IN_MINUTES_SECONDS: Final = 120

# Never colour alone: each has its icon beside the word.
ICONS: Final[Mapping[str, str]] = {
    Condition.CONNECTED: "icon-yes",
    Condition.REFRESHING: "icon-clock",
    Condition.RETRYING: "icon-alert",
    Condition.NEEDS_ATTENTION: "icon-no",
    Condition.DISCONNECTED: "icon-unknown",
}
EVENT_ICONS: Final[Mapping[str, str]] = {
    EventKind.CONNECTED: "icon-yes",
    EventKind.RECONNECTED: "icon-yes",
    EventKind.IMPORTED: "icon-yes",
    EventKind.IDENTIFIED: "icon-yes",
    EventKind.REFRESHED: "icon-yes",
    EventKind.RECOVERED: "icon-yes",
    EventKind.REFRESH_FAILED: "icon-alert",
    EventKind.LATE_REPLY_DROPPED: "icon-alert",
    EventKind.ABANDONED: "icon-alert",
    EventKind.REAUTHORIZATION_REQUIRED: "icon-no",
    EventKind.DISCONNECTED: "icon-unknown",
}
EVENT_WORDS: Final[Mapping[str, Any]] = {
    EventKind.CONNECTED: gettext_lazy("Connected"),
    EventKind.RECONNECTED: gettext_lazy("Connected again"),
    EventKind.IMPORTED: gettext_lazy("Imported from another client"),
    EventKind.IDENTIFIED: gettext_lazy("Keap told which account it is"),
    EventKind.REFRESHED: gettext_lazy("Refreshed"),
    EventKind.RECOVERED: gettext_lazy("Refreshed; the answer had waited for the database"),
    EventKind.REFRESH_FAILED: gettext_lazy("Not refreshed; tried again by itself"),
    EventKind.LATE_REPLY_DROPPED: gettext_lazy(
        "An answer came too late and was dropped: the account had been connected or disconnected "
        "meanwhile"
    ),
    EventKind.ABANDONED: gettext_lazy("A process ended in the middle of a refresh"),
    EventKind.REAUTHORIZATION_REQUIRED: gettext_lazy("Lost: a person has to connect it again"),
    EventKind.DISCONNECTED: gettext_lazy("Disconnected"),
}
# What a person can do about it, where that is more than to connect the account again.
ADVICE: Final[Mapping[str, Any]] = {
    Reason.USED_ELSEWHERE: gettext_lazy(
        "Find what else uses this account's tokens first, such as a copy of this database."
    ),
    Reason.UNANSWERED: gettext_lazy("Or press “Refresh now” for one more attempt."),
}


@dataclass(frozen=True, slots=True)
class Headline:
    """How a credential is, in a sentence, and what to do next."""

    condition: Condition
    text: str
    next_step: str = ""

    @property
    def icon(self) -> str:
        """The address of the condition's icon."""
        return static(f"admin/img/{ICONS[self.condition]}.svg")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a timeline."""

    event: CredentialEvent

    @property
    def icon(self) -> str:
        """The address of the event's icon."""
        return static(f"admin/img/{EVENT_ICONS.get(self.event.kind, 'icon-unknown')}.svg")

    @property
    def text(self) -> str:
        """What happened, and why."""
        words = EVENT_WORDS.get(self.event.kind, self.event.get_kind_display())
        reason = self.event.get_reason_display()
        return f"{words}: {reason}" if reason else str(words)


def headline(credential: Credential, health: Health, *, trouble: str) -> Headline:
    """Return how it is and what to do next.

    :param trouble: the application's, if its client is not used.
    """
    condition = credential.condition
    match condition:
        case Condition.DISCONNECTED:
            return Headline(
                condition,
                _("This account is disconnected: nothing is refreshed or served."),
                _("Press “Reconnect” to use it again."),
            )
        case Condition.NEEDS_ATTENTION:
            return _lost(credential)
        case Condition.REFRESHING:
            return Headline(condition, _("This account is connected, and is refreshed right now."))
    if trouble:
        return Headline(
            Condition.RETRYING, _waiting(credential, _TROUBLES[trouble]), _ADVICE_OF[trouble]
        )
    if condition == Condition.RETRYING:
        text = ngettext(
            "The last refresh failed.", "The last %(count)d refreshes failed.", credential.failures
        ) % {"count": credential.failures}
        return Headline(condition, _waiting(credential, text), _next_try(credential))
    return _connected(credential, health)


_TROUBLES: Final[Mapping[str, Any]] = {
    Trouble.REJECTED: gettext_lazy("Keap refuses the client of this account's application."),
    Trouble.UNANSWERED: gettext_lazy("Keap takes requests and does not answer."),
    Trouble.UNAVAILABLE: gettext_lazy("Keap cannot be reached, or answers with errors."),
}
_BY_ITSELF: Final = gettext_lazy("Nothing to do: whether Keap is back is tried by itself.")
_ADVICE_OF: Final[Mapping[str, Any]] = {
    Trouble.REJECTED: gettext_lazy(
        "Set the client id and the client secret right; then it goes on by itself."
    ),
    Trouble.UNANSWERED: _BY_ITSELF,
    Trouble.UNAVAILABLE: _BY_ITSELF,
}


def _lost(credential: Credential) -> Headline:
    reason = credential.get_reason_display() or credential.last_error
    text = _("This account has to be connected again: %(reason)s.") % {
        "reason": str(reason).rstrip(".")
    }
    advice = str(ADVICE.get(credential.reason, ""))
    step = _("Press “Reconnect”, log in to Keap and choose this account.")
    if credential.reason == Reason.USED_ELSEWHERE:
        return Headline(Condition.NEEDS_ATTENTION, text, f"{advice} {step}")
    return Headline(Condition.NEEDS_ATTENTION, text, f"{step} {advice}".strip())


def _connected(credential: Credential, health: Health) -> Headline:
    if health.is_worker_late:
        return Headline(
            Condition.CONNECTED,
            _("This account is connected, and nobody keeps it so: %(worker)s")
            % {"worker": worker(health)},
            _("Start the worker and beat, or cron."),
        )
    return Headline(
        Condition.CONNECTED,
        _("This account is connected. Its next refresh comes %(when)s.")
        % {"when": relative(credential.refresh_at)},
        _("Nothing to do: this site keeps it connected."),
    )


def _waiting(credential: Credential, text: Any) -> str:
    if credential.has_living_access_token:
        left = _("The access token works, and ends %(when)s.")
    else:
        left = _("The access token has ended, so nothing can be called until then.")
    return f"{text} {left % {'when': relative(credential.expires_at)}}"


def _next_try(credential: Credential) -> str:
    return _("Nothing to do: the next attempt comes %(when)s.") % {
        "when": relative(credential.refresh_at)
    }


def worker(health: Health) -> str:
    """Return when a run was last seen, in a sentence."""
    if health.last_run_at is None:
        return _("No run has ever been seen.")
    return _("The last run was seen %(when)s.") % {"when": relative(health.last_run_at)}


def state(state: ApplicationState | None) -> str:
    """Return how Keap takes an application's client, in a sentence."""
    if state is None or not state.trouble:
        return _("Keap takes this client, as far as is known.")
    return _("%(trouble)s since %(since)s. The next probe comes %(when)s.") % {
        "trouble": state.get_trouble_display(),
        "since": localize(timezone.localtime(state.since)),
        "when": relative(state.probe_at),
    }


def relative(moment: datetime | None) -> str:
    """Return how long ago or ahead the moment is."""
    if moment is None:
        return _("never")
    now = timezone.now()
    distance = _distance(min(moment, now), max(moment, now))
    text = _("in %(distance)s") if moment > now else _("%(distance)s ago")
    return text % {"distance": distance}


def time_tag(moment: datetime | None) -> str | None:
    """Return how long ago or ahead the moment is, with the moment itself on hovering."""
    if moment is None:
        return None
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        moment.isoformat(),
        localize(timezone.localtime(moment)),
        relative(moment),
    )


def _distance(start: datetime, end: datetime) -> str:
    seconds = round((end - start).total_seconds())
    if seconds >= SHORTEST_IN_MINUTES_SECONDS:
        return timesince(start, end, depth=1)
    return ngettext("%(count)d second", "%(count)d seconds", seconds) % {"count": seconds}
