"""``python -m tests.system.theme_process``: a site whose admin may have another theme.

Prints its port and the key of a superuser's session. Account ``ab123`` is connected, to a sandbox.
"""

import json
from datetime import timedelta

import django

from django_infusionsoft.sandbox import Sandbox
from tests.system.serving import server_of


def connect(sandbox: Sandbox) -> None:
    from django.utils import timezone

    from django_infusionsoft.models import Credential

    reply = sandbox.issue("ab123")
    Credential.objects.import_tokens(
        account="ab123",
        access_token=reply["access_token"],
        refresh_token=reply["refresh_token"],
        expires_at=timezone.now() + timedelta(hours=1),
    )


def session_key() -> str:
    from django.contrib.auth.models import User
    from django.test import Client

    client = Client()
    client.force_login(User.objects.create_superuser("ana"))
    return client.cookies["sessionid"].value


def main() -> None:
    django.setup()
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application
    from django.test import override_settings

    call_command("migrate", run_syncdb=True, verbosity=0)
    with Sandbox() as sandbox, override_settings(**sandbox.settings):
        connect(sandbox)
        with server_of(StaticFilesHandler(get_wsgi_application())) as server:
            print(json.dumps([server.server_port, session_key()]), flush=True)  # noqa: T201
            server.serve_forever()


if __name__ == "__main__":
    main()
