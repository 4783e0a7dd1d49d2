"""A credential's history: who did what, when, with what result. Never a secret."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from django.apps import apps
from django.db import Error, IntegrityError, connections, transaction
from django.db.models import Q, QuerySet

from django_infusionsoft.choices import EventKind
from django_infusionsoft.conf import conf
from django_infusionsoft.database import DatabaseNow, own_transaction
from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.plain import quoted
from django_infusionsoft.rows import alias_of, process_name

if TYPE_CHECKING:
    from django_infusionsoft.models import Credential, CredentialEvent

logger = logging.getLogger("django_infusionsoft")

# In one statement, and in one run: some hours' events of a hundred thousand credentials.
PRUNED_AT_ONCE: Final = 1000
MOST_PRUNED: Final = 20_000
LEVELS: Final = {
    EventKind.REFRESH_FAILED: logging.WARNING,
    EventKind.LATE_REPLY_DROPPED: logging.WARNING,
    EventKind.ABANDONED: logging.WARNING,
    EventKind.RECOVERED: logging.WARNING,
    EventKind.REAUTHORIZATION_REQUIRED: logging.ERROR,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """What happened to a credential, to be written down."""

    credential: Credential
    kind: EventKind
    details: Mapping[str, Any]
    """Fields of ``CredentialEvent``."""

    @property
    def columns(self) -> dict[str, Any]:
        """The event's fields."""
        return {
            "credential_id": self.credential.pk,
            "kind": self.kind,
            "generation": self.credential.generation,
            "worker": process_name(),
            **self.details,
        }

    def __str__(self) -> str:
        """The log line's fields."""
        fields = {
            "credential": self.credential.pk,
            "account": self.credential.account,
            "generation": self.credential.generation,
            **{name: value for name, value in self.details.items() if name != "user"},
        }
        return " ".join(
            f"{name}={quoted(value)}" for name, value in fields.items() if value not in (None, "")
        )


def fingerprint(refresh_token: str) -> str:
    """Return 12 hex digits that tell refresh tokens apart and lead back to none."""
    return hashlib.sha256(refresh_token.encode()).hexdigest()[:12]


def knows_stored(credential: Credential, presented: str, successor: str | None) -> bool:
    """Tell whether the answer to a refresh token has been stored, by whomever.

    :param presented: the fingerprint of that refresh token.
    :param successor: the new refresh token, if the answer named one: its own attempt shows it.
    """
    kinds = [EventKind.REFRESHED, EventKind.RECOVERED]
    told = Q(fingerprint=presented, kind__in=kinds)
    if successor is not None:
        told |= Q(fingerprint=fingerprint(successor))
    alias = alias_of(credential)
    with own_transaction(alias):
        return credential.events.using(alias).filter(told).exists()


def record(
    credential: Credential, kind: EventKind, *, on_its_own: bool = True, **details: Any
) -> None:
    """Write one event and one log line, after the fact.

    :param on_its_own: apart from the caller's transaction, as what it tells of.
    :param details: fields of ``CredentialEvent``.
    """
    record_all([Entry(credential, kind, details)], on_its_own=on_its_own)


def record_all(entries: Sequence[Entry], *, on_its_own: bool = True) -> None:
    """Write events of one database's credentials, and a log line for each, after the fact.

    What has happened has happened: a database that cannot take them is logged, not raised.
    """
    for entry in entries:
        level = LEVELS.get(entry.kind, logging.INFO)
        logger.log(level, "%s %s", entry.kind.value, entry)
    if not entries:
        return
    try:
        _write_down(entries, on_its_own=on_its_own)
    except IntegrityError:  # perhaps one is of a credential that has been deleted
        for entry in entries:
            try:
                _write_down([entry], on_its_own=on_its_own)
            except (Error, DatabaseBusy):
                logger.exception("event_not_written %s", entry)
    except (Error, DatabaseBusy):
        for entry in entries:
            logger.exception("event_not_written %s", entry)


def prune(model: type[Credential], alias: str, *, is_over: Callable[[], bool]) -> int:
    """Delete events that are older than ``EVENT_RETENTION_DAYS``; return how many.

    Some at a time, so that no lock is held for long, and not all of a large arrears at once.

    :param is_over: asked after each of these times.
    """
    if not conf.EVENT_RETENTION_DAYS:
        return 0
    ended = DatabaseNow() - timedelta(days=conf.EVENT_RETENTION_DAYS)
    events = _events(model, alias)
    old = events.filter(created_at__lt=ended).order_by("created_at").values_list("pk", flat=True)
    pruned = 0
    try:
        while True:
            with own_transaction(alias):
                found = list(old[:PRUNED_AT_ONCE])
                pruned += events.filter(pk__in=found).delete()[0] if found else 0
            if len(found) < PRUNED_AT_ONCE or pruned >= MOST_PRUNED or is_over():
                break
    except (Error, DatabaseBusy):  # two runs that met; the next one goes on
        logger.exception("events_not_pruned")
        _let_go(alias)
    return pruned


def _write_down(entries: Sequence[Entry], *, on_its_own: bool) -> None:
    alias = alias_of(entries[0].credential)
    try:
        with (own_transaction if on_its_own else nullcontext)(alias):
            _write(alias, entries)
    except (Error, DatabaseBusy):
        _let_go(alias)
        raise


def _let_go(alias: str) -> None:
    """Close a connection that may have been lost between two statements."""
    if not connections[alias].in_atomic_block:
        connections[alias].close()


def _write(alias: str, entries: Sequence[Entry]) -> None:
    events = _events(type(entries[0].credential), alias)
    with transaction.atomic(using=alias):
        events.bulk_create([events.model(**entry.columns) for entry in entries])


def _events(model: type[Credential], alias: str) -> QuerySet[CredentialEvent]:
    events: type[CredentialEvent] = apps.get_model(model._meta.app_label, "CredentialEvent")
    return events._base_manager.using(alias)
