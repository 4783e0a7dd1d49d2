"""The credentials in the database of a benchmark: how many are stored, and how many are due."""

# ruff: noqa: S608  # the names and numbers in these statements are our own
from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Final

from django.db import connection
from django.utils import timezone

from benchmarks.keap import Grant
from django_infusionsoft.models import Credential, CredentialEvent
from django_infusionsoft.rows import NO_LEASE

BATCH: Final = 2000
# Stored, and not due: invented accounts, whose tokens nobody presents.
QUIET: Final = "quiet"
TEMPLATE: Final = f"{QUIET}0"
# The moments at which the due ones were due: over the last hour, each at one of its own.
DUE_AT: Final = "clock_timestamp() - interval '1 hour' + mod(id, 3600000) * interval '1 ms'"


def clear() -> None:
    """Take everything away."""
    _execute(f"TRUNCATE {_table(Credential)}, {_table(CredentialEvent)} RESTART IDENTITY")


def add_due(grants: Iterable[Grant]) -> None:
    """Store grants and let them be due."""
    Credential.objects.bulk_create((_credential(*grant) for grant in grants), batch_size=BATCH)
    make_due()


def fill_up(stored: int) -> None:
    """Add credentials that are not due, until so many are stored; count the due ones in."""
    missing = stored - Credential.objects.count()
    if missing <= 0:
        return
    known = Credential.objects.filter(account__startswith=QUIET).count()
    if not known:
        template = _credential(TEMPLATE, "access", "refresh")
        template.refresh_at = template.expires_at
        template.save()
        known, missing = 1, missing - 1
    # One row again and again: a million values to encrypt would take minutes.
    values = {
        "account": f"'{QUIET}' || n",
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
        f"FROM {_table(Credential)}, generate_series({known}, {known + missing - 1}) AS n "
        f"WHERE account = '{TEMPLATE}'"
    )


def make_due() -> None:
    """Let all but the quiet ones be due again, free of leases, and leave no work behind.

    Without old versions of rows, each measurement begins with what the one before began with.
    """
    rows = Credential.objects.exclude(account__startswith=QUIET)
    rows.update(**NO_LEASE)
    _execute(
        f"UPDATE {_table(Credential)} SET refresh_at = {DUE_AT} WHERE account NOT LIKE '{QUIET}%'"
    )
    _execute(f"TRUNCATE {_table(CredentialEvent)}")
    tidy_up()


def give_back(pks: Sequence[int]) -> None:
    """Let what was claimed be due as it was."""
    _execute(
        f"UPDATE {_table(Credential)} SET refresh_at = {DUE_AT}, lease_until = NULL, "
        f"lease_id = '', lease_holder = '' WHERE id = ANY(%s)",
        list(pks),
    )


def tidy_up() -> None:
    """Do at once what autovacuum would do in the middle of a measurement."""
    _execute(f"VACUUM ANALYZE {_table(Credential)}")


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


def _table(model: type[Credential | CredentialEvent]) -> str:
    return connection.ops.quote_name(model._meta.db_table)


def _execute(sql: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
