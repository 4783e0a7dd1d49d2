"""The command line: ``python -m tests.system.soak``.

Exits with 1 if the app lost a grant, or if a row or the history is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import django

from django_infusionsoft.sandbox import Sandbox, Switches

# All of these are short, so that minutes of a soak equal months of a site.
ACCESS_TOKEN_SECONDS: Final = 2.0
SETTINGS: Final = {
    "INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS": 0.5,
    "INFUSIONSOFT_READ_TIMEOUT_SECONDS": 0.75,
    "INFUSIONSOFT_WAIT_SECONDS": 5.0,
    "INFUSIONSOFT_REFRESH_CONCURRENCY": 4,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a soak; return the exit code."""
    options = _parser().parse_args(arguments)
    switches = Switches(access_token_seconds=ACCESS_TOKEN_SECONDS, new_grant_revokes_older=True)
    accounts = [f"sk{number:04}" for number in range(options.accounts)]
    with (
        _folder(options.folder) as folder,
        Sandbox(accounts=accounts, switches=switches) as sandbox,
    ):
        _configure(options.database, folder, sandbox)
        from tests.system.soak.report import as_table
        from tests.system.soak.runner import Soak, temporary_database

        with temporary_database():
            report = Soak(sandbox, folder, options).run()
    print(as_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if report["unexplained"] or report["violations"] else 0


def _configure(database: str, folder: Path, sandbox: Sandbox) -> None:
    """Configure this process and its children as one site."""
    settings: dict[str, Any] = {
        **SETTINGS,
        **sandbox.settings,
        "INFUSIONSOFT_SPOOL_DIR": str(folder / "spool"),
    }
    os.environ["DATABASE_URL"] = database or f"sqlite:///{folder / 'site.sqlite3'}"
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    os.environ["TESTS_SETTINGS"] = json.dumps(settings)
    django.setup()


@contextmanager
def _folder(path: Path | None) -> Iterator[Path]:
    if path is not None:
        path.mkdir(parents=True)
        yield path.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        yield Path(name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.soak",
        description="Refresh while faults are injected, and explain every lost grant.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--refreshes", type=int, default=3000, help="stop after this many rotations")
    add("--seconds", type=float, default=3600.0, help="stop after this time in any case")
    add("--accounts", type=int, default=40)
    add("--workers", type=int, default=4, help="processes that refresh what is due")
    add("--readers", type=int, default=2, help="processes that use the accounts")
    add("--kills-per-minute", type=float, default=20.0, help="SIGKILL of a process")
    add("--stops-per-minute", type=float, default=4.0, help="SIGSTOP, for longer than a lease")
    add("--faults-per-minute", type=float, default=40.0, help="replies lost, rejected or late")
    add("--slow-per-minute", type=float, default=400.0, help="slow replies, within the timeout")
    add("--disconnects-per-minute", type=float, default=10.0, help="of database connections")
    add("--seed", type=int, default=1)
    add("--database", default="", metavar="URL", help="default: SQLite in a file")
    add("--json", type=Path, metavar="FILE", help="also write the report to this file")
    add("--folder", type=Path, help="keep the logs of the processes in this new folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
