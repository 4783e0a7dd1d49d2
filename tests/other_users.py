"""A site that has replaced the user model: ``python -m tests.other_users``.

A process of its own, since a user model cannot be replaced in one that has begun.
"""

from datetime import timedelta
from typing import Any

import django


def main() -> None:
    """Make the tables, and do in the admin what a person does there."""
    django.setup()
    from django.core.management import call_command
    from django.test import Client, override_settings
    from django.utils import timezone

    from django_infusionsoft.models import Credential, CredentialEvent
    from django_infusionsoft.sandbox import Sandbox
    from tests.people.models import Person
    from tests.visits import LIST, page, page_of, travel

    call_command("migrate", verbosity=0)
    person: Any = Person.objects.create_superuser("ana@site.example")
    client = Client(SERVER_NAME="localhost")
    client.force_login(person)
    with Sandbox() as sandbox, override_settings(**sandbox.settings):
        travel(client, sandbox, next=LIST)
        credential = Credential.objects.get()
        assert credential.authorized_by == person
        for action in ("refresh", "test", "disconnect"):
            assert client.post(f"{LIST}{credential.pk}/{action}/").status_code == 302
        assert "ab123" in page(client, f"{LIST}?q=ana%40site")
        assert "ab123" not in page(client, f"{LIST}?q=otto%40site")
        assert page(client, page_of(credential)).count("by ana@site.example") == 4
    told = CredentialEvent.objects.filter(user=person).values_list("kind", flat=True)
    assert sorted(told) == ["connected", "disconnected", "refreshed", "tested"]
    assert CredentialEvent.objects.latest("pk").created_at > timezone.now() - timedelta(minutes=1)


if __name__ == "__main__":
    main()
