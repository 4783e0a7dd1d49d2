"""A credential's history: events and log lines. They never contain a secret."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

from django.db import Error, IntegrityError, transaction

from django_infusionsoft.choices import EventKind
from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.storage.credentials import CredentialRow, alias_of
from django_infusionsoft.storage.database import (
    close_idle_connection,
    own_transaction,
)
from django_infusionsoft.storage.events import CredentialEvent
from django_infusionsoft.storage.worker import process_name
from django_infusionsoft.text import quoted

logger = logging.getLogger("django_infusionsoft")

# Each is the reply to one refresh token.
REFRESHES: Final = (EventKind.REFRESHED, EventKind.RECOVERED)
# The reply contained a token pair, even if it was not stored.
ANSWERED: Final = (*REFRESHES, EventKind.LATE_REPLY_DROPPED)
LEVELS: Final = {
    EventKind.REFRESH_FAILED: logging.WARNING,
    EventKind.LATE_REPLY_DROPPED: logging.WARNING,
    EventKind.ABANDONED: logging.WARNING,
    EventKind.RECOVERED: logging.WARNING,
    EventKind.REAUTHORIZATION_REQUIRED: logging.ERROR,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """An event of a credential to record."""

    credential: CredentialRow
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
    """Return 12 hex digits that identify a refresh token without revealing it."""
    return hashlib.sha256(refresh_token.encode()).hexdigest()[:12]


def knows_answer(credential: CredentialRow, presented: str) -> bool:
    """Whether the reply to the refresh token with this fingerprint has been stored."""
    return not _kinds_with(credential, presented).isdisjoint(REFRESHES)


def presentations(credential: CredentialRow, presented: str) -> set[str]:
    """Return the kinds of this site's earlier presentations of the refresh token.

    One that a rejection ended is not among them.
    """
    others = {EventKind.IMPORTED, EventKind.REAUTHORIZATION_REQUIRED}
    return _kinds_with(credential, presented) - others


def knows(credential: CredentialRow, fingerprint: str) -> bool:
    """Whether the credential has had the refresh token with this fingerprint."""
    return bool(fingerprint and _kinds_with(credential, fingerprint))


def record(
    credential: CredentialRow, kind: EventKind, *, on_its_own: bool = True, **details: Any
) -> None:
    """Write one event and one log line, after the fact.

    :param on_its_own: whether to commit the event outside the caller's transaction.
    :param details: fields of ``CredentialEvent``.
    """
    record_all([Entry(credential, kind, details)], on_its_own=on_its_own)


def record_all(entries: Sequence[Entry], *, on_its_own: bool = True) -> None:
    """Write events of one database's credentials, and a log line for each, after the fact.

    Database errors are logged, not raised.
    """
    for entry in entries:
        level = LEVELS.get(entry.kind, logging.INFO)
        logger.log(level, "%s %s", entry.kind.value, entry)
    if entries:
        _write_entries(entries, on_its_own=on_its_own)


def _kinds_with(credential: CredentialRow, presented: str) -> set[str]:
    """Return the kinds of the events with this fingerprint."""
    alias = alias_of(credential)
    with own_transaction(alias):
        events = CredentialEvent._base_manager.using(alias)
        same = events.filter(credential_id=credential.pk, fingerprint=presented)
        return set(same.values_list("kind", flat=True))


def _write_entries(entries: Sequence[Entry], *, on_its_own: bool) -> None:
    alias = alias_of(entries[0].credential)
    try:
        with (own_transaction if on_its_own else nullcontext)(alias):
            _write(alias, entries)
    except (Error, DatabaseBusy) as error:
        close_idle_connection(alias)
        if isinstance(error, IntegrityError) and len(entries) > 1:  # a credential was deleted
            for entry in entries:
                _write_entries([entry], on_its_own=on_its_own)
            return
        for entry in entries:
            logger.exception("event_not_written %s", entry)


def _write(alias: str, entries: Sequence[Entry]) -> None:
    events = CredentialEvent._base_manager.using(alias)
    credentials = type(entries[0].credential)._base_manager.using(alias)
    refreshed = [entry.credential.pk for entry in entries if entry.kind in REFRESHES]
    with transaction.atomic(using=alias):
        if refreshed:
            # First: MariaDB locks the rows of the events' foreign keys, but only for reading.
            credentials.filter(pk__in=refreshed).update(is_unreported=False)
        events.bulk_create([CredentialEvent(**entry.columns) for entry in entries])
