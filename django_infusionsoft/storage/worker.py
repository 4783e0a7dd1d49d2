"""The state that the processes of a site share."""

import os
import socket
from datetime import datetime
from typing import TYPE_CHECKING

from django.db import models
from django.utils.translation import gettext_lazy as _


class WorkerState(models.Model):
    """The state that the processes of a site share: one row, by the database's clock."""

    THE_ONE = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=THE_ONE)
    run_began_at = models.DateTimeField(null=True)
    run_seen_at = models.DateTimeField(_("last run recorded"), null=True)
    run_ended_at = models.DateTimeField(_("last run ended"), null=True)
    run_ended = models.CharField(_("why the last run ended"), max_length=20, blank=True)
    run_refreshed = models.PositiveIntegerField(_("refreshed by the last run"), default=0)
    run_failed = models.PositiveIntegerField(_("not refreshed by the last run"), default=0)
    clock_stepped_at = models.DateTimeField(_("clock stepped back"), null=True)
    # Up to which event the daily counts are added up, and to which credential events are pruned.
    counted_event_id = models.PositiveBigIntegerField(default=0)
    pruned_credential_id = models.PositiveBigIntegerField(default=0)
    # Until when one process may send a mail, when the last mail was sent, and when the last one
    # about overdue refreshes.
    mail_locked_until = models.DateTimeField(null=True)
    mailed_at = models.DateTimeField(null=True)
    overdue_mailed_at = models.DateTimeField(null=True)

    if TYPE_CHECKING:
        database_now: datetime  # when it was read, by the database's clock

    class Meta:
        verbose_name = _("worker state")
        verbose_name_plural = _("worker state")
        default_permissions = ()

    def __str__(self) -> str:
        return str(_("worker state"))


def process_name() -> str:
    """Return this process's host and number, such as ``web-1:4242``, for rows and events."""
    return f"{socket.gethostname()}:{os.getpid()}"[-100:]
