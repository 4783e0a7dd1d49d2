"""``manage.py infusionsoft_refresh``"""

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils.timezone import localtime

from django_infusionsoft.exceptions import InfusionsoftError
from django_infusionsoft.models import Credential


class Command(BaseCommand):
    """The verb of the Celery task, for cron."""

    help = (
        "Refreshes the credentials that are due. Exit codes: 0 all well, 1 an account that was "
        "due could not be refreshed. Of earlier failures infusionsoft_status tells."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--account", help="refresh this account only, due or not")

    def handle(self, *args: Any, **options: Any) -> None:
        if account := options["account"]:
            self._refresh(account)
            return
        run = Credential.objects.refresh_due()
        self.stdout.write(" ".join(f"{name}={n}" for name, n in run.as_dict().items()))
        if not run.went_well:
            sys.exit(1)

    def _refresh(self, account: str) -> None:
        try:
            credential = Credential.objects.for_account(account)
            credential.refresh()
        except (
            Credential.DoesNotExist,
            Credential.MultipleObjectsReturned,
            InfusionsoftError,
        ) as error:
            raise CommandError(str(error)) from error
        expires_at = f"{localtime(credential.expires_at):%Y-%m-%d %H:%M:%S %Z}"
        self.stdout.write(f"{credential}: refreshed, expires at {expires_at}")
