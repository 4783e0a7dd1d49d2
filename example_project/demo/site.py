"""The example site in the demo: its environment, and its code in this process.

Models can be imported only after ``enter()``, hence the imports inside functions.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import django
from django.contrib.auth import get_user_model
from django.core.management import call_command

from django_infusionsoft.sandbox import Client

from .folder import Folder, Secrets

if TYPE_CHECKING:
    from django_infusionsoft.models import Credential

ADMIN = "admin"
OWN_VARIABLES = ("CELERY_", "DATABASE_URL", "DJANGO_", "INFUSIONSOFT_")


def environment(
    folder: Folder, secrets: Secrets, *, sandbox_url: str, beat_seconds: float
) -> dict[str, str]:
    """Return the environment of the site and its worker, with the sandbox's URLs."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)
    }
    return inherited | {
        "CELERY_BEAT_SECONDS": str(beat_seconds),
        "CELERY_BROKER_FOLDER": str(folder.broker),
        "CELERY_BROKER_URL": "filesystem://",
        "DATABASE_URL": f"sqlite:///{folder.database}",
        "DJANGO_DEBUG": "true",  # otherwise runserver serves no static files
        "DJANGO_SECRET_KEY": secrets.secret_key,
        "DJANGO_SETTINGS_MODULE": "example_project.settings",
        "INFUSIONSOFT_API_URL": f"{sandbox_url}/crm/rest/",
        "INFUSIONSOFT_AUTHORIZE_URL": f"{sandbox_url}/app/oauth/authorize",
        "INFUSIONSOFT_CLIENT_ID": Client().client_id,
        "INFUSIONSOFT_CLIENT_SECRET": Client().client_secret,
        "INFUSIONSOFT_ENCRYPTION_KEYS": secrets.encryption_key,
        "INFUSIONSOFT_TOKEN_URL": f"{sandbox_url}/token",
        # All requests stay on this machine: no proxy can reach it.
        "NO_PROXY": "*",
        "no_proxy": "*",
        "PYTHONUNBUFFERED": "1",
    }


def enter(environment: Mapping[str, str]) -> None:
    """Configure this process as one of the site's."""
    os.environ.clear()
    os.environ.update(environment)
    django.setup()


def prepare(admin_password: str) -> None:
    """Create the tables and the admin user, if the database lacks them."""
    call_command("migrate", verbosity=0)
    user, _ = get_user_model().objects.get_or_create(
        username=ADMIN, defaults={"is_staff": True, "is_superuser": True}
    )
    if not user.check_password(admin_password):
        user.set_password(admin_password)
        user.save()


def credential(account: str) -> "Credential":
    """Return the account's credential as it is now."""
    from django_infusionsoft.models import Credential

    return Credential.objects.for_account(account)


def contacts(account: str) -> list[dict[str, Any]]:
    """Return the account's contacts from the API, as a site's own code does."""
    response = credential(account).session().get("v2/contacts")
    response.raise_for_status()
    found: list[dict[str, Any]] = response.json()["contacts"]
    return found
