"""``manage.py infusionsoft_import``"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.imports import Importer, Refused
from django_infusionsoft.management import grant_lines
from django_infusionsoft.models import Application, Credential

USAGE_ERROR: Final = 2
WRONG_ARGUMENTS: Final = "these arguments cannot be right: see --help."


class Command(BaseCommand):
    """The way in for those whose accounts another client has connected."""

    help = (
        "Imports grants of another client: JSON lines with account (or scope), access_token, "
        "refresh_token and expires_at. Stop that client before you export: a refresh token works "
        "once, and from the import on only this site may use it. Each line is stored on its own, "
        "and the same file may be run again. Exit codes: 0 all lines are good; 1 a line was "
        "refused, or the database failed; 2 wrong usage or settings."
    )

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        # What argparse does not understand it repeats, and it may be a token.
        parser.error = partial(_refuse, parser.error)  # type: ignore[method-assign]
        return parser

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "file", metavar="FILE", nargs="?", default="-", help="- or none: standard input"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="only look at the lines, and change nothing"
        )
        parser.add_argument(
            "--application",
            metavar="NAME_OR_CLIENT_ID",
            help="the application that the grants were given to; by default the client in the "
            "settings, or what a line's client_id says",
        )
        parser.add_argument(
            "--replace",
            action="store_true",
            help="let a line take the place of what its account is connected with, unless this "
            "site has had its refresh token before",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["application"]
        application = None if name is None else _application(name)
        importer = Importer(
            Credential,
            application=application,
            client_id=None if name is None else _client_id(application),
            replace=options["replace"],
            dry_run=options["dry_run"],
        )
        self._new = "would be imported" if options["dry_run"] else "imported"
        with _opened(options["file"]) as stream:
            counts = self._take_all(stream, importer)
        self._sum_up(counts)
        if counts["refused"]:
            sys.exit(1)

    def _take_all(self, stream: BinaryIO, importer: Importer) -> Counter[str]:
        counts: Counter[str] = Counter()
        for number, line in grant_lines.read(stream):
            word, text = self._take(number, line, importer)
            counts[word] += 1
            self.stdout.write(f"line {number}: {text}")
            self.stdout.flush()  # what is stored is told, whatever ends this process
        return counts

    def _take(self, number: int, line: bytes | None, importer: Importer) -> tuple[str, str]:
        """Take one line; return what has become of it, and what to say."""
        who = ""
        try:
            grant = grant_lines.parse(number, line)
            who = f"{grant.account}: "
            word = self._new if importer.take(grant) else "unchanged"
        except Refused as refusal:
            return "refused", f"{who}{refusal}"
        except ConfigurationError as error:
            raise CommandError(str(error), returncode=USAGE_ERROR) from None
        except Error as error:
            raise CommandError(
                f"line {number}: {who}the database failed ({type(error).__name__}), and nothing "
                f"after it was read. Run the same file again: what is stored stays as it is."
            ) from None
        return word, f"{who}{word}"

    def _sum_up(self, counts: Counter[str]) -> None:
        words = (self._new, "unchanged", "refused")
        self.stdout.write(" ".join(f"{word.replace(' ', '_')}={counts[word]}" for word in words))
        if counts[self._new]:
            self.stdout.write(
                "From the import on only this site may refresh these accounts: leave the client "
                "that had them switched off."
            )


def _refuse(tell: Callable[[str], NoReturn], message: str) -> NoReturn:
    """Tell of wrong arguments without repeating any."""
    try:
        tell(WRONG_ARGUMENTS)
    except CommandError as error:
        raise error from None


def _application(name: str) -> Application | None:
    """Return the application that is named; ``None``: the client in the settings."""
    applications = Application.objects.order_by("pk")
    found = applications.filter(client_id=name)[:2] or applications.filter(name=name)[:2]
    if not found and name and name == conf.CLIENT_ID:
        return None
    if len(found) != 1:
        raise CommandError(
            "Several applications have this name: give the client id."
            if found
            else "No application has this name or client id: look in the admin, under Keap, "
            "Applications.",
            returncode=USAGE_ERROR,
        )
    return found[0]


def _client_id(application: Application | None) -> str:
    return application.client_id if application else conf.CLIENT_ID


def _opened(file: str) -> AbstractContextManager[BinaryIO]:
    if file == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(file).open("rb")
    except (OSError, ValueError) as error:
        # Not its name: it may be a line that was meant for standard input.
        reason = error.strerror if isinstance(error, OSError) else "not the name of a file"
        raise CommandError(f"FILE cannot be read: {reason}.", returncode=USAGE_ERROR) from None
