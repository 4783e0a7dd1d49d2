"""Settings of the test suite. ``DATABASE_URL`` selects the database; the default is SQLite."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from environ import Env

from django_infusionsoft.schedule import beat_schedule

RUN = f"django_infusionsoft_{os.getpid()}"  # several runs may share a server

SQLITE_OPTIONS = {
    # Without these three, threads and processes fail with "database is locked".
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
    "timeout": 20,
    "transaction_mode": "IMMEDIATE",
}


def _database() -> dict[str, Any]:
    env = Env()
    # A file, since another process cannot open a database in memory.
    folder = Path(tempfile.gettempdir())
    default = f"sqlite:///{folder / RUN}.sqlite3"
    database: dict[str, Any] = env.db_url("DATABASE_URL", default=default)
    engine = database["ENGINE"]
    if engine.endswith("sqlite3"):
        file = folder / f"test_{RUN}.sqlite3"
        database |= {"OPTIONS": SQLITE_OPTIONS, "TEST": {"NAME": str(file)}}
    else:
        database |= {"TEST": {"NAME": f"test_{RUN}"}}
    if engine.endswith("mysql"):
        _use_pymysql()
    return database


def _use_pymysql() -> None:
    import pymysql

    # Django checks the version of mysqlclient, which PyMySQL replaces here.
    pymysql.version_info = (2, 2, 7, "final", 0)
    pymysql.install_as_MySQLdb()


DATABASES = {"default": _database()}

SECRET_KEY = "tests"
ALLOWED_HOSTS = ["testserver", "localhost", "127.0.0.1"]
ROOT_URLCONF = "tests.urls"
USE_TZ = True
STATIC_URL = "static/"
LOGIN_URL = "admin:login"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # fast; these protect nothing
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_infusionsoft",
    "tests.quick_flush",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# For Celery in worker processes that the tests start.
CELERY_BEAT_SCHEDULE = beat_schedule(seconds=1)
CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL", "memory://")

# A Fernet key: 32 bytes, base64.
INFUSIONSOFT_ENCRYPTION_KEYS = ["Nq7uN1nYc0sPZ3bX9hKfTz2LwAe5VdRjG8mQyIoC4tE="]
INFUSIONSOFT_CLIENT_ID = os.environ.get("INFUSIONSOFT_CLIENT_ID", "sandbox-client")
INFUSIONSOFT_CLIENT_SECRET = os.environ.get("INFUSIONSOFT_CLIENT_SECRET", "sandbox-secret")

# Settings that a test overrides for the processes that it starts.
globals().update(json.loads(os.environ.get("TESTS_SETTINGS", "{}")))
