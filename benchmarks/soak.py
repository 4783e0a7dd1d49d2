"""A soak: real processes on a real database against the sandbox, with trouble all the time.

``python -m benchmarks.soak --help`` names the options. Exits with 1 if a grant was lost through
the app's fault, or the history or a row did not tell the truth.
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

# All of them short, so that a run meets in minutes what a site meets in months.
LIFE_SECONDS: Final = 2.0
SETTINGS: Final = {
    "INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS": 0.5,
    "INFUSIONSOFT_READ_TIMEOUT_SECONDS": 1.0,
    "INFUSIONSOFT_LEASE_SECONDS": 4.0,
    "INFUSIONSOFT_WAIT_SECONDS": 5.0,
    "INFUSIONSOFT_REFRESH_CONCURRENCY": 4,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a soak; return the exit code."""
    options = _parser().parse_args(arguments)
    switches = Switches(access_token_seconds=LIFE_SECONDS, new_grant_revokes_older=True)
    accounts = [f"sk{number:04}" for number in range(options.accounts)]
    with (
        _folder(options.folder) as folder,
        Sandbox(accounts=accounts, switches=switches) as sandbox,
    ):
        _configure(options.database, folder, sandbox)
        from benchmarks import rounds

        with rounds.own_database():
            report = rounds.soak(sandbox, folder, options)
    print(rounds.as_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if report["unexplained"] or report["violations"] else 0


def _configure(database: str, folder: Path, sandbox: Sandbox) -> None:
    """Make this process, and those that it starts, the same site."""
    settings: dict[str, Any] = {
        **SETTINGS,
        **sandbox.settings,
        "INFUSIONSOFT_SPOOL_DIR": str(folder / "spool"),
    }
    os.environ["DATABASE_URL"] = database or f"sqlite:///{folder / 'site.sqlite3'}"
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    os.environ["BENCHMARKS_SETTINGS"] = json.dumps(settings)
    django.setup()


@contextmanager
def _folder(named: Path | None) -> Iterator[Path]:
    if named is not None:
        named.mkdir(parents=True)
        yield named.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        yield Path(name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description="Refresh for minutes while everything goes wrong, and count what is lost.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--refreshes", type=int, default=3000, help="end after so many rotations")
    add("--seconds", type=float, default=3600.0, help="end after so much time in any case")
    add("--accounts", type=int, default=40)
    add("--workers", type=int, default=4, help="processes that refresh what is due")
    add("--readers", type=int, default=2, help="processes that use the accounts")
    add("--kills-per-minute", type=float, default=20.0, help="SIGKILL of a process")
    add("--stops-per-minute", type=float, default=4.0, help="SIGSTOP, for longer than a lease")
    add("--faults-per-minute", type=float, default=40.0, help="replies lost, refused, late")
    add("--slow-per-minute", type=float, default=400.0, help="slow replies, but in time")
    add("--cuts-per-minute", type=float, default=10.0, help="ended connections to the database")
    add("--seed", type=int, default=1)
    add("--database", default="", metavar="URL", help="empty: SQLite in a file")
    add("--json", type=Path, metavar="FILE", help="where to write the count as well")
    add("--folder", type=Path, help="keep what the processes wrote in this new folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
