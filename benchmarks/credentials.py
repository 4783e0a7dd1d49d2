"""Fills the database of a benchmark with due and idle credentials."""

# ruff: noqa: S608  # the statements contain only constants and numbers
from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Final

from django.db import connection
from django.db.models import Model
from django.utils import timezone

from benchmarks.sandbox_process import Grant
from django_infusionsoft.models import Credential, CredentialEvent
from django_infusionsoft.storage.credentials import NO_LEASE

BATCH: Final = 2000
# The accounts of credentials that are not due. Their tokens are never presented.
IDLE: Final = "idle"
TEMPLATE: Final = f"{IDLE}0"
# Due times that are spread over the last hour.
DUE_AT: Final = "clock_timestamp() - interval '1 hour' + mod(id, 3600000) * interval '1 ms'"


def delete_all() -> None:
    """Delete all credentials and events."""
    _execute(f"TRUNCATE {_table(Credential)}, {_table(CredentialEvent)} RESTART IDENTITY")


def add_due(grants: Iterable[Grant]) -> None:
    """Store grants as credentials that are due."""
    Credential.objects.bulk_create((_credential(*grant) for grant in grants), batch_size=BATCH)
    make_due()


def add_idle(stored: int) -> None:
    """Add credentials that are not due, until ``stored`` are stored, including due ones."""
    missing = stored - Credential.objects.count()
    if missing <= 0:
        return
    existing = Credential.objects.filter(account__startswith=IDLE).count()
    if not existing:
        template = _credential(TEMPLATE, "access", "refresh")
        template.refresh_at = template.expires_at
        template.save()
        existing, missing = 1, missing - 1
    # Copies of one row: encrypting a million values would take minutes.
    values = {
        "account": f"'{IDLE}' || n",
        "refresh_at": "clock_timestamp() + interval '1 hour' + n * interval '60 ms'",
    }
    columns = [
        str(field.column)
        for field in Credential._meta.concrete_fields
        if not field.primary_key and not field.generated
    ]
    _execute(
        f"INSERT INTO {_table(Credential)} ({', '.join(columns)}) "
        f"SELECT {', '.join(values.get(column, column) for column in columns)} "
        f"FROM {_table(Credential)}, generate_series({existing}, {existing + missing - 1}) AS n "
        f"WHERE account = '{TEMPLATE}'"
    )


def make_due() -> None:
    """Make all but the idle credentials due again, release their leases, and vacuum the table.

    Without old versions of rows, all measurements start from the same state.
    """
    rows = Credential.objects.exclude(account__startswith=IDLE)
    rows.update(**NO_LEASE)
    _execute(
        f"UPDATE {_table(Credential)} SET refresh_at = {DUE_AT} WHERE account NOT LIKE '{IDLE}%'"
    )
    _execute(f"TRUNCATE {_table(CredentialEvent)}")
    vacuum()


def add_events(kind: str, *, hours_ago: float, every: int = 1, offset: int = 0) -> None:
    """Add an event to each ``every``-th credential."""
    _execute(
        f"INSERT INTO {_table(CredentialEvent)} (credential_id, created_at, kind, outcome, "
        "reason, generation, fingerprint, duration_ms, worker, detail) "
        "SELECT id, now() - %s * interval '1 hour', %s, 'ok', '', 100, "
        "substr(md5(random()::text), 1, 12), 300, 'web-1:4242', '' "
        f"FROM {_table(Credential)} WHERE mod(id, %s) = %s ORDER BY random()",
        hours_ago,
        kind,
        every,
        offset,
    )


def table_bytes(model: type[Model]) -> int:
    """Return the size of a table with its indexes."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_total_relation_size(%s::regclass)", [_table(model)])
        return int(cursor.fetchone()[0])


def release(pks: Sequence[int]) -> None:
    """Release leases, and make the credentials due again."""
    _execute(
        f"UPDATE {_table(Credential)} SET refresh_at = {DUE_AT}, lease_until = NULL, "
        f"lease_id = '', lease_holder = '' WHERE id = ANY(%s)",
        list(pks),
    )


def vacuum(model: type[Model] = Credential) -> None:
    """Vacuum now, so that autovacuum does not run during a measurement."""
    _execute(f"VACUUM ANALYZE {_table(model)}")


def _credential(account: str, access_token: str, refresh_token: str) -> Credential:
    now = timezone.now()
    return Credential(
        account=account,
        access_token=access_token,
        refresh_token=refresh_token,
        generation=1,
        issued_at=now - timedelta(hours=18),
        expires_at=now + timedelta(hours=6),
        connected_at=now - timedelta(days=30),
        refresh_at=now,
    )


def _table(model: type[Model]) -> str:
    return connection.ops.quote_name(model._meta.db_table)


def _execute(sql: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
