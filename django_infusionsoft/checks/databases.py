"""The database: its clock, its transactions, and what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.db import Error as DatabaseError
from django.db import connections, router

from django_infusionsoft.checks.values import where_settings_are_valid
from django_infusionsoft.conf import conf
from django_infusionsoft.health import health_of

if TYPE_CHECKING:
    from django.db.models import Model


def _model(name: str) -> type[Model]:
    # By its name: models cannot be imported before all apps are there.
    return apps.get_model("django_infusionsoft", name)


def _alias() -> str:
    return router.db_for_write(_model("Credential"))


def check_time_zones(**kwargs: Any) -> list[CheckMessage]:
    """E005: expiry is kept as an absolute time."""
    if settings.USE_TZ:
        return []
    return [
        Error(
            "USE_TZ is off, and access tokens would seem to end at another time than they do.",
            hint="Set USE_TZ = True, which is Django's default.",
            id="django_infusionsoft.E005",
        )
    ]


def check_database_time_zone(**kwargs: Any) -> list[CheckMessage]:
    """E006: stored times are compared with the database's clock, which we read in UTC."""
    alias = _alias()
    connection = connections[alias]
    # PostgreSQL keeps times with their zone.
    if connection.vendor == "postgresql" or not settings.USE_TZ or _is_utc(connection.timezone):
        return []
    return [
        Error(
            f"DATABASES[{alias!r}]['TIME_ZONE'] is not UTC, and credentials would be refreshed "
            "hours too early or too late.",
            hint="Take it out, or set it to 'UTC'. Times that are stored already have to be "
            "converted. Or route the models of django_infusionsoft to another database.",
            id="django_infusionsoft.E006",
        )
    ]


def _is_utc(zone: tzinfo | None) -> bool:
    days = [datetime(2026, month, 1, tzinfo=UTC) for month in range(1, 13)]
    return all(day.astimezone(zone).utcoffset() == timedelta(0) for day in days)


def check_atomic_requests(**kwargs: Any) -> list[CheckMessage]:
    """W014: SQLite has one write lock, and a request would hold it from a second connection."""
    alias = _alias()
    connection = connections[alias]
    if connection.vendor != "sqlite" or not connection.settings_dict["ATOMIC_REQUESTS"]:
        return []
    return [
        checks.Warning(
            f"With DATABASES[{alias!r}]['ATOMIC_REQUESTS'] on SQLite no request that has written "
            "can refresh a credential.",
            hint="The request holds the one write lock, and the new pair is stored over a second "
            "connection. Use atomic() around what needs it, put non_atomic_requests on views "
            "that call Keap, or use PostgreSQL or MariaDB.",
            id="django_infusionsoft.W014",
        )
    ]


def check_client_exists(
    databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """W008: neither the settings nor the admin have a client. With ``--database`` only."""
    names = ("INFUSIONSOFT_CLIENT_ID", "INFUSIONSOFT_CLIENT_SECRET")
    if any(getattr(settings, name, "") for name in names):
        return []  # E003 tells where it is half of one
    alias = router.db_for_write(_model("Application"))
    try:
        if alias not in (databases or ()) or _has_rows(alias):
            return []
    except DatabaseError:  # before the first migration
        return []
    return [
        checks.Warning(
            "There is no client to connect accounts with.",
            hint="Set INFUSIONSOFT_CLIENT_ID and INFUSIONSOFT_CLIENT_SECRET, which are shown at "
            "https://keys.developer.keap.com, or add an application in the admin.",
            id="django_infusionsoft.W008",
        )
    ]


def _has_rows(alias: str) -> bool:
    return _model("Application")._base_manager.using(alias).exists()


@where_settings_are_valid
def check_worker(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """W009: nobody keeps the accounts connected. With ``--database`` only."""
    alias = _alias()
    try:
        if alias not in (databases or ()) or not health_of(alias).is_worker_late:
            return []
    except DatabaseError:  # before the first migration, or the next
        return []
    return [
        checks.Warning(
            f"Accounts are connected, and no run has been seen for {conf.OVERDUE_SECONDS:g} "
            "seconds.",
            hint="Start Celery's worker and beat, or call `python manage.py infusionsoft_refresh` "
            "from cron every minute or two. If that is what you do, look at what they log.",
            id="django_infusionsoft.W009",
        )
    ]
