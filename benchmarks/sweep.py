"""How fast the sweep is, beside plain threads and what sites do today, all in one run.

``python -m benchmarks.sweep --help`` names the options. Exits with 1 if a bar is missed.
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

import django

from benchmarks import peers
from benchmarks.keap import Keap
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
# The measures; what they are can be imported only once the site is there.
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
    "peers",
    "growth",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.database.startswith("postgres"):
        parser.error("Give --database the URL of a PostgreSQL server: its views are looked at.")
    names = options.only or list(NAMES)
    if "peers" in names and not find_spec("social_django"):
        print("Without social-auth-app-django, the peers are left out.", file=sys.stderr)
        names.remove("peers")
    scale = SCALES[options.scale]
    with _site(options.database, scale.accounts) as keap:
        from benchmarks.rounds import own_database

        with own_database():
            report = _report(keap, scale, names, options)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.plot and any("stored" in row["facts"] for row in report["rows"]):
        from benchmarks.plot import draw

        draw(report["rows"], options.plot)
    return 1 if any(row["met"] is False for row in report["rows"]) else 0


def _report(
    keap: Keap, scale: Scale, names: Sequence[str], options: argparse.Namespace
) -> dict[str, Any]:
    from benchmarks.bench import Bench
    from benchmarks.measures import MEASURES
    from django_infusionsoft.conf import conf

    bench = Bench(keap, scale, concurrency=options.concurrency or conf.REFRESH_CONCURRENCY)
    machine = _machine()
    print("  ".join(f"{name} {value}" for name, value in machine.items()))
    print(_line("measure; beside what", "ours", "theirs", "ratio", "bar", "met"))
    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            for row in MEASURES[name](bench):
                rows.append(row.as_dict())
                _print(row)
        except RuntimeError as error:  # the others' figures are worth having
            rows.append({"measure": name, "error": str(error), "met": False, "facts": {}})
            print(f"{name} broke off: {error}", flush=True)
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
def _site(database: str, accounts: int) -> Iterator[Keap]:
    """Be a site beside a sandbox of its own, and so are the processes to come."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder, Keap(accounts) as keap:
        settings: dict[str, Any] = {
            **keap.settings,
            **(peers.settings(keap.settings) if find_spec("social_django") else {}),
            "INFUSIONSOFT_REFRESH_RATE": 0,  # no ceiling
            "INFUSIONSOFT_SPOOL_DIR": str(Path(folder) / "spool"),
        }
        os.environ["DATABASE_URL"] = database
        os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
        os.environ["BENCHMARKS_SETTINGS"] = json.dumps(settings)
        django.setup()
        yield keap


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
        description="Measure the sweep on PostgreSQL, beside plain threads and its peers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--database", default=DATABASE, metavar="URL", help="a server to make a database on")
    add("--scale", choices=SCALES, default="full", help="small: does it work at all?")
    add("--only", action="append", choices=NAMES, help="a measure; may be repeated")
    add("--concurrency", type=int, default=0, help="0: the setting's default")
    add("--json", type=Path, metavar="FILE", help="where to write all figures as well")
    add("--plot", type=Path, metavar="FOLDER", help="where to put the picture of the growth")
    return parser


if __name__ == "__main__":
    sys.exit(main())
