"""A credential's row: what it says now, and what a new pair makes of it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from django.db import router
from django.db.models import BooleanField, ExpressionWrapper, Q, QuerySet
from django.utils import timezone

from django_infusionsoft import oauth
from django_infusionsoft.choices import Condition, Status
from django_infusionsoft.conf import conf
from django_infusionsoft.database import DatabaseNow, own_transaction
from django_infusionsoft.exceptions import ReauthorizationRequired
from django_infusionsoft.fields import seal
from django_infusionsoft.timing import Plan

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
_bringing_up = threading.Lock()
# How a row says that nobody holds it.
NO_LEASE: Final[Mapping[str, Any]] = {
    "lease_until": None,
    "lease_id": "",
    "lease_holder": "",
    "lease_is_used": False,
}


def process_name() -> str:
    """Return who this is, for a row or a history: ``web-1:4242``, host and process."""
    return _process_name(os.getpid())


@cache
def _process_name(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}"[-100:]


def alias_of(credential: Credential) -> str:
    return router.db_for_write(type(credential), instance=credential)


def row_of(credential: Credential) -> QuerySet[Credential]:
    return type(credential)._base_manager.using(alias_of(credential)).filter(pk=credential.pk)


def is_in(condition: Condition) -> Q:
    """Whether a credential's row is in this condition, by the database's clock."""
    is_alive = Q(status=Status.CONNECTED)
    match condition:
        case Condition.NEEDS_ATTENTION:
            return Q(status=Status.REAUTHORIZATION_REQUIRED)
        case Condition.DISCONNECTED:
            return Q(status=Status.DISCONNECTED)
        case Condition.REFRESHING:
            # The lease says it; when it is due, which is the lease's end meanwhile, has an index.
            # Twice: of another machine's settings.
            now, longest = DatabaseNow(), timedelta(seconds=2 * conf.LEASE_SECONDS)
            is_soon = Q(refresh_at__gt=now, refresh_at__lte=now + longest)
            return is_alive & is_soon & Q(lease_until__gt=now)
        case Condition.RETRYING:
            return is_alive & Q(failures__gt=0) & is_idle()
        case Condition.CONNECTED:
            return is_alive & Q(failures=0) & is_idle()


def is_idle() -> Q:
    """Whether nobody holds a row's lease, by the database's clock."""
    # Not the opposite of the above: to the database, NULL is neither.
    return Q(lease_until__isnull=True) | Q(lease_until__lte=DatabaseNow())


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
    read_clock(credential, row.pop("database_now"))
    bring_up(credential, row)
    return leased


def read_clock(credential: Credential, database_now: datetime) -> None:
    """Remember how far this machine's clock is ahead of the database's."""
    credential.clock_ahead = timezone.now() - database_now


def take_over(credential: Credential, other: Credential) -> None:
    """Bring an instance up to another one of the same row, secrets unopened."""
    credential.clock_ahead = other.clock_ahead
    bring_up(credential, {name: other.__dict__[name] for name in SHARED_FIELDS})


def bring_up(credential: Credential, columns: dict[str, Any]) -> None:
    """Give an instance what its row says, in one step, and never what it said before.

    Threads may share the instance, and one of them may have read the row long ago. Secrets come
    encrypted.
    """
    with _bringing_up:
        known = credential.__dict__.get("generation")
        if known is None or columns["generation"] >= known:
            credential.__dict__.update(columns)


def refresh_plan() -> Plan:
    """Return when pairs are refreshed, by the settings."""
    return Plan(conf.REFRESH_FRACTION, conf.REFRESH_TOKEN_DAYS * 86_400.0)


def columns_for(
    pair: oauth.TokenPair, *, seed: str, plan: Plan, now: datetime | DatabaseNow
) -> dict[str, Any]:
    """Return what a new pair makes of a row, counted from ``now`` by whichever clock it is."""
    seconds_left = pair.seconds_left
    delay = plan.delay(seconds_left, seed=seed, now=datetime.now(UTC))
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
        **NO_LEASE,
    }
    if pair.refresh_token is not None:
        columns["refresh_token"] = seal(pair.refresh_token)
    return columns
