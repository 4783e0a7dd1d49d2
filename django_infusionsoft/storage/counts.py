"""How many refreshes there were, by day and application."""

from django.db import models
from django.utils.translation import gettext_lazy as _


class DailyCount(models.Model):
    """The refreshes of one application on one day (UTC), which outlive their events."""

    day = models.DateField(_("day"))
    # As CredentialRow's; 0: the client in the settings.
    application_key = models.BigIntegerField(default=0)
    refreshed = models.PositiveIntegerField(_("refreshed"), default=0)
    failed = models.PositiveIntegerField(_("failed"), default=0)
    lost = models.PositiveIntegerField(_("lost"), default=0)
    seconds = models.FloatField(_("seconds that Keap took"), default=0.0)

    class Meta:
        verbose_name = _("daily count")
        verbose_name_plural = _("daily counts")
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["day", "application_key"], name="infusionsoft_one_count_per_day"
            )
        ]

    def __str__(self) -> str:
        return f"{self.day:%Y-%m-%d}"
