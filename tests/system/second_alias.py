"""A site whose ``default`` database has a time zone, so that the app uses a second alias of it.

Run as ``python -m tests.system.second_alias``: a running process cannot change its databases.
"""

from datetime import timedelta
from typing import Any

import django


class KeapRouter:
    """As in docs/checks.rst."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "keap" if model._meta.app_label == "django_infusionsoft" else "default"

    db_for_write = db_for_read

    def allow_relation(self, *rows: Any, **hints: Any) -> bool:
        return True


def main() -> None:
    """Create the tables, connect an account, use the admin, and delete the user."""
    django.setup()
    from django.contrib.auth.models import User
    from django.core.checks import run_checks
    from django.core.management import call_command
    from django.test import Client, override_settings
    from django.utils import timezone

    from django_infusionsoft.models import Credential, CredentialEvent
    from django_infusionsoft.sandbox import Sandbox
    from tests.web import LIST, authorize, change_url, page

    call_command("migrate", verbosity=0)
    problems = [each.id for each in run_checks() if (each.id or "").startswith("django_inf")]
    assert problems == [], problems
    user = User.objects.create_superuser("ana")
    client = Client(SERVER_NAME="localhost")
    client.force_login(user)
    with Sandbox() as sandbox, override_settings(**sandbox.settings):
        authorize(client, sandbox, next=LIST)
        credential = Credential.objects.get()
        assert credential.authorized_by == user
        assert credential.expires_at > timezone.now() + timedelta(hours=23)
        assert Credential.objects.due().count() == 0
        for action in ("refresh", "test"):
            assert client.post(f"{LIST}{credential.pk}/{action}/").status_code == 302
        assert "ab123" in page(client, f"{LIST}?q=ana")
        assert page(client, change_url(credential)).count("by ana") == 3
        Credential.objects.connected().request_refresh()
        assert Credential.objects.refresh_due().refreshed == 1
        user.delete()
    assert Credential.objects.get().authorized_by is None
    assert CredentialEvent.objects.filter(kind="refreshed", user=None).count() == 2


if __name__ == "__main__":
    main()
