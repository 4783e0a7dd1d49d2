"""``manage.py infusionsoft_refresh``"""

import json
import math
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError
from contextlib import closing
from datetime import datetime
from io import StringIO
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError, OutputWrapper, no_translations
from django.db import Error, router
from django.utils.timezone import localtime

from django_infusionsoft import elapsed, shutdown, waiting
from django_infusionsoft.exceptions import DatabaseBusy, InfusionsoftError
from django_infusionsoft.management.all_accounts import confirm, findings
from django_infusionsoft.management.database import database_error
from django_infusionsoft.management.progress import Bar, Lines
from django_infusionsoft.models import Credential
from django_infusionsoft.refresh.runs import RUN_TIME_LIMIT_SECONDS
from django_infusionsoft.storage.database import close_lost_connections
from django_infusionsoft.storage.usability import check_usable
from django_infusionsoft.text import iso_format

NOT_REFRESHED: Final = (
    Credential.DoesNotExist,
    Credential.MultipleObjectsReturned,
    InfusionsoftError,
)
USAGE_ERROR: Final = 2
# SIGHUP: the terminal was closed.
STOP_SIGNALS: Final = shutdown.existing("SIGTERM", "SIGINT", "SIGHUP")


class Command(BaseCommand):
    """Does the work of the Celery task, for cron."""

    help = (
        "Refreshes the credentials that are due, most urgent first, until none is left or the "
        "time limit is reached. Safe to run twice, late or on several machines at once. Writes "
        "counts to stdout and progress to stderr. Exit codes: 0 success; 1 an account that was "
        "due could not be refreshed, or Keap does not accept an application's client (the next "
        "run retries; infusionsoft_status shows details), or after --all an account must be "
        "reconnected; 2 wrong usage, or --all was not confirmed; 3 the database "
        "is not available; 4 its tables are missing, read-only or locked; 128 + the signal's "
        "number if a signal stopped it (130 Ctrl-C, 143 SIGTERM), after storing the replies in "
        "progress."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--account", metavar="NAME", help="refresh only this account, due or not"
        )
        parser.add_argument(
            "--all",
            action="store_true",
            help="refresh all connected accounts, due or not, and list those that must be "
            "reconnected: after restoring a backup, nothing else shows whose refresh tokens are "
            "used up. Stops if Keap rejects many accounts in a row",
        )
        parser.add_argument(
            "--no-input", action="store_true", help="do not ask for confirmation of --all"
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="only show what is due, most urgent first; with --account, show whether it is "
            "due. No request is sent to Keap, and nothing is changed",
        )
        parser.add_argument(
            "--time-limit",
            metavar="SECONDS",
            type=_seconds,
            help="stop sending requests after this many seconds; by default "
            f"{RUN_TIME_LIMIT_SECONDS:g}, for a run that is started every minute; none with --all",
        )
        parser.add_argument(
            "--believe-rejections",
            action="store_true",
            help="first believe Keap's rejections of many accounts in a row, for one day: these "
            "accounts must then be reconnected",
        )
        parser.add_argument(
            "--json", action="store_true", help="print one JSON object and nothing else on stdout"
        )

    def run_from_argv(self, argv: list[str]) -> None:
        try:
            super().run_from_argv(argv)
        except KeyboardInterrupt:  # re-raised after a clean end: a traceback would add nothing
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)

    @no_translations
    def handle(self, *args: Any, **options: Any) -> None:
        self._is_json, self._is_silent = options["json"], options["verbosity"] == 0
        account, self._is_for_all = options["account"], options["all"]
        limit = _time_limit(options)
        try:
            if options["dry_run"]:
                close_lost_connections()
                code = self._show_due() if account is None else self._show_account(account)
            else:
                check_usable(router.db_for_write(Credential))
                if self._is_for_all and not options["no_input"]:
                    confirm(returncode=USAGE_ERROR)
                if options["believe_rejections"]:
                    Credential.objects.believe_rejections()
                code = self._change(account, limit)
        except (Error, DatabaseBusy) as error:
            code = self._fail(database_error(error))
        if code:
            sys.exit(code)

    def _change(self, account: str | None, limit: float) -> int:
        """Refresh one account or all that is due, and return the exit code."""
        with shutdown.deferred_signals(*STOP_SIGNALS) as stop:
            code = self._run(limit, stop) if account is None else self._refresh(account)
            self.stdout.flush()  # before the signal is raised again
        # The first process of a container survives the signal that is raised again.
        return 128 + stop.signals[0] if stop() else code

    def _run(self, time_limit_seconds: float, stop: shutdown.Stop) -> int:
        """Refresh the credentials that are due, and return the exit code."""
        started = elapsed.monotonic()
        if self._is_for_all:
            Credential.objects.get_queryset().request_refresh()
        try:
            with closing(self._progress()) as progress:
                run = Credential.objects.refresh_due(
                    time_limit_seconds=time_limit_seconds, should_stop=stop, on_progress=progress
                )
                progress.finish(run)
        except InfusionsoftError as error:
            return self._fail(error)
        facts = {**run.as_dict(), "ended": run.ended}
        found = findings() if self._is_for_all else None
        if self._is_json:
            seconds = round(elapsed.monotonic() - started, 3)
            self._print({**facts, "seconds": seconds, **(found.as_dict() if found else {})})
        elif not self._is_silent:
            self.stdout.write(" ".join(f"{name}={fact}" for name, fact in facts.items()))
            for line in found.lines() if found else ():
                self.stdout.write(line)
        return 0 if run.succeeded and not (found and found.is_any_rejected) else 1

    def _progress(self) -> Lines:
        if self._is_silent:
            return Lines(OutputWrapper(StringIO()))
        if self.stderr.isatty():
            return Bar(self.stderr, Credential.objects.due().count())
        return Lines(self.stderr)

    def _refresh(self, account: str) -> int:
        """Refresh one account, and return the exit code."""
        try:
            credential = Credential.objects.for_account(account)
            with waiting.to_the_end():
                credential.refresh()
        except NOT_REFRESHED as error:
            return self._fail(error, account=account)
        if self._is_json:
            self._print(
                {"account": str(credential), "expires_at": iso_format(credential.expires_at)}
            )
        elif not self._is_silent:
            expires_at = _local(credential.expires_at)
            self.stdout.write(f"{credential}: refreshed, expires at {expires_at}")
        return 0

    def _fail(self, error: Exception, **about: str) -> int:
        """Report the error on stdout as JSON, or raise ``CommandError``; return the exit code."""
        code: int = getattr(error, "returncode", 1)
        if not self._is_json:
            raise CommandError(str(error), returncode=code) from error
        self._print({**about, "error": str(error)})
        return code

    def _show_due(self) -> int:
        due = Credential.objects.due().order_by("refresh_at", "pk")
        if self._is_json:
            credentials = [_facts(credential) for credential in due.iterator()]
            self._print({"due": len(credentials), "credentials": credentials})
            return 0
        count = 0
        for count, credential in enumerate(due.iterator(), start=1):  # noqa: B007
            self.stdout.write(
                f"{credential!s:<16} {credential.condition.label!s:<16} "
                f"due since {_local(credential.refresh_at):<24} "
                f"expires {_local(credential.expires_at)}"
            )
        self.stdout.write(f"due={count}")
        return 0

    def _show_account(self, account: str) -> int:
        try:
            credential = Credential.objects.for_account(account)
        except NOT_REFRESHED as error:
            return self._fail(error, account=account)
        is_due = credential.refresh_at is not None and credential.refresh_at <= credential.now
        if self._is_json:
            self._print({**_facts(credential), "due": is_due})
        else:
            when = f"due since {_local(credential.refresh_at)}" if is_due else "not due"
            if credential.refresh_at and not is_due:
                when = f"not due before {_local(credential.refresh_at)}"
            self.stdout.write(f"{credential}: {credential.condition.label}, {when}")
        return 0

    def _print(self, facts: dict[str, Any]) -> None:
        self.stdout.write(json.dumps(facts, ensure_ascii=False))


def _facts(credential: Credential) -> dict[str, Any]:
    return {
        "account": str(credential),
        "status": credential.status,
        "failures": credential.failures,
        "due_at": iso_format(credential.refresh_at),
        "expires_at": iso_format(credential.access_token_expires_at),
    }


def _local(moment: datetime | None) -> str:
    return f"{localtime(moment):%Y-%m-%d %H:%M:%S %Z}" if moment else "-"


def _time_limit(options: dict[str, Any]) -> float:
    """Return the time limit of a run in seconds.

    :raises CommandError: options exclude each other.
    """
    limit: float | None = options["time_limit"]
    names = {"--time-limit": limit is not None, "--all": options["all"]}
    given = [name for name, is_given in names.items() if is_given]
    if given and (options["dry_run"] or options["account"] is not None):
        raise CommandError(
            f"{given[0]} applies only to runs: omit --account and --dry-run.",
            returncode=USAGE_ERROR,
        )
    if options["all"] and options["json"] and not options["no_input"]:
        raise CommandError(
            "--all asks for confirmation: with --json, add --no-input.", returncode=USAGE_ERROR
        )
    if limit is not None:
        return limit
    return math.inf if options["all"] else RUN_TIME_LIMIT_SECONDS


def _seconds(text: str) -> float:
    """Return the time limit; raise ``ArgumentTypeError`` for an invalid one."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds
