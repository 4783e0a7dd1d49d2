"""The words in which a credential's state and history are told."""

from typing import Final

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _

# What an address calls the client in the settings, beside the ids of applications.
SETTINGS_CLIENT: Final = "settings"


class Status(TextChoices):
    """What the grant is to us."""

    CONNECTED = "connected", _("connected")
    REAUTHORIZATION_REQUIRED = "reauthorization_required", _("needs attention")
    DISCONNECTED = "disconnected", _("disconnected")


class Condition(TextChoices):
    """How a credential is, in one word for a person. Each has exactly one of these."""

    CONNECTED = "connected", _("connected")
    REFRESHING = "refreshing", _("refreshing")
    RETRYING = "retrying", _("retrying")
    NEEDS_ATTENTION = "needs_attention", _("needs attention")
    DISCONNECTED = "disconnected", _("disconnected")


class Reason(TextChoices):
    """Why a person has to connect the account again."""

    REVOKED = "revoked", _("Keap says that the grant has ended")
    EXPIRED = "expired", _("Keap says that the refresh token is too old")
    ROTATION_LOST = "rotation_lost", _("an earlier answer of Keap's never arrived")
    USED_ELSEWHERE = (
        "used_elsewhere",
        _("a refresh token that we never presented was already used"),
    )
    UNANSWERED = "unanswered", _("two attempts ended without an answer")


class EventKind(TextChoices):
    """What happened to a credential."""

    CONNECTED = "connected", _("connected")
    RECONNECTED = "reconnected", _("connected again")
    IMPORTED = "imported", _("imported")
    IDENTIFIED = "identified", _("identified")
    REFRESHED = "refreshed", _("refreshed")
    REFRESH_FAILED = "refresh_failed", _("refresh failed")
    REAUTHORIZATION_REQUIRED = "reauthorization_required", _("needs a person")
    LATE_REPLY_DROPPED = "late_reply_dropped", _("late reply dropped")
    ABANDONED = "abandoned", _("attempt abandoned")
    RECOVERED = "recovered", _("recovered from the spool")
    DISCONNECTED = "disconnected", _("disconnected")
    REFRESH_REQUESTED = "refresh_requested", _("refresh requested")
    TESTED = "tested", _("tested")


class Trouble(TextChoices):
    """Why nobody presents a refresh token with an application's client."""

    NONE = "", _("none")
    REJECTED = "rejected", _("Keap refuses the client")
    UNANSWERED = "unanswered", _("Keap takes requests and does not answer")
    UNAVAILABLE = "unavailable", _("Keap cannot be reached, or answers with errors")


class Outcome(TextChoices):
    """How an attempt ended (design: ok, rejected, misconfigured, unavailable, unknown)."""

    OK = "ok", _("ok")
    REJECTED = "rejected", _("rejected")
    MISCONFIGURED = "misconfigured", _("misconfigured")
    UNAVAILABLE = "unavailable", _("unavailable")
    UNKNOWN = "unknown", _("unknown")
    UNREADABLE = "unreadable", _("unreadable")
