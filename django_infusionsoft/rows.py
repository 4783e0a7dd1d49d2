"""A credential's row: what it says now, and what a new pair makes of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from django.db import router
from django.db.models import BooleanField, ExpressionWrapper, Q, QuerySet
from django.utils import timezone

from django_infusionsoft import oauth, timing
from django_infusionsoft.choices import Status
from django_infusionsoft.database import DatabaseNow, own_transaction
from django_infusionsoft.exceptions import ReauthorizationRequired
from django_infusionsoft.fields import seal

if TYPE_CHECKING:
    from django_infusionsoft.models import Credential

# What other processes change in a row.
SHARED_FIELDS: Final = (
    "access_token",
    "refresh_token",
    "expires_at",
    "issued_at",
    "generation",
    "status",
    "reason",
    "failures",
    "unanswered_attempts",
    "last_error",
    "refresh_at",
)


def alias_of(credential: Credential) -> str:
    return router.db_for_write(type(credential), instance=credential)


def row_of(credential: Credential) -> QuerySet[Credential]:
    return type(credential)._base_manager.using(alias_of(credential)).filter(pk=credential.pk)


def is_leased() -> ExpressionWrapper[Any]:
    """Whether a row's lease is alive, by the database's clock."""
    return ExpressionWrapper(Q(lease_until__gt=DatabaseNow()), BooleanField())


def look(credential: Credential) -> bool:
    """Take over what other processes have written; return whether a lease is alive.

    :raises ReauthorizationRequired: the credential has been deleted.
    """
    facts = {"is_leased": is_leased(), "database_now": DatabaseNow()}
    with own_transaction(alias_of(credential)):
        row = row_of(credential).annotate(**facts).values(*facts, *SHARED_FIELDS).first()
    if row is None:
        raise ReauthorizationRequired(
            f"Credential {credential.pk} is not in the database: it was deleted, or the "
            f"transaction that made it is not committed yet."
        )
    leased = bool(row.pop("is_leased"))
    credential.clock_ahead = timezone.now() - row.pop("database_now")
    for name, value in row.items():
        setattr(credential, name, value)
    return leased


def columns_for(
    pair: oauth.TokenPair, *, seed: str, fraction: float, now: datetime | DatabaseNow
) -> dict[str, Any]:
    """Return what a new pair makes of a row, counted from ``now`` by whichever clock it is."""
    seconds_left = pair.seconds_left
    delay = timing.refresh_delay(seconds_left, fraction=fraction, seed=seed, now=datetime.now(UTC))
    columns: dict[str, Any] = {
        "access_token": seal(pair.access_token),
        "issued_at": now,
        "expires_at": now + timedelta(seconds=seconds_left),
        "refresh_at": now + timedelta(seconds=delay),
        "status": Status.CONNECTED,
        "reason": "",
        "failures": 0,
        "unanswered_attempts": 0,
        "last_error": "",
        "lease_until": None,
        "lease_id": "",
    }
    if pair.refresh_token is not None:
        columns["refresh_token"] = seal(pair.refresh_token)
    return columns
