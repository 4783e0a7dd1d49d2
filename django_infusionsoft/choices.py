"""The choices of a credential's state and history."""

from typing import Final

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _

# Stands for the client in the settings in URLs that otherwise contain an application's id.
SETTINGS_CLIENT: Final = "settings"


class Status(TextChoices):
    """The stored status of a grant."""

    CONNECTED = "connected", _("connected")
    REAUTHORIZATION_REQUIRED = "reauthorization_required", _("needs attention")
    DISCONNECTED = "disconnected", _("disconnected")


class Kind(TextChoices):
    """What gives access to an account."""

    GRANT = "grant", _("connected with OAuth")
    # A personal access token or a service account key (keap-facts 5).
    KEY = "key", _("key")


class Condition(TextChoices):
    """The displayed state of a credential, which depends on its status, lease and failures."""

    CONNECTED = "connected", _("connected")
    REFRESHING = "refreshing", _("refreshing")
    RETRYING = "retrying", _("retrying")
    FAILING = "failing", _("failing")
    NEEDS_ATTENTION = "needs_attention", _("needs attention")
    DISCONNECTED = "disconnected", _("disconnected")


class Reason(TextChoices):
    """Why the account must be reconnected."""

    REVOKED = "revoked", _("Keap reports that the grant is no longer valid")
    EXPIRED = "expired", _("Keap reports that the refresh token has expired")
    ROTATION_LOST = "rotation_lost", _("an earlier reply from Keap never arrived")
    USED_ELSEWHERE = (
        "used_elsewhere",
        _("the refresh token was used elsewhere before this site presented it"),
    )
    UNANSWERED = "unanswered", _("two attempts received no reply")
    KEY_REJECTED = "key_rejected", _("Keap rejects the key")


# A user may have the refresh token presented again: the rejection may have been an error.
DOUBTFUL: Final = (Reason.REVOKED, Reason.USED_ELSEWHERE)


class EventKind(TextChoices):
    """The kind of an event in a credential's history."""

    CONNECTED = "connected", _("connected")
    RECONNECTED = "reconnected", _("reconnected")
    IMPORTED = "imported", _("imported")
    IDENTIFIED = "identified", _("identified")
    REFRESHED = "refreshed", _("refreshed")
    REFRESH_FAILED = "refresh_failed", _("refresh failed")
    REAUTHORIZATION_REQUIRED = "reauthorization_required", _("reauthorization required")
    LATE_REPLY_DROPPED = "late_reply_dropped", _("late reply discarded")
    ABANDONED = "abandoned", _("attempt abandoned")
    RECOVERED = "recovered", _("recovered from the spool")
    DISCONNECTED = "disconnected", _("disconnected")
    REFRESH_REQUESTED = "refresh_requested", _("refresh requested")
    TESTED = "tested", _("tested")


class BlockReason(TextChoices):
    """Why an application's client is blocked."""

    NONE = "", _("none")
    REJECTED = "rejected", _("Keap rejects the client")
    UNANSWERED = "unanswered", _("Keap accepts requests but does not reply")
    UNAVAILABLE = "unavailable", _("Keap cannot be reached or returns errors")
    MISCONFIGURED = "misconfigured", _("no request to Keap can be made from this site")
    DISTRUSTED = "distrusted", _("Keap rejects one account after the other")


# A site administrator must act: no retry helps.
ACTION_REQUIRED: Final = (
    BlockReason.REJECTED,
    BlockReason.MISCONFIGURED,
    BlockReason.DISTRUSTED,
)


class Outcome(TextChoices):
    """The outcome of an attempt."""

    OK = "ok", _("ok")
    REJECTED = "rejected", _("rejected")
    MISCONFIGURED = "misconfigured", _("misconfigured")
    UNAVAILABLE = "unavailable", _("unavailable")
    UNKNOWN = "unknown", _("unknown")
    UNREADABLE = "unreadable", _("unreadable")


# No retry resolves these failures of an account: a key is missing, or there is no client.
NEEDS_OPERATOR: Final = (Outcome.UNREADABLE, Outcome.MISCONFIGURED)
