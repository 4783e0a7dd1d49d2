"""Deletes old events of the history, beside the sweeps of other runs."""

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final

from django.db import Error
from django.db.models import F, Q, QuerySet, Window
from django.db.models.functions import RowNumber

from django_infusionsoft.choices import EventKind
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.monitoring import counts
from django_infusionsoft.monitoring.history import REFRESHES
from django_infusionsoft.storage.credentials import credential_model
from django_infusionsoft.storage.database import (
    DatabaseNow,
    close_idle_connection,
    own_transaction,
)
from django_infusionsoft.storage.events import CredentialEvent
from django_infusionsoft.storage.worker import WorkerState

logger = logging.getLogger("django_infusionsoft")

# Events per statement, and per run.
DELETE_BATCH_SIZE: Final = 1000
MAX_PRUNED: Final = 20_000
# The credentials whose events a run looks at: all of a hundred thousand in a hundred runs.
CREDENTIALS_PER_RUN: Final = 1000


def prune(alias: str, *, is_over: Callable[[], bool]) -> int:
    """Add up the new events, and delete old ones; return how many.

    Each run looks at the next ``CREDENTIALS_PER_RUN`` credentials. Deletes in batches, so that no
    lock is held for long, and at most ``MAX_PRUNED`` per run.

    :param is_over: called after each batch; if it returns true, pruning stops.
    """
    pruned = 0
    try:
        counts.add_up(alias)  # before any of them is deleted
        for some in _batches(alias):
            with own_transaction(alias):
                pruned += _events(alias).filter(pk__in=some).delete()[0]
            if pruned >= MAX_PRUNED or is_over():
                break
    except (Error, DatabaseBusy):  # such as two runs at once; the next run continues
        logger.exception("events_not_pruned")
        close_idle_connection(alias)
    return pruned


def _batches(alias: str) -> Iterator[list[int]]:
    """Yield the events to delete; then let the next run continue after these credentials."""
    if not (conf.EVENT_RETENTION_DAYS or conf.EVENT_RETENTION_REFRESHES):
        return
    workers = WorkerState._base_manager.using(alias).filter(pk=WorkerState.THE_ONE)
    with own_transaction(alias):
        begin = workers.values_list("pruned_credential_id", flat=True).first() or 0
        credentials = credential_model()._base_manager.using(alias).filter(pk__gt=begin)
        pks = list(credentials.order_by("pk").values_list("pk", flat=True)[:CREDENTIALS_PER_RUN])
        end = pks[-1] if pks else begin
        # A range, not a list: it is read from one part of the index.
        events = _events(alias).filter(credential_id__gt=begin, credential_id__lte=end)
        found = sorted({*_too_old(events), *_too_many(events)})
    for start in range(0, len(found), DELETE_BATCH_SIZE):
        yield found[start : start + DELETE_BATCH_SIZE]
    after = end if len(pks) == CREDENTIALS_PER_RUN else 0
    if after != begin:
        with own_transaction(alias):
            workers.update(pruned_credential_id=after)


def _too_old(events: QuerySet[CredentialEvent]) -> Iterator[int]:
    """Yield the events after ``EVENT_RETENTION_DAYS``.

    Imports are kept: they recognize a refresh token if the same export is imported again.
    """
    if not conf.EVENT_RETENTION_DAYS:
        return
    kept = Q(kind=EventKind.IMPORTED)
    if conf.EVENT_RETENTION_REFRESHES:
        kept |= Q(kind__in=REFRESHES)
    ended = DatabaseNow() - timedelta(days=conf.EVENT_RETENTION_DAYS)
    yield from _pks(events.filter(~kept, created_at__lt=ended))


def _too_many(events: QuerySet[CredentialEvent]) -> Iterator[int]:
    """Yield the refreshes of each credential but the newest ``EVENT_RETENTION_REFRESHES``."""
    if not conf.EVENT_RETENTION_REFRESHES:
        return
    rank = Window(RowNumber(), partition_by=F("credential_id"), order_by=F("id").desc())
    ranked = events.filter(kind__in=REFRESHES).annotate(rank=rank)
    yield from _pks(ranked.filter(rank__gt=conf.EVENT_RETENTION_REFRESHES))


def _pks(events: QuerySet[Any]) -> list[int]:
    return list(events.order_by("pk").values_list("pk", flat=True)[:MAX_PRUNED])


def _events(alias: str) -> QuerySet[CredentialEvent]:
    return CredentialEvent._base_manager.using(alias)
