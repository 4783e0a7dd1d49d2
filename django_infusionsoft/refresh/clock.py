"""The times in the rows after the database's clock has stepped back.

A fail-over to another server can do that. What was stored before then lies in the future.
"""

import logging

from django.db.models import Q

from django_infusionsoft.choices import Status
from django_infusionsoft.monitoring import heartbeat
from django_infusionsoft.refresh import leases, timing
from django_infusionsoft.storage.applications import from_now
from django_infusionsoft.storage.credentials import CredentialRow, is_idle, is_refreshable
from django_infusionsoft.storage.database import DatabaseNow, own_transaction

logger = logging.getLogger("django_infusionsoft")


def begin_run(model: type[CredentialRow], alias: str, *, pause_seconds: float) -> bool:
    """Record that a run begins, and correct times that lie too far ahead.

    :param pause_seconds: how long ago another run must have begun.
    :returns: whether the run may begin.
    """
    seconds = heartbeat.begin_run(alias, pause_seconds=pause_seconds)
    if seconds is None:
        return False
    with own_transaction(alias):
        leases.cut(model._base_manager.using(alias).all())
    if seconds:
        _correct(model, alias, seconds)
    return True


def _correct(model: type[CredentialRow], alias: str, seconds: float) -> None:
    """Make the credentials due that would wait too long: the clock has stepped back so far.

    They were refreshed when it was ahead, so that their access tokens expire sooner than the rows
    say, or failed then.
    """
    logger.error("clock_stepped_back seconds=%s", round(seconds))
    has_failed = Q(failures__gt=0, refresh_at__gt=from_now(timing.MAX_PAUSE_SECONDS))
    with own_transaction(alias):
        rows = model._base_manager.using(alias).filter(is_idle(), is_refreshable())
        rows = rows.filter(status=Status.CONNECTED)
        rows.filter(Q(issued_at__gt=DatabaseNow()) | has_failed).update(refresh_at=DatabaseNow())
    heartbeat.record_clock_step(alias)
