"""``manage.py infusionsoft_status``"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, no_translations
from django.db import Error, router
from django.utils import timezone
from django.utils.timezone import localtime

from django_infusionsoft import alarms
from django_infusionsoft.choices import Condition
from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.health import EXIT_CODES, Health, health_of
from django_infusionsoft.models import Credential
from django_infusionsoft.plain import distance, one_line

WIDTHS = (16, 16, 32, 32)
# As monitoring plugins say that they know nothing; 1 and 2 are taken by what is known.
UNKNOWN = 3


class Command(BaseCommand):
    """One line a credential, and how they are as a whole."""

    help = (
        "Shows every credential, and how they are as a whole. Exit codes: 0 all is well; 1 an "
        "account must be connected again, or Keap refuses an application's client; 2 refreshes "
        "are overdue, or no run has been seen for as long (INFUSIONSOFT_OVERDUE_SECONDS); 3 the "
        "database does not answer."
    )
    # It is asked how the credentials are, whatever is wrong with the project.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--json", action="store_true", help="print one JSON object and nothing else"
        )

    # Half of its words are those of the admin, which has more languages.
    @no_translations
    def handle(self, *args: Any, **options: Any) -> None:
        alias = router.db_for_write(Credential)
        try:
            health = health_of(alias)
            credentials = _credentials(alias, health)
            if options["json"]:
                facts = {**health.as_dict(), "accounts": [_facts(each) for each in credentials]}
                self.stdout.write(json.dumps(facts))
            else:
                self._show(health, credentials)
        except (Error, DatabaseBusy) as error:
            raise CommandError(
                f"The database does not answer: {error}", returncode=UNKNOWN
            ) from error
        if health.is_behind:
            alarms.tell(alias)  # no worker will
        self.stdout.flush()
        if code := EXIT_CODES[health.verdict]:
            sys.exit(code)

    def _show(self, health: Health, credentials: Iterator[Credential]) -> None:
        if health.total:
            self._show_all(credentials, health.now)
        else:
            self.stdout.write("No account is connected yet.")
        self.stdout.write("")
        for line in _summary(health):
            self.stdout.write(line)

    def _show_all(self, credentials: Iterator[Credential], now: datetime) -> None:
        self.stdout.write(_columns("account", "condition", "access token ends", "next refresh"))
        for credential in credentials:
            line = _columns(
                str(credential),
                str(credential.condition.label),
                _when(credential.expires_at, now),
                _when(credential.refresh_at, now),
                credential.account_name,
                credential.get_reason_display() or credential.last_error,
            )
            style = self.style.ERROR if _is_bad(credential) else str
            self.stdout.write(line, style)


def _credentials(alias: str, health: Health) -> Iterator[Credential]:
    credentials = (
        Credential.objects.using(alias)
        .select_related("application")
        .defer("access_token", "refresh_token")
        .order_by("account", "pk")
    )
    clock_ahead: timedelta = timezone.now() - health.now
    for credential in credentials.iterator():
        credential.clock_ahead = clock_ahead
        yield credential


def _is_bad(credential: Credential) -> bool:
    return credential.condition == Condition.NEEDS_ATTENTION


def _summary(health: Health) -> Iterator[str]:
    counts = [f"{label}: {health.counts[Condition(name)]}" for name, label in Condition.choices]
    yield ", ".join(counts)
    overdue = f", the first for {round(health.overdue_seconds)} seconds" if health.due else ""
    yield f"due now: {health.due}{overdue}"
    yield f"last run seen: {_when(health.last_run_at, health.now)}"
    for state in health.troubles:
        since = _when(state.since, health.now)
        yield f"application {state}: {state.get_trouble_display()} since {since}"
    yield f"status: {health.verdict}"


def _columns(*columns: str) -> str:
    texts = [one_line(text) for text in columns]
    first = [f"{text:<{width}}" for text, width in zip(texts, WIDTHS, strict=False)]
    return " ".join([*first, *texts[len(WIDTHS) :]]).rstrip()


def _facts(credential: Credential) -> dict[str, Any]:
    return {
        "account": credential.account,
        "id": credential.pk,
        "name": credential.account_name,
        "application": str(credential.application) if credential.application else None,
        "condition": credential.condition.value,
        "reason": credential.reason,
        "expires_at": _iso(credential.expires_at),
        "refresh_at": _iso(credential.refresh_at),
        "failures": credential.failures,
        "last_error": credential.last_error,
    }


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None


def _when(moment: datetime | None, now: datetime) -> str:
    """Return a time of day, and how far away it is."""
    if moment is None:
        return "-"
    seconds = (moment - now).total_seconds()
    how_far = distance(abs(seconds))
    away = f"in {how_far}" if seconds > 0 else f"{how_far} ago"
    return f"{localtime(moment):%Y-%m-%d %H:%M:%S %Z} ({away})"
