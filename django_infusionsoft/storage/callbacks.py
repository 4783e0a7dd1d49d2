"""Authorization responses, and what the callback did with them."""

from django.db import models
from django.utils.translation import gettext_lazy as _


class Callback(models.Model):
    """One authorization response (RFC 6749 section 4.1.2), which one request handles."""

    # Keyed hashes of the state, and of the whole response with its user.
    state_hash = models.CharField(max_length=64, unique=True)
    response_hash = models.CharField(max_length=64)
    # Who has exchanged a code, as a keyed hash, and with which client: 0 is that in the settings.
    # Empty if no code was exchanged.
    user_hash = models.CharField(max_length=64, blank=True)
    application_key = models.BigIntegerField(null=True)
    created_at = models.DateTimeField(_("created"), db_index=True)
    # Empty while it is being handled.
    finished_at = models.DateTimeField(null=True)
    # What a repeated request shows, as JSON, without a secret. Not a JSONField: its system check
    # opens a database connection.
    result = models.TextField(default="{}")

    class Meta:
        verbose_name = _("callback")
        verbose_name_plural = _("callbacks")
        default_permissions = ()

    def __str__(self) -> str:
        return self.state_hash[:12]
