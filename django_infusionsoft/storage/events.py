"""The events in the history of credentials."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from django_infusionsoft.choices import EventKind, Outcome, Reason


class CredentialEvent(models.Model):
    """One event in a credential's history. It never contains a secret.

    There are millions of rows, so they are narrow: PostgreSQL needs no gaps between columns in
    this order, and an index with a few dozen equal values takes little space.
    """

    Kind = EventKind
    Outcome = Outcome

    credential = models.ForeignKey(
        "django_infusionsoft.Credential",
        verbose_name=_("credential"),
        on_delete=models.CASCADE,
        related_name="events",
    )
    created_at = models.DateTimeField(_("time"), auto_now_add=True)
    generation = models.PositiveBigIntegerField(_("generation"))
    duration_ms = models.PositiveIntegerField(_("duration in ms"), null=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        on_delete=models.SET_NULL,
        null=True,
        db_index=False,
        related_name="+",
    )
    kind = models.CharField(_("event"), max_length=30, choices=EventKind.choices)
    outcome = models.CharField(_("outcome"), max_length=20, choices=Outcome.choices, blank=True)
    reason = models.CharField(_("reason"), max_length=30, choices=Reason.choices, blank=True)
    # Tells refresh tokens apart, to see which process presented which one.
    fingerprint = models.CharField(_("fingerprint"), max_length=12, blank=True)
    # The host and number of the process.
    worker = models.CharField(_("process"), max_length=100, blank=True)
    detail = models.TextField(_("detail"), blank=True)

    class Meta:
        verbose_name = _("credential event")
        verbose_name_plural = _("credential events")
        default_permissions = ("view",)
        ordering = ["-pk"]

    def __str__(self) -> str:
        return self.get_kind_display()
