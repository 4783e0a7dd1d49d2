"""The words in which a credential's state and history are told."""

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _


class Status(TextChoices):
    """What the grant is to us."""

    CONNECTED = "connected", _("connected")
    REAUTHORIZATION_REQUIRED = "reauthorization_required", _("needs attention")


class Reason(TextChoices):
    """Why a person has to connect the account again."""

    REVOKED = "revoked", _("Keap says that the grant has ended")
    EXPIRED = "expired", _("Keap says that the refresh token is too old")
    ROTATION_LOST = "rotation_lost", _("an earlier answer of Keap's never arrived")


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


class Outcome(TextChoices):
    """How an attempt ended (design: ok, rejected, misconfigured, unavailable, unknown)."""

    OK = "ok", _("ok")
    REJECTED = "rejected", _("rejected")
    MISCONFIGURED = "misconfigured", _("misconfigured")
    UNAVAILABLE = "unavailable", _("unavailable")
    UNKNOWN = "unknown", _("unknown")
    UNREADABLE = "unreadable", _("unreadable")
