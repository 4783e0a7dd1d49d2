"""``manage.py infusionsoft_import``"""

import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, router

from django_infusionsoft.conf import conf
from django_infusionsoft.connect import import_lines
from django_infusionsoft.connect.importer import Importer
from django_infusionsoft.exceptions import ConfigurationError, DatabaseBusy, ImportRejected
from django_infusionsoft.management.database import database_error
from django_infusionsoft.models import Application, Credential
from django_infusionsoft.redaction import clears_locals
from django_infusionsoft.storage.usability import check_usable

USAGE_ERROR: Final = 2


class Command(BaseCommand):
    """Imports accounts that another client has connected."""

    help = (
        "Imports grants of another client from JSON lines with account (or scope), access_token, "
        "refresh_token and expires_at. Stop that client before you export: a refresh token works "
        "only once, and after the import only this site may use it. Each line is stored in a "
        "transaction of its own, and the same file may be imported again. Exit codes: 0 all "
        "lines were accepted; 1 a line was rejected, or the database failed; 2 wrong usage or "
        "settings; 3 the database is not available; 4 its tables are missing, read-only or locked."
    )

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        # argparse repeats arguments that it does not understand, and one may be a token.
        parser.error = partial(_reject_arguments, parser.error)  # type: ignore[method-assign]
        return parser

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "file", metavar="FILE", nargs="?", default="-", help="- or omitted: standard input"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="only check the lines, and change nothing"
        )
        parser.add_argument(
            "--application",
            metavar="NAME_OR_CLIENT_ID",
            help="the application that the grants were issued to; by default the client in the "
            "settings, or the one named by a line's client_id",
        )
        parser.add_argument(
            "--replace",
            action="store_true",
            help="let a line replace the grant that its account is connected with, unless this "
            "site has already had the line's refresh token",
        )

    @clears_locals
    def handle(self, *args: Any, **options: Any) -> None:
        name = options["application"]
        try:
            check_usable(router.db_for_write(Credential))
        except (Error, DatabaseBusy) as error:
            raise database_error(error) from None
        application = None if name is None else _application(name)
        importer = Importer(
            Credential,
            application=application,
            client_id=application.client_id if application else name,
            replace=options["replace"],
            dry_run=options["dry_run"],
        )
        self._new = "would be imported" if options["dry_run"] else "imported"
        with _opened(options["file"]) as stream:
            counts = self._import_all(stream, importer)
        self._write_summary(counts)
        if counts["rejected"]:
            sys.exit(1)

    def _import_all(self, stream: BinaryIO, importer: Importer) -> Counter[str]:
        counts: Counter[str] = Counter()
        for number, line in import_lines.read(stream):
            word, text = self._import(number, line, importer)
            counts[word] += 1
            self.stdout.write(f"line {number}: {text}")
            self.stdout.flush()  # report what is stored, even if this process is killed
        return counts

    def _import(self, number: int, line: bytes | None, importer: Importer) -> tuple[str, str]:
        """Import one line; return its outcome and the message about it."""
        account = ""
        try:
            grant = import_lines.parse(number, line)
            account = f"{grant.account}: "
            word = self._new if importer.take(grant) else "unchanged"
        except ImportRejected as error:
            return "rejected", f"{account}{error}"
        except ConfigurationError as error:
            raise CommandError(str(error), returncode=USAGE_ERROR) from None
        except Error as error:
            raise CommandError(
                f"line {number}: {account}the database failed ({type(error).__name__}), and no "
                f"further line was read. Run the same file again: what is already stored is kept."
            ) from None
        return word, f"{account}{word}"

    def _write_summary(self, counts: Counter[str]) -> None:
        words = (self._new, "unchanged", "rejected")
        self.stdout.write(" ".join(f"{word.replace(' ', '_')}={counts[word]}" for word in words))
        if counts[self._new]:
            self.stdout.write(
                "From now on, only this site may refresh these accounts. Keep the previous "
                "client stopped."
            )


def _reject_arguments(exit_with: Callable[[str], NoReturn], message: str) -> NoReturn:
    """Reject invalid arguments without repeating any of them."""
    try:
        exit_with("invalid arguments: see --help.")
    except CommandError as error:
        raise error from None


def _application(name: str) -> Application | None:
    """Return the application of this name or client id; ``None`` is the client in the settings."""
    applications = Application.objects.order_by("pk")
    found = applications.filter(client_id=name)[:2] or applications.filter(name=name)[:2]
    if not found and name and name == conf.CLIENT_ID:
        return None
    if len(found) != 1:
        raise CommandError(
            "Several applications have this name: use the client id."
            if found
            else "No application has this name or client id: see the admin under Keap, "
            "Applications.",
            returncode=USAGE_ERROR,
        )
    return found[0]


def _opened(file: str) -> AbstractContextManager[BinaryIO]:
    if file == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(file).open("rb")
    except (OSError, ValueError) as error:
        # Without the file's name: it may be a line meant for standard input.
        reason = error.strerror if isinstance(error, OSError) else "not a valid file name"
        raise CommandError(f"FILE cannot be read: {reason}.", returncode=USAGE_ERROR) from None
