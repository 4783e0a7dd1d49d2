"""Texts about a credential: its state, the next step, and its history."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.utils import timezone
from django.utils.formats import localize
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_infusionsoft.admin import icons
from django_infusionsoft.admin.icons import Icon
from django_infusionsoft.choices import (
    ACTION_REQUIRED,
    BlockReason,
    Condition,
    EventKind,
    Outcome,
    Reason,
)
from django_infusionsoft.models import ApplicationState, Credential, CredentialEvent
from django_infusionsoft.monitoring.health import Health
from django_infusionsoft.text import distance

# Disconnecting only deletes the tokens on this site (keap-facts 2.5).
REVOKE_AT_KEAP: Final = gettext_lazy(
    "Keap has no API for revoking a grant. To revoke it at Keap as well, log in there and open "
    "API Settings, Third-Party Authorizations."
)
EVENT_LABELS: Final[Mapping[str, Any]] = {
    EventKind.CONNECTED: gettext_lazy("Connected"),
    EventKind.RECONNECTED: gettext_lazy("Reconnected"),
    EventKind.IMPORTED: gettext_lazy("Imported from another client"),
    EventKind.IDENTIFIED: gettext_lazy("Account identified by Keap"),
    EventKind.REFRESHED: gettext_lazy("Refreshed"),
    EventKind.RECOVERED: gettext_lazy(
        "Refreshed; the new tokens waited in the spool for the database"
    ),
    EventKind.REFRESH_FAILED: gettext_lazy("Refresh failed (retried automatically)"),
    EventKind.LATE_REPLY_DROPPED: gettext_lazy(
        "A late reply was discarded: the account had been connected or disconnected in the "
        "meantime"
    ),
    EventKind.ABANDONED: gettext_lazy("A process ended during a refresh"),
    EventKind.REAUTHORIZATION_REQUIRED: gettext_lazy("Connection lost (must be reconnected)"),
    EventKind.DISCONNECTED: gettext_lazy("Disconnected"),
    EventKind.REFRESH_REQUESTED: gettext_lazy("Refresh requested for the next run"),
    EventKind.TESTED: gettext_lazy("Connection test succeeded"),
}
# Why an attempt failed that will be retried.
OUTCOME_LABELS: Final[Mapping[str, Any]] = {
    Outcome.MISCONFIGURED: gettext_lazy("the client id or the client secret is wrong"),
    Outcome.UNAVAILABLE: gettext_lazy("Keap could not be reached or returned an error"),
    Outcome.UNKNOWN: gettext_lazy("the request was sent, but no reply arrived"),
    Outcome.UNREADABLE: gettext_lazy("no encryption key of this site can decrypt the stored data"),
}
USED_ELSEWHERE: Final = gettext_lazy(
    "First find out what else uses this account's tokens, such as a copy of this database."
)
ASK: Final = gettext_lazy("Ask a user with permission to connect accounts to reconnect it.")
BLOCK_REASONS: Final[Mapping[str, Any]] = {
    BlockReason.REJECTED: gettext_lazy("Keap rejects the client of this account's application."),
    BlockReason.UNANSWERED: gettext_lazy("Keap accepts requests but does not reply."),
    BlockReason.UNAVAILABLE: gettext_lazy("Keap cannot be reached or returns errors."),
    BlockReason.DISTRUSTED: gettext_lazy("Keap rejects one account after the other."),
    BlockReason.MISCONFIGURED: gettext_lazy("No request to Keap can be made from this site."),
}
_AUTOMATIC_RETRY: Final = gettext_lazy(
    "Nothing to do: the app checks automatically whether Keap is available again."
)
FAILING_ADVICE: Final = gettext_lazy(
    "Find the cause: the app retries automatically, but this has failed for too long."
)
BLOCK_ADVICE: Final[Mapping[str, Any]] = {
    BlockReason.REJECTED: gettext_lazy(
        "Correct the client id and the client secret. Refreshes then resume automatically."
    ),
    BlockReason.UNANSWERED: _AUTOMATIC_RETRY,
    BlockReason.UNAVAILABLE: _AUTOMATIC_RETRY,
    BlockReason.DISTRUSTED: gettext_lazy(
        "Check whether the client id and the client secret are those of another client. The "
        "accounts are retried one at a time."
    ),
    BlockReason.MISCONFIGURED: gettext_lazy(
        "A site administrator must fix a setting or the server's environment: the command "
        "infusionsoft_status shows the error. Refreshes then resume automatically."
    ),
}


@dataclass(frozen=True, slots=True)
class Headline:
    """The state of a credential in a sentence, and the next step."""

    condition: Condition
    text: str
    next_step: str = ""
    detail: str = ""
    """The technical cause."""

    @property
    def icon(self) -> Icon:
        """The condition's icon."""
        return icons.OF_CONDITIONS[self.condition]


@dataclass(frozen=True, slots=True)
class Line:
    """One event in a timeline."""

    event: CredentialEvent

    @property
    def icon(self) -> Icon:
        """The icon of the event's kind."""
        if self._is_failed_test:
            return icons.WAITING
        return icons.OF_EVENTS.get(self.event.kind, icons.OFF)

    @property
    def text(self) -> str:
        """The event and its reason."""
        event = self.event
        label = EVENT_LABELS.get(event.kind, event.get_kind_display())
        if self._is_failed_test:
            label = _("Connection test failed")
        elif event.kind == EventKind.REFRESH_FAILED and event.outcome == Outcome.REJECTED:
            return _("Keap rejected the refresh token again")
        reason = event.get_reason_display() or OUTCOME_LABELS.get(event.outcome, "")
        return f"{label}: {reason}" if reason and event.kind != EventKind.TESTED else str(label)

    @property
    def duration(self) -> str:
        """How long Keap took to reply; empty if no request was sent."""
        milliseconds = self.event.duration_ms
        if milliseconds is None:
            return ""
        if milliseconds < 1000:
            return _("%(count)d ms") % {"count": milliseconds}
        return _("%(seconds)s s") % {"seconds": localize(round(milliseconds / 1000, 1))}

    @property
    def when(self) -> str:
        """How long ago the event happened."""
        return relative(self.event.created_at)

    @property
    def _is_failed_test(self) -> bool:
        return self.event.kind == EventKind.TESTED and self.event.outcome != Outcome.OK


def headline(
    credential: Credential, health: Health, *, may_reconnect: bool, may_refresh: bool
) -> Headline:
    """Return the state of the credential and the next step.

    :param may_reconnect: whether the page has the button "Reconnect".
    :param may_refresh: whether the page has the button "Refresh now".
    """
    condition = credential.condition
    match condition:
        case Condition.DISCONNECTED:
            return Headline(
                condition,
                _(
                    "This account is disconnected. Its tokens have been deleted, and API calls "
                    "fail."
                ),
                _("Press “Reconnect” to use it again.") if may_reconnect else str(ASK),
            )
        case Condition.NEEDS_ATTENTION:
            return _lost(credential, may_reconnect=may_reconnect, may_refresh=may_refresh)
        case Condition.REFRESHING:
            return Headline(
                condition,
                _("This account is connected and is being refreshed right now."),
                _("Nothing to do: check again in a moment."),
            )
    return _alive(credential, health)


def _alive(credential: Credential, health: Health) -> Headline:
    """Return the headline of an account that can be used, or is retried."""
    if credential.is_key:
        return Headline(
            Condition.CONNECTED,
            _("This account is connected with a key, which is not refreshed."),
            _("Nothing to do: the key is valid as far as known."),
        )
    states = health.blocked_applications
    block_reasons = {state.application_id: state.block_reason for state in states}
    is_failing = credential.condition == Condition.FAILING
    if block_reason := block_reasons.get(credential.application_id):
        is_waiting = is_failing and block_reason not in ACTION_REQUIRED
        advice = FAILING_ADVICE if is_waiting else BLOCK_ADVICE[block_reason]
        return _retrying(credential, BLOCK_REASONS[block_reason], str(advice))
    if credential.failures:
        text = ngettext(
            "The last refresh failed.", "The last %(count)d refreshes failed.", credential.failures
        ) % {"count": credential.failures}
        return _retrying(
            credential, text, str(FAILING_ADVICE) if is_failing else _next_try(credential)
        )
    if is_failing and not health.is_worker_late:
        return _retrying(credential, _("No refresh has been tried."), str(FAILING_ADVICE))
    return _connected(credential, health)


def _lost(credential: Credential, *, may_reconnect: bool, may_refresh: bool) -> Headline:
    if credential.needs_operator:
        text = _("This account cannot be refreshed until a site administrator acts.")
        step = _(
            "Do what the message says, or reconnect the account. The app retries automatically."
        )
        return Headline(Condition.NEEDS_ATTENTION, text, step, credential.last_error)
    if credential.is_key:
        step = _("Create a key at Keap, and press “Reconnect” to store it.")
        text = _("Keap rejects the key of this account.")
        return Headline(Condition.NEEDS_ATTENTION, text, step if may_reconnect else str(ASK))
    reason = credential.get_reason_display() or credential.last_error
    text = _("This account must be reconnected: %(reason)s.") % {"reason": str(reason).rstrip(".")}
    steps = [
        _("Press “Reconnect”, log in to Keap and choose this account.")
        if may_reconnect
        else str(ASK)
    ]
    if credential.reason == Reason.USED_ELSEWHERE:
        steps.insert(0, str(USED_ELSEWHERE))
    if credential.may_be_refreshed and may_refresh:
        steps.append(_("Or press “Refresh now” for one more attempt."))
    return Headline(Condition.NEEDS_ATTENTION, text, " ".join(steps), credential.last_error)


def _connected(credential: Credential, health: Health) -> Headline:
    if health.is_worker_late:
        return Headline(
            credential.condition,
            _("Connected, but no worker is refreshing it. %(worker)s")
            % {"worker": last_run(health)},
            _("Start Celery's worker and beat, or the cron job."),
        )
    return Headline(
        Condition.CONNECTED,
        _("This account is connected. It will be refreshed %(when)s.")
        % {"when": relative(credential.refresh_at)}
        if credential.refresh_at and credential.refresh_at > credential.now
        else _("This account is connected and is about to be refreshed."),
        _("Nothing to do: this site keeps it connected."),
    )


def _retrying(credential: Credential, text: Any, next_step: str) -> Headline:
    if credential.has_valid_access_token:
        left = _("The access token is still valid and expires %(when)s.")
    else:
        left = _("The access token expired %(when)s: API calls fail until the next refresh.")
    text = f"{text} {left % {'when': relative(credential.expires_at)}}"
    is_failing = credential.condition == Condition.FAILING
    condition = Condition.FAILING if is_failing else Condition.RETRYING
    return Headline(condition, text, next_step, credential.last_error)


def _next_try(credential: Credential) -> str:
    if credential.refresh_at is None or credential.refresh_at <= credential.now:
        return _("Nothing to do: the next run will retry.")
    return _("Nothing to do: the next attempt will be made %(when)s.") % {
        "when": relative(credential.refresh_at)
    }


def last_run(health: Health) -> str:
    """Return when a run was last recorded, in a sentence."""
    if health.last_run_at is None:
        return _("No worker run has ever been recorded.")
    return _("The last worker run was recorded %(when)s.") % {"when": relative(health.last_run_at)}


def state(state: ApplicationState | None) -> str:
    """Return whether an application is blocked and why, in a sentence."""
    if state is None or not state.block_reason:
        return _("No known problem with this client.")
    text = _("%(problem)s (since %(since)s). The next run will try again.")
    if state.probe_at > timezone.now():
        text = _("%(problem)s (since %(since)s). The next attempt will be made %(when)s.")
    return text % {
        "problem": state.get_block_reason_display(),
        "since": localize(timezone.localtime(state.since)),
        "when": relative(state.probe_at),
    }


def relative(moment: datetime | None) -> str:
    """Return the distance of the moment from now, such as "in 22 h"."""
    if moment is None:
        return _("never")
    seconds = round((moment - timezone.now()).total_seconds())
    text = _("in %(distance)s") if seconds > 0 else _("%(distance)s ago")
    return text % {"distance": distance(abs(seconds))}


def moment_label(moment: datetime) -> str:
    """Return the moment, and its distance from now."""
    return f"{localize(timezone.localtime(moment))} ({relative(moment)})"


def time_tag(moment: datetime | None) -> str | None:
    """Return the distance of the moment from now, with the moment itself as a tooltip."""
    if moment is None:
        return None
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        moment.isoformat(),
        localize(timezone.localtime(moment)),
        relative(moment),
    )
