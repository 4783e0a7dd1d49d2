"""``manage.py infusionsoft_status``"""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, no_translations
from django.db import Error, router
from django.utils import timezone
from django.utils.timezone import localtime

from django_infusionsoft.choices import Condition
from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.management.database import database_error
from django_infusionsoft.models import Credential
from django_infusionsoft.monitoring import alerts
from django_infusionsoft.monitoring.health import EXIT_CODES, Health, health_of
from django_infusionsoft.storage.usability import check_usable
from django_infusionsoft.text import distance, iso_format, one_line

COLUMN_WIDTHS = (16, 16, 32, 32)


class Command(BaseCommand):
    """Shows one line for each credential, and the overall status."""

    help = (
        "Shows every credential and an overall status. Exit codes: 0 no problems; 1 an account "
        "must be reconnected or cannot be refreshed, or an application's client or this site's "
        "environment corrected; 2 refreshes are overdue, or no run has been recorded for that "
        "long (INFUSIONSOFT_OVERDUE_SECONDS); 3 the database is not available; "
        "4 its tables are missing, read-only or locked."
    )
    # The status must be available whatever the checks find.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--json", action="store_true", help="print one JSON object and nothing else"
        )

    # Some of its texts are the admin's, which are translated.
    @no_translations
    def handle(self, *args: Any, **options: Any) -> None:
        alias = router.db_for_write(Credential)
        try:
            check_usable(alias)
            health = health_of(alias)
            credentials = _credentials(alias, health)
            if options["json"]:
                facts = {**health.as_dict(), "accounts": [_facts(each) for each in credentials]}
                self.stdout.write(json.dumps(facts))
            else:
                self._show(health, credentials)
        except (Error, DatabaseBusy) as error:
            raise database_error(error) from error
        if health.is_behind:
            alerts.send_pending(alias)  # the worker may not be running
        self.stdout.flush()
        if code := EXIT_CODES[health.status]:
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
        self.stdout.write(_columns("account", "condition", "access token expires", "next refresh"))
        for credential in credentials:
            line = _columns(
                str(credential),
                str(credential.condition.label),
                _when(credential.access_token_expires_at, now),
                _when(credential.refresh_at, now),
                credential.account_name,
                credential.get_reason_display() or credential.last_error,
            )
            is_bad = credential.condition in (Condition.NEEDS_ATTENTION, Condition.FAILING)
            self.stdout.write(line, self.style.ERROR if is_bad else str)


def _credentials(alias: str, health: Health) -> Iterator[Credential]:
    credentials = (
        Credential.objects.using(alias)
        .select_related("application")
        .defer("access_token", "refresh_token")
        .order_by("account", "pk")
    )
    clock_offset: timedelta = timezone.now() - health.now
    for credential in credentials.iterator():
        credential.clock_offset = clock_offset
        yield credential


def _summary(health: Health) -> Iterator[str]:
    yield ", ".join(f"{condition.label}: {health.counts[condition]}" for condition in Condition)
    overdue = f", the oldest for {round(health.overdue_seconds)} seconds" if health.due else ""
    yield f"due now: {health.due}{overdue}"
    yield f"last run recorded: {_when(health.last_run_at, health.now)}"
    for day in health.days:
        yield (
            f"{day['day']}: refreshed: {day['refreshed']}, failed: {day['failed']}, "
            f"lost: {day['lost']}, Keap took {day['seconds']:.0f} seconds"
        )
    if health.clock_stepped_at:
        found = _when(health.clock_stepped_at, health.now)
        yield f"the database's clock has stepped back: found {found}"
    for state in health.blocked_applications:
        since = _when(state.since, health.now)
        reason = state.get_block_reason_display()
        yield f"application {state}: {reason} since {since}: {one_line(state.last_error)}"
    yield f"status: {health.status}"


def _columns(*columns: str) -> str:
    texts = [one_line(text) for text in columns]
    first = [f"{text:<{width}}" for text, width in zip(texts, COLUMN_WIDTHS, strict=False)]
    return " ".join([*first, *texts[len(COLUMN_WIDTHS) :]]).rstrip()


def _facts(credential: Credential) -> dict[str, Any]:
    return {
        "account": credential.account,
        "id": credential.pk,
        "name": credential.account_name,
        "kind": credential.kind,
        "application": str(credential.application) if credential.application else None,
        "condition": credential.condition.value,
        "reason": credential.reason,
        "expires_at": iso_format(credential.access_token_expires_at),
        "refresh_at": iso_format(credential.refresh_at),
        "failures": credential.failures,
        "last_error": credential.last_error,
    }


def _when(moment: datetime | None, now: datetime) -> str:
    """Return the time, and how far away it is."""
    if moment is None:
        return "-"
    seconds = (moment - now).total_seconds()
    how_far = distance(abs(seconds))
    away = f"in {how_far}" if seconds > 0 else f"{how_far} ago"
    return f"{localtime(moment):%Y-%m-%d %H:%M:%S %Z} ({away})"
