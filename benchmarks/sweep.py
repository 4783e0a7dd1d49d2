"""Compares the sweep with plain threads and with other packages.

``python -m benchmarks.sweep --help`` lists the options. Exits with 1 if a figure misses its bar.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import django

from benchmarks.sandbox_process import SandboxProcess
from benchmarks.scales import SCALES, Scale

if TYPE_CHECKING:
    from benchmarks.measures import Row

DATABASE: Final = "postgres://postgres@127.0.0.1:5432/postgres"
PACKAGES: Final = (
    "django",
    "psycopg",
    "requests",
    "urllib3",
    "cryptography",
    "requests-oauthlib",
    "social-auth-app-django",
)
# The names of the measures, which can be imported only after django.setup().
NAMES: Final = (
    "sandbox",
    "sweep",
    "concurrency",
    "cpu",
    "workers",
    "claim",
    "memory",
    "connections",
    "session",
    "threads",
    "tasks",
    "items",
    "peers",
    "growth",
    "history",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.database.startswith("postgres"):
        parser.error("--database must be the URL of a PostgreSQL server.")
    names = options.only or list(NAMES)
    if "peers" in names and not find_spec("social_django"):
        print("social-auth-app-django is not installed: the peers are skipped.", file=sys.stderr)
        names.remove("peers")
    scale = SCALES[options.scale]
    with _site(options.database, scale.accounts) as sandbox, _temporary_database():
        report = _report(sandbox, scale, names, options)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.plot and any("stored" in row["facts"] for row in report["rows"]):
        from benchmarks.plot import draw

        draw(report["rows"], options.plot)
    return 1 if any(row["met"] is False for row in report["rows"]) else 0


def _report(
    sandbox: SandboxProcess,
    scale: Scale,
    names: Sequence[str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    from benchmarks.bench import Bench
    from benchmarks.measures import MEASURES
    from django_infusionsoft.conf import conf

    bench = Bench(sandbox, scale, concurrency=options.concurrency or conf.REFRESH_CONCURRENCY)
    machine = _machine()
    print("  ".join(f"{name} {value}" for name, value in machine.items()))
    print(_line("measure; compared with", "ours", "theirs", "ratio", "bar", "met"))
    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            for row in MEASURES[name](bench):
                rows.append(row.as_dict())
                _print(row)
        except RuntimeError as error:  # the other measures are still useful
            rows.append({"measure": name, "error": str(error), "met": False, "facts": {}})
            print(f"{name} failed: {error}", flush=True)
    return {
        "machine": machine,
        "scale": options.scale,
        "concurrency": bench.concurrency,
        "rows": rows,
    }


def _print(row: Row) -> None:
    met = {None: "", True: "yes", False: "NO"}[row.is_met]
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    bar = "" if row.bar is None else str(row.bar)
    theirs = "" if row.theirs is None else _figure(row.theirs)
    print(_line(f"{row.measure}, {row.unit}", _figure(row.ours), theirs, ratio, bar, met))
    for name, lines in row.facts.items():
        if name.startswith("explain"):
            print("\n".join(f"    {each}" for each in (name, *lines)))
    sys.stdout.flush()


def _line(measure: str, *cells: str) -> str:
    return f"{measure:<78}" + "".join(f"{cell:>9}" for cell in cells)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


@contextmanager
def _site(database: str, accounts: int) -> Iterator[SandboxProcess]:
    """Configure this process and its children as one site with its own sandbox."""
    with (
        tempfile.TemporaryDirectory(prefix="sweep-") as folder,
        SandboxProcess(accounts) as sandbox,
    ):
        settings: dict[str, Any] = {
            **sandbox.settings,
            **_peers_settings(sandbox.settings),
            "INFUSIONSOFT_REFRESH_RATE": 0,  # no limit
            "INFUSIONSOFT_SPOOL_DIR": str(Path(folder) / "spool"),
        }
        os.environ["DATABASE_URL"] = database
        os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
        os.environ["BENCHMARKS_SETTINGS"] = json.dumps(settings)
        django.setup()
        yield sandbox


def _peers_settings(sandbox: dict[str, str]) -> dict[str, Any]:
    if not find_spec("social_django"):
        return {}
    from benchmarks import peers

    return peers.settings(sandbox)


@contextmanager
def _temporary_database() -> Iterator[None]:
    """Create and migrate a database for this process and its children; drop it at the end."""
    from django.db import connection
    from django.test.utils import setup_databases, teardown_databases

    old = setup_databases(verbosity=0, interactive=False, serialized_aliases=set())
    database = {name: quote(str(value)) for name, value in connection.settings_dict.items()}
    url = "postgres://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format_map(database)
    os.environ["DATABASE_URL"] = url
    try:
        yield
    finally:
        teardown_databases(old, verbosity=0)


def _machine() -> dict[str, Any]:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version")
        server = str(cursor.fetchone()[0]).split()[0]
    versions = {name: version(name) for name in PACKAGES if _is_installed(name)}
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "postgresql": server,
        **versions,
    }


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep",
        description="Measure the sweep on PostgreSQL, and compare it with its peers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--database", default=DATABASE, metavar="URL", help="server to create the database on")
    add("--scale", choices=SCALES, default="full", help="small only shows whether it works")
    add("--only", action="append", choices=NAMES, help="a measure; may be repeated")
    add("--concurrency", type=int, default=0, help="0: the setting's default")
    add("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    add("--plot", type=Path, metavar="FOLDER", help="draw the growth in this folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
