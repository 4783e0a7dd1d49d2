"""A site with django-tenants: prints a line of JSON about each of its customers."""

import json
import os
import time
from datetime import timedelta
from typing import Any

import django


def main() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.system.tenants_settings"
    django.setup()
    from django.core.management import call_command
    from django_tenants.utils import schema_context

    from django_infusionsoft.sandbox import Sandbox
    from tests.system.customers.models import Customer

    call_command("migrate_schemas", shared=True, verbosity=0, run_syncdb=True)
    for name in ("acme", "bolt"):
        Customer(schema_name=name, name=name).save(verbosity=0)
    from django.test import override_settings

    with (
        Sandbox(accounts=["public1", "acme1", "bolt1"]) as sandbox,
        override_settings(**sandbox.settings),
    ):
        for name in ("public", "acme", "bolt"):
            with schema_context(name):
                connect(sandbox, f"{name}1")
        for name in ("bolt", "acme", "public"):
            with schema_context(name):
                token = ask_in_a_transaction(f"{name}1")
                print(json.dumps({"asked": name, **facts(sandbox, token)}), flush=True)  # noqa: T201
        spool_pair_of("bolt")
        for name in ("acme", "public", "bolt"):
            with schema_context(name):
                print(json.dumps({"ran": name, **run()}), flush=True)  # noqa: T201
        with schema_context("bolt"):
            print(json.dumps({"lost": "bolt", **lose(sandbox, "bolt1")}), flush=True)  # noqa: T201


def connect(sandbox: Any, account: str) -> None:
    from django.utils import timezone

    from django_infusionsoft.models import Credential

    reply = sandbox.issue(account)
    Credential.objects.import_tokens(
        account=account,
        access_token=reply["access_token"],
        refresh_token=reply["refresh_token"],
        expires_at=timezone.now() - timedelta(seconds=1),
    )


def ask_in_a_transaction(account: str) -> str:
    from django.db import transaction

    from django_infusionsoft.models import Credential

    with transaction.atomic():
        token = Credential.objects.for_account(account).get_access_token()
        transaction.set_rollback(True)
    return token


def facts(sandbox: Any, token: str) -> dict[str, Any]:
    from django_infusionsoft.models import Credential

    stored = Credential.objects.get()
    return {
        "is_its_own": token == stored.access_token,
        "account": stored.account,
        "generation": stored.generation,
        "requests": [request.account for request in sandbox.token_requests],
    }


def spool_pair_of(name: str) -> None:
    from django_tenants.utils import schema_context

    from django_infusionsoft.keap.oauth import TokenPair
    from django_infusionsoft.models import Credential
    from django_infusionsoft.refresh.sending import spool_key_of
    from django_infusionsoft.refresh.spool import save

    with schema_context(name):
        pair = TokenPair("spooled-access", "spooled-refresh", 3600, None)
        save(spool_key_of(Credential.objects.get()), pair).fsync()


def run() -> dict[str, Any]:
    from pathlib import Path

    from django_infusionsoft.conf import conf
    from django_infusionsoft.models import Credential

    counts = Credential.objects.refresh_due()
    stored = Credential.objects.get()
    left = len(list(Path(conf.SPOOL_DIR).iterdir()))
    return {"refreshed": counts.refreshed, "token": stored.access_token, "spool": left}


def lose(sandbox: Any, account: str) -> dict[str, Any]:
    """Lose the account in a transaction; the mail is sent by a thread."""
    from django.db import transaction
    from django.test import override_settings

    from django_infusionsoft.exceptions import ReauthorizationRequired
    from django_infusionsoft.models import Credential
    from tests.mails import mailing_by

    Credential.objects.update(expires_at=Credential.objects.get().connected_at)
    sandbox.revoke(account)
    with mailing_by(), override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"]):
        try:
            with transaction.atomic():
                Credential.objects.get().get_access_token()
        except ReauthorizationRequired:
            pass
        ends_at = time.monotonic() + 30
        while not Credential.objects.get().is_alerted and time.monotonic() < ends_at:
            time.sleep(0.05)
    stored = Credential.objects.get()
    return {"status": stored.status, "is_alerted": stored.is_alerted}


if __name__ == "__main__":
    main()
