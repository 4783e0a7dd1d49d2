"""In plain words: how a credential is, what to do next, and what has happened to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.utils import timezone
from django.utils.formats import localize
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_infusionsoft.admin import signs
from django_infusionsoft.admin.signs import Sign
from django_infusionsoft.choices import Condition, EventKind, Outcome, Reason, Trouble
from django_infusionsoft.health import Health
from django_infusionsoft.models import ApplicationState, Credential, CredentialEvent
from django_infusionsoft.plain import distance

# Where a person ends at Keap what is only forgotten here (keap-facts 2.5).
REVOKE_AT_KEAP: Final = gettext_lazy(
    "Keap has no way to end a grant by program. To end it there too: log in to Keap and open API "
    "Settings, Third-Party Authorizations."
)
EVENT_WORDS: Final[Mapping[str, Any]] = {
    EventKind.CONNECTED: gettext_lazy("Connected"),
    EventKind.RECONNECTED: gettext_lazy("Connected again"),
    EventKind.IMPORTED: gettext_lazy("Imported from another client"),
    EventKind.IDENTIFIED: gettext_lazy("Keap told which account it is"),
    EventKind.REFRESHED: gettext_lazy("Refreshed"),
    EventKind.RECOVERED: gettext_lazy("Refreshed; the answer had waited for the database"),
    EventKind.REFRESH_FAILED: gettext_lazy("Not refreshed, and tried again by itself"),
    EventKind.LATE_REPLY_DROPPED: gettext_lazy(
        "An answer came too late and was dropped: the account had been connected or disconnected "
        "meanwhile"
    ),
    EventKind.ABANDONED: gettext_lazy("A process ended in the middle of a refresh"),
    EventKind.REAUTHORIZATION_REQUIRED: gettext_lazy("Lost; a person has to connect it again"),
    EventKind.DISCONNECTED: gettext_lazy("Disconnected"),
    EventKind.REFRESH_REQUESTED: gettext_lazy("The next run was asked to refresh it"),
    EventKind.TESTED: gettext_lazy("Connection tested: it works"),
}
# Why an attempt failed that is made again.
OUTCOME_WORDS: Final[Mapping[str, Any]] = {
    Outcome.MISCONFIGURED: gettext_lazy("the client id or the client secret is not right"),
    Outcome.UNAVAILABLE: gettext_lazy("Keap could not be reached, or answered with an error"),
    Outcome.UNKNOWN: gettext_lazy("Keap was asked, and its answer never arrived"),
    Outcome.UNREADABLE: gettext_lazy("no encryption key of this site opens what is stored"),
}
USED_ELSEWHERE: Final = gettext_lazy(
    "Find what else uses this account's tokens first, such as a copy of this database."
)
ASK: Final = gettext_lazy("Ask somebody who may connect accounts to connect it again.")
TROUBLES: Final[Mapping[str, Any]] = {
    Trouble.REJECTED: gettext_lazy("Keap refuses the client of this account's application."),
    Trouble.UNANSWERED: gettext_lazy("Keap takes requests and does not answer."),
    Trouble.UNAVAILABLE: gettext_lazy("Keap cannot be reached, or answers with errors."),
}
_BY_ITSELF: Final = gettext_lazy("Nothing to do: whether Keap is back is tried by itself.")
ADVICE_OF_TROUBLES: Final[Mapping[str, Any]] = {
    Trouble.REJECTED: gettext_lazy(
        "Set the client id and the client secret right; then it goes on by itself."
    ),
    Trouble.UNANSWERED: _BY_ITSELF,
    Trouble.UNAVAILABLE: _BY_ITSELF,
}


@dataclass(frozen=True, slots=True)
class Headline:
    """How a credential is, in a sentence, and what to do next."""

    condition: Condition
    text: str
    next_step: str = ""
    detail: str = ""
    """The cause in technical words."""

    @property
    def sign(self) -> Sign:
        """The condition's."""
        return signs.OF_CONDITIONS[self.condition]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a timeline."""

    event: CredentialEvent

    @property
    def sign(self) -> Sign:
        """What it was, at a glance."""
        if self._is_test_in_vain:
            return signs.WAITING
        return signs.OF_EVENTS.get(self.event.kind, signs.OFF)

    @property
    def text(self) -> str:
        """What happened, and why."""
        event = self.event
        words = EVENT_WORDS.get(event.kind, event.get_kind_display())
        if self._is_test_in_vain:
            words = _("Connection tested: it does not work")
        why = event.get_reason_display() or OUTCOME_WORDS.get(event.outcome, "")
        return f"{words}: {why}" if why and event.kind != EventKind.TESTED else str(words)

    @property
    def duration(self) -> str:
        """How long Keap took; empty where it was not asked."""
        milliseconds = self.event.duration_ms
        if milliseconds is None:
            return ""
        if milliseconds < 1000:
            return _("%(count)d ms") % {"count": milliseconds}
        return _("%(seconds)s s") % {"seconds": localize(round(milliseconds / 1000, 1))}

    @property
    def when(self) -> str:
        """How long ago."""
        return relative(self.event.created_at)

    @property
    def _is_test_in_vain(self) -> bool:
        return self.event.kind == EventKind.TESTED and self.event.outcome != Outcome.OK


def headline(
    credential: Credential, health: Health, *, may_reconnect: bool, may_refresh: bool
) -> Headline:
    """Return how it is and what to do next.

    :param may_reconnect: whether the person who reads it has the button.
    :param may_refresh: the same of the other one.
    """
    condition = credential.condition
    match condition:
        case Condition.DISCONNECTED:
            return Headline(
                condition,
                _("This account is disconnected: its tokens are forgotten, and no call works."),
                _("Press “Reconnect” to use it again.") if may_reconnect else str(ASK),
            )
        case Condition.NEEDS_ATTENTION:
            return _lost(credential, may_reconnect=may_reconnect, may_refresh=may_refresh)
        case Condition.REFRESHING:
            return Headline(
                condition,
                _("This account is connected, and is being refreshed right now."),
                _("Nothing to do: look again in a moment."),
            )
    trouble = _trouble_of(credential, health)
    if trouble:
        return Headline(
            Condition.RETRYING,
            _waiting(credential, TROUBLES[trouble]),
            str(ADVICE_OF_TROUBLES[trouble]),
            credential.last_error,
        )
    if condition == Condition.RETRYING:
        text = ngettext(
            "The last refresh failed.", "The last %(count)d refreshes failed.", credential.failures
        ) % {"count": credential.failures}
        return Headline(
            condition, _waiting(credential, text), _next_try(credential), credential.last_error
        )
    return _connected(credential, health)


def _trouble_of(credential: Credential, health: Health) -> str:
    """Return what is the matter with its application, if its client is not used."""
    for state in health.troubles:
        if state.application_id == credential.application_id:
            return state.trouble
    return ""


def _lost(credential: Credential, *, may_reconnect: bool, may_refresh: bool) -> Headline:
    reason = credential.get_reason_display() or credential.last_error
    text = _("This account has to be connected again: %(reason)s.") % {
        "reason": str(reason).rstrip(".")
    }
    steps = [
        _("Press “Reconnect”, log in to Keap and choose this account.")
        if may_reconnect
        else str(ASK)
    ]
    if credential.reason == Reason.USED_ELSEWHERE:
        steps.insert(0, str(USED_ELSEWHERE))
    elif credential.reason == Reason.UNANSWERED and may_refresh:
        steps.append(_("Or press “Refresh now” for one more attempt."))
    return Headline(Condition.NEEDS_ATTENTION, text, " ".join(steps), credential.last_error)


def _connected(credential: Credential, health: Health) -> Headline:
    if health.is_worker_late:
        return Headline(
            Condition.CONNECTED,
            _("This account is connected, and nothing keeps it so. %(worker)s")
            % {"worker": last_run(health)},
            _("Start the worker and beat, or cron."),
        )
    return Headline(
        Condition.CONNECTED,
        _("This account is connected. It is refreshed %(when)s.")
        % {"when": relative(credential.refresh_at)}
        if credential.refresh_at and credential.refresh_at > credential.now
        else _("This account is connected, and is about to be refreshed."),
        _("Nothing to do: this site keeps it connected."),
    )


def _waiting(credential: Credential, text: Any) -> str:
    if credential.has_living_access_token:
        left = _("The access token still works, and ends %(when)s.")
    else:
        left = _("The access token has ended %(when)s: no call works before the next refresh.")
    return f"{text} {left % {'when': relative(credential.expires_at)}}"


def _next_try(credential: Credential) -> str:
    if credential.refresh_at is None or credential.refresh_at <= credential.now:
        return _("Nothing to do: the next run tries again.")
    return _("Nothing to do: the next attempt comes %(when)s.") % {
        "when": relative(credential.refresh_at)
    }


def last_run(health: Health) -> str:
    """Return when a run was last seen, in a sentence."""
    if health.last_run_at is None:
        return _("No run of a worker has ever been seen.")
    return _("The last run was seen %(when)s.") % {"when": relative(health.last_run_at)}


def state(state: ApplicationState | None) -> str:
    """Return how Keap takes an application's client, in a sentence."""
    if state is None or not state.trouble:
        return _("Keap takes this client, as far as is known.")
    text = _("%(trouble)s (since %(since)s). Keap is asked again by the next run.")
    if state.probe_at > timezone.now():
        text = _("%(trouble)s (since %(since)s). Keap is asked again %(when)s.")
    return text % {
        "trouble": state.get_trouble_display(),
        "since": localize(timezone.localtime(state.since)),
        "when": relative(state.probe_at),
    }


def relative(moment: datetime | None) -> str:
    """Return how long ago or ahead the moment is."""
    if moment is None:
        return _("never")
    seconds = round((moment - timezone.now()).total_seconds())
    text = _("in %(distance)s") if seconds > 0 else _("%(distance)s ago")
    return text % {"distance": distance(abs(seconds))}


def moment_label(moment: datetime) -> str:
    """Return the moment, and how long ago or ahead it is."""
    return f"{localize(timezone.localtime(moment))} ({relative(moment)})"


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
