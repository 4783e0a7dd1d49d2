"""A site on the database that ``DATABASE_URL`` names; ``BENCHMARKS_SETTINGS`` adds to it."""

import json
import os
from pathlib import Path
from typing import Any

from environ import Env

SQLITE_OPTIONS = {
    # Without these three, threads and processes meet "database is locked".
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
    "timeout": 20,
    "transaction_mode": "IMMEDIATE",
}


def _database() -> dict[str, Any]:
    database: dict[str, Any] = Env().db_url("DATABASE_URL")
    # What a run makes for itself, and drops in the end.
    own = f"benchmarks_{os.getpid()}"
    if database["ENGINE"].endswith("sqlite3"):
        file = Path(database["NAME"]).parent / f"{own}.sqlite3"
        return database | {"OPTIONS": SQLITE_OPTIONS, "TEST": {"NAME": str(file)}}
    if database["ENGINE"].endswith("mysql"):
        _use_pymysql()
    return database | {"TEST": {"NAME": own}}


def _use_pymysql() -> None:
    import pymysql

    # Django asks for the version of mysqlclient, whose place PyMySQL takes here.
    pymysql.version_info = (2, 2, 7, "final", 0)
    pymysql.install_as_MySQLdb()


DATABASES = {"default": _database()}

SECRET_KEY = "benchmarks"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django_infusionsoft",
]

# Invented; as Fernet wants it: 32 bytes, base64.
INFUSIONSOFT_ENCRYPTION_KEYS = ["YmVuY2htYXJrcy1vbmx5LWJlbmNobWFya3Mtb25seS0="]

globals().update(json.loads(os.environ.get("BENCHMARKS_SETTINGS", "{}")))
