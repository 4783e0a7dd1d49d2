"""``manage.py infusionsoft_status``"""

import sys
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand
from django.utils.timezone import localtime
from django.utils.translation import gettext as _

from django_infusionsoft.models import Credential


class Command(BaseCommand):
    """One line a credential."""

    help = "Shows every credential. Exit codes: 0 all well, 1 an account must be connected again."

    def handle(self, *args: Any, **options: Any) -> None:
        credentials = Credential.objects.select_related("application").order_by("account", "pk")
        for credential in credentials.iterator():
            self.stdout.write(self._line(credential))
        if not credentials.exists():
            self.stdout.write("No account is connected yet.")
        if Credential.objects.needs_reauthorization().exists():
            sys.exit(1)

    def _line(self, credential: Credential) -> str:
        columns = (
            f"{credential!s:<16}",
            f"{_('retrying') if credential.is_retrying else credential.get_status_display():<16}",
            f"expires {_when(credential.expires_at):<24}",
            f"next refresh {_when(credential.refresh_at):<24}",
            credential.account_name,
            credential.last_error,
        )
        return " ".join(columns).rstrip()


def _when(moment: datetime | None) -> str:
    return f"{localtime(moment):%Y-%m-%d %H:%M:%S %Z}" if moment else "-"
