"""The settings of a site on PostgreSQL, and those in ``BENCHMARKS_SETTINGS`` (JSON)."""

import json
import os

from environ import Env

# Each run creates its own database, and drops it at the end.
DATABASES = {
    "default": {**Env().db_url("DATABASE_URL"), "TEST": {"NAME": f"benchmarks_{os.getpid()}"}}
}

SECRET_KEY = "benchmarks"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django_infusionsoft",
]

# Invented. A Fernet key: 32 bytes in base64.
INFUSIONSOFT_ENCRYPTION_KEYS = ["YmVuY2htYXJrcy1vbmx5LWJlbmNobWFya3Mtb25seS0="]

globals().update(json.loads(os.environ.get("BENCHMARKS_SETTINGS", "{}")))
