"""A site with a custom user model: ``python -m tests.system.other_users``.

It is a separate process, since a running process cannot change its user model.
"""

from datetime import timedelta
from typing import Any

import django


def main() -> None:
    """Create the tables, and use the admin as a user does."""
    django.setup()
    from django.core.management import call_command
    from django.test import Client, override_settings
    from django.utils import timezone

    from django_infusionsoft.models import Credential, CredentialEvent
    from django_infusionsoft.sandbox import Sandbox
    from tests.system.people.models import Person
    from tests.web import LIST, authorize, change_url, page

    call_command("migrate", verbosity=0)
    person: Any = Person.objects.create_superuser("ana@site.example")
    client = Client(SERVER_NAME="localhost")
    client.force_login(person)
    with Sandbox() as sandbox, override_settings(**sandbox.settings):
        authorize(client, sandbox, next=LIST)
        credential = Credential.objects.get()
        assert credential.authorized_by == person
        for action in ("refresh", "test", "disconnect"):
            assert client.post(f"{LIST}{credential.pk}/{action}/").status_code == 302
        assert "ab123" in page(client, f"{LIST}?q=ana%40site")
        assert "ab123" not in page(client, f"{LIST}?q=otto%40site")
        assert page(client, change_url(credential)).count("by ana@site.example") == 4
    kinds = CredentialEvent.objects.filter(user=person).values_list("kind", flat=True)
    assert sorted(kinds) == ["connected", "disconnected", "refreshed", "tested"]
    assert CredentialEvent.objects.latest("pk").created_at > timezone.now() - timedelta(minutes=1)


if __name__ == "__main__":
    main()
