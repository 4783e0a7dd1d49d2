"""Checks of the database: its time zone, its transactions and its contents."""

import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage
from django.db import Error as DatabaseError
from django.db import connections, router
from django.db.models import Max
from django.db.models.functions import TruncHour

from django_infusionsoft.checks.problems import problem
from django_infusionsoft.checks.values import Check, where_settings_are_valid
from django_infusionsoft.choices import Status
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import DatabaseBusy, DecryptionError
from django_infusionsoft.models import Application, Credential
from django_infusionsoft.monitoring.health import health_of
from django_infusionsoft.storage.usability import (
    DatabaseProblem,
    check_usable,
    explain,
    problem_of,
)


def check_time_zones(**kwargs: Any) -> list[CheckMessage]:
    """E005: expiry times are stored as absolute times."""
    if settings.USE_TZ:
        return []
    return problem(
        "E005",
        "USE_TZ is off, so access tokens would seem to expire at the wrong time.",
        "Set USE_TZ = True, which is Django's default.",
    )


def check_database_time_zone(**kwargs: Any) -> list[CheckMessage]:
    """E006: stored times are compared with the database's clock, which is read in UTC."""
    alias = router.db_for_write(Credential)
    connection = connections[alias]
    # PostgreSQL stores times with their zone.
    if connection.vendor == "postgresql" or not settings.USE_TZ or _is_utc(connection.timezone):
        return []
    return problem(
        "E006",
        f"DATABASES[{alias!r}]['TIME_ZONE'] is not UTC, so credentials would be refreshed "
        "hours too early or too late.",
        "Remove it, or set it to 'UTC', and convert the times that are already stored. "
        "Alternatively, add the same database to DATABASES once more, without TIME_ZONE, and "
        "route the models of django_infusionsoft to this alias: see docs/checks.rst.",
    )


def check_database_of_users(**kwargs: Any) -> list[CheckMessage]:
    """E008: the app's tables have foreign keys to the users' table."""
    alias, users = router.db_for_write(Credential), router.db_for_write(get_user_model())
    if _database_of(alias) == _database_of(users):
        return []
    return problem(
        "E008",
        f"The models of django_infusionsoft are in DATABASES[{alias!r}], but the users, to whom "
        f"they have foreign keys, are in DATABASES[{users!r}]. Migrations, or the deletion of a "
        "user, would fail.",
        "Route both to the same database. It may have several aliases.",
    )


def _database_of(alias: str) -> list[Any]:
    settings_dict = connections.settings[alias]
    return [str(settings_dict[name]) for name in ("ENGINE", "NAME", "HOST", "PORT")]


def _is_utc(zone: tzinfo | None) -> bool:
    days = [datetime(2026, month, 1, tzinfo=UTC) for month in range(1, 13)]
    return all(day.astimezone(zone).utcoffset() == timedelta(0) for day in days)


def check_atomic_requests(**kwargs: Any) -> list[CheckMessage]:
    """W014: SQLite has one write lock, and the request's transaction would hold it."""
    alias = router.db_for_write(Credential)
    connection = connections[alias]
    if connection.vendor != "sqlite" or not connection.settings_dict["ATOMIC_REQUESTS"]:
        return []
    return problem(
        "W014",
        f"With DATABASES[{alias!r}]['ATOMIC_REQUESTS'] on SQLite, no request that has written, "
        "or has read without a write-ahead log, can refresh a credential.",
        "The request holds SQLite's only write lock, but the new token pair is stored "
        "over a second connection. Use atomic() only where it is needed, apply "
        "non_atomic_requests to views that call Keap, or use PostgreSQL or MariaDB.",
    )


def check_database_is_usable(
    databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """W021: the tables are missing, read-only or locked. Only with ``--database``."""
    alias = router.db_for_write(Credential)
    try:
        if alias in (databases or ()):
            check_usable(alias)
    except (DatabaseError, DatabaseBusy) as error:
        if problem_of(error) == DatabaseProblem.NOT_MIGRATED and sys.argv[1:2] == ["migrate"]:
            return []  # which is about to resolve it
        return problem(
            "W021",
            explain(error),
            "Until this is resolved, no account is refreshed, and the other checks of the "
            "database are skipped.",
        )
    return []


def where_database_is_usable(check: Check) -> Check:
    """Skip a check without ``--database``, and if the database cannot be used (W021)."""

    @wraps(check)
    def check_if_usable(
        databases: Sequence[str] | None = None, **kwargs: Any
    ) -> list[CheckMessage]:
        alias = router.db_for_write(Credential)
        try:
            if alias not in (databases or ()):
                return []
            check_usable(alias)  # or a query might wait for a lock for ever
            return check(alias=alias, **kwargs)
        except (DatabaseError, DatabaseBusy):
            return []

    return check_if_usable


@where_database_is_usable
def check_client_exists(alias: str, **kwargs: Any) -> list[CheckMessage]:
    """W008: neither the settings nor the admin have a client. Only with ``--database``."""
    names = ("INFUSIONSOFT_CLIENT_ID", "INFUSIONSOFT_CLIENT_SECRET")
    if any(getattr(settings, name, "") for name in names):
        return []  # E003 reports half a client
    if Application.objects.using(alias).exists():
        return []
    return problem(
        "W008",
        "No OAuth client is configured.",
        "Set INFUSIONSOFT_CLIENT_ID and INFUSIONSOFT_CLIENT_SECRET, which are shown at "
        "https://keys.developer.keap.com, or add an application in the admin.",
    )


@where_settings_are_valid
@where_database_is_usable
def check_worker(alias: str, **kwargs: Any) -> list[CheckMessage]:
    """W009: no worker refreshes the accounts. Only with ``--database``."""
    if not health_of(alias).is_worker_late:
        return []
    return problem(
        "W009",
        f"Accounts are connected, but no run has been recorded for {conf.OVERDUE_SECONDS:g} "
        "seconds.",
        "Start Celery's worker and beat, or call `python manage.py "
        "infusionsoft_refresh` from cron every minute or two. If they are already set "
        "up, check their logs.",
    )


@where_settings_are_valid
@where_database_is_usable
def check_stored_values(alias: str, **kwargs: Any) -> list[CheckMessage]:
    """W020: no key decrypts some of the stored values. Only with ``--database``."""
    found = next(_unreadable_values(alias), None)
    if found is None:
        return []
    return problem(
        "W020",
        found,
        "Add the key that is missing to the end of INFUSIONSOFT_ENCRYPTION_KEYS. If it is lost, "
        "reconnect the accounts, and enter the secrets of the applications again.",
    )


def _unreadable_values(alias: str) -> Iterator[str]:
    """Decrypt one credential of each hour, and all applications; yield what is wrong.

    A refresh encrypts with the first key, so values of the same hour have the same key, unless it
    changed then.
    """
    credentials = Credential.objects.using(alias).filter(status=Status.CONNECTED)
    hours = credentials.annotate(hour=TruncHour("issued_at", tzinfo=UTC)).order_by()
    newest = hours.values("hour").annotate(newest=Max("pk")).values_list("newest", flat=True)
    for credential in credentials.filter(pk__in=list(newest)).order_by("issued_at"):
        try:
            credential.access_token, credential.refresh_token  # noqa: B018  # decrypts them
        except DecryptionError as error:
            yield f"{credential}: {error}"
    for application in Application.objects.using(alias):
        try:
            application.client_secret  # noqa: B018
        except DecryptionError as error:
            yield f"{application}: {error}"
