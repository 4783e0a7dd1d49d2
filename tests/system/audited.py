"""A site with an audit app: prints the check's messages, and which secrets the audit app stores.

Run as ``python -m tests.system.audited``: a running process cannot change its models.
"""

import json
from datetime import timedelta

import django


def main() -> None:
    """Create, change and refresh rows of the app, and look for their secrets."""
    django.setup()
    from django.core import serializers
    from django.core.checks import run_checks
    from django.core.management import call_command
    from django.test import override_settings
    from django.utils import timezone

    from django_infusionsoft.models import Application, Credential
    from django_infusionsoft.sandbox import Sandbox

    call_command("migrate", verbosity=0)
    application = Application.objects.create(name="A", client_id="a", client_secret="secret-1")
    application.client_secret = "secret-2"
    application.save()
    secrets = {"secret-1", "secret-2"}
    with Sandbox() as sandbox, override_settings(**sandbox.settings):
        reply = sandbox.issue("ab123")
        pair = {name: reply[name] for name in ("access_token", "refresh_token")}
        expires_at = timezone.now() + timedelta(days=1)
        credential = Credential.objects.import_tokens(
            account="ab123", expires_at=expires_at, **pair
        )
        secrets |= set(pair.values())
        credential.refresh()
        secrets |= {credential.access_token, credential.refresh_token}
    stored = ""
    for model in django.apps.apps.get_models():
        stored += serializers.serialize("json", model._base_manager.all())
    problems = [each.id for each in run_checks() if each.id == "django_infusionsoft.W024"]
    print(json.dumps([len(problems), sum(each in stored for each in secrets)]))  # noqa: T201


if __name__ == "__main__":
    main()
