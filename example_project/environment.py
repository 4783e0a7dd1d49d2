"""Reads settings from the environment that django-environ alone cannot."""

import os
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from environ import Env

from django_infusionsoft.conf import SETTINGS

SQLITE_OPTIONS = {
    # Web server and worker share the file: without these, "database is locked" under load.
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
    "timeout": 20,
    "transaction_mode": "IMMEDIATE",
}


def infusionsoft_settings() -> dict[str, Any]:
    """Return the app's settings that the environment contains, each in its type."""
    return {
        name: _value(name, setting.type)
        for name, setting in SETTINGS.items()
        if name in os.environ
    }


def _value(name: str, type_: type) -> Any:
    text = os.environ[name]
    if type_ is str:  # django-environ treats a value that starts with $ as a reference
        return text
    if type_ is list:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return Env().get_value(name, cast=type_)
    except ValueError as error:
        raise ImproperlyConfigured(f"{name}={text} is not of type {type_.__name__}.") from error


def secret_key(*, debug: bool) -> str:
    """Return ``DJANGO_SECRET_KEY``, which only debug mode does not require.

    :raises ImproperlyConfigured: it is missing.
    """
    if key := os.environ.get("DJANGO_SECRET_KEY"):
        return key
    if debug:
        return "insecure: for debug mode only"
    raise ImproperlyConfigured(
        "DJANGO_SECRET_KEY is not set. Set it to a long random value, or DJANGO_DEBUG=true "
        "while you try it on your own machine."
    )


def database(default: str) -> dict[str, Any]:
    """Return ``DATABASE_URL`` as an entry of Django's ``DATABASES``."""
    described: dict[str, Any] = Env().db_url("DATABASE_URL", default=default)
    if described["ENGINE"] == "django.db.backends.sqlite3":
        described["OPTIONS"] = SQLITE_OPTIONS
    return described


def filesystem_broker(folder: Path) -> dict[str, str]:
    """Create the folders of Celery's ``filesystem://`` broker, and return its options."""
    messages, control = folder / "messages", folder / "control"
    for each in (messages, control):
        each.mkdir(parents=True, exist_ok=True)
    return {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
    }
