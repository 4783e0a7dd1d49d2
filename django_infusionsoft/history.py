"""A credential's history: who did what, when, with what result. Never a secret."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from django.db import Error, router, transaction

from django_infusionsoft.choices import EventKind
from django_infusionsoft.database import own_transaction
from django_infusionsoft.exceptions import DatabaseBusy

if TYPE_CHECKING:
    from django_infusionsoft.models import Credential

logger = logging.getLogger("django_infusionsoft")

LEVELS: Final = {
    EventKind.REFRESH_FAILED: logging.WARNING,
    EventKind.LATE_REPLY_DROPPED: logging.WARNING,
    EventKind.REAUTHORIZATION_REQUIRED: logging.ERROR,
}


def fingerprint(refresh_token: str) -> str:
    """Return 12 hex digits that tell refresh tokens apart and lead back to none."""
    return hashlib.sha256(refresh_token.encode()).hexdigest()[:12]


def record(
    credential: Credential, kind: EventKind, *, on_its_own: bool = True, **details: Any
) -> None:
    """Write one event and one log line, after the fact.

    What has happened has happened: a database that cannot take the event is logged, not raised.

    :param on_its_own: apart from the caller's transaction, as what it tells of.
    :param details: fields of ``CredentialEvent``.
    """
    level = LEVELS.get(kind, logging.INFO)
    logger.log(level, "%s %s", kind.value, _fields(credential, details))
    try:
        _write(credential, kind, details, own_transaction if on_its_own else nullcontext)
    except (Error, DatabaseBusy):
        logger.exception("event_not_written %s", _fields(credential, details))


def _write(
    credential: Credential,
    kind: EventKind,
    details: dict[str, Any],
    context: Callable[[str], AbstractContextManager[Any]],
) -> None:
    alias = router.db_for_write(type(credential), instance=credential)
    with context(alias), transaction.atomic(using=alias):
        credential.events.using(alias).create(
            credential_id=credential.pk,
            kind=kind,
            **{"generation": credential.generation, **details},
        )


def _fields(credential: Credential, details: dict[str, Any]) -> str:
    fields = {
        "credential": credential.pk,
        "account": credential.account,
        "generation": credential.generation,
        **{name: value for name, value in details.items() if name != "user"},
    }
    return " ".join(
        f"{name}={_quote(value)}" for name, value in fields.items() if value not in (None, "")
    )


def _quote(value: object) -> str:
    text = str(value)
    return f'"{text}"' if " " in text else text
