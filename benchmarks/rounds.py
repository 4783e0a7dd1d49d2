"""The rounds of a soak: trouble, then calm, then the count."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import quote

import django
from django.db import OperationalError, connection
from django.db.models import Sum
from django.test.utils import setup_databases, teardown_databases

from benchmarks import evidence
from benchmarks.crew import Crew
from benchmarks.evidence import Evidence
from benchmarks.people import People
from benchmarks.trouble import Trouble
from benchmarks.verdict import Case, Event, judge
from django_infusionsoft.choices import EventKind
from django_infusionsoft.conf import conf
from django_infusionsoft.models import ApplicationState, Credential, CredentialEvent
from django_infusionsoft.sandbox import Sandbox, TokenRequest
from django_infusionsoft.spool import HALF_WRITTEN, HALF_WRITTEN_SECONDS

TICK_SECONDS: Final = 0.05
LOOK_SECONDS: Final = 0.5
PROGRESS_SECONDS: Final = 10.0
# Nothing rotated for so long: something hangs.
STALL_SECONDS: Final = 60.0
CALM_RUNS: Final = 4


@contextmanager
def own_database() -> Iterator[None]:
    """Make and migrate a database, name it to the processes to come, and drop it in the end."""
    old = setup_databases(verbosity=0, interactive=False, serialized_aliases=set())
    os.environ["DATABASE_URL"] = _url()
    try:
        yield
    finally:
        teardown_databases(old, verbosity=0)


def soak(sandbox: Sandbox, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Go through all rounds and return the report."""
    started = time.monotonic()
    evidence.record(evidence.Log(folder))
    random = Random(options.seed)  # noqa: S311  # for what goes wrong, and when
    shortest, longest = 1.1 * conf.LEASE_SECONDS, 1.6 * conf.LEASE_SECONDS
    people = People(sandbox, patience_seconds=longest + 2.0)
    for account in sandbox.accounts:
        people.connect(account.app_id)
    roles = ["refresher"] * options.workers + ["reader"] * options.readers
    crew = Crew(folder, roles, Random(options.seed + 1))  # noqa: S311
    trouble = Trouble(
        sandbox,
        crew,
        rates={
            name: getattr(options, f"{name}_per_minute")
            for name in ("kills", "stops", "faults", "slow", "cuts")
        },
        stop_seconds=(shortest, longest),
        random=random,
    )
    try:
        is_stalled = _storm(sandbox, crew, people, trouble, options)
        sandbox.clear_plan()
        crew.end()
    finally:
        crew.abandon()
    stormy = time.monotonic() - started
    _calm(people, folder / "spool")
    case = _case(sandbox, crew, people, folder)
    verdict = judge(case)
    verdict.violations += _leftovers(folder / "spool") + crew.crashed
    if is_stalled:
        verdict.violations.append(f"Nothing was rotated for {STALL_SECONDS:g} s.")
    return {
        "options": {name: _plain(value) for name, value in vars(options).items()},
        "versions": _versions(),
        "seconds": round(stormy, 1),
        **_count(sandbox, case, crew, people, trouble),
        **verdict.as_dict(),
    }


def as_table(report: Mapping[str, Any]) -> str:
    """Return the report for people."""
    lines = []
    for name, value in report.items():
        if name in ("options", "versions"):
            lines.append(f"{name:<28}{' '.join(f'{k}={v}' for k, v in value.items())}")
        elif isinstance(value, Mapping):
            lines.append(f"{name:<28}{sum(value.values()):>8}")
            lines += [f"    {each:<44}{count:>8}" for each, count in value.items()]
        elif isinstance(value, list):
            lines.append(f"{name:<28}{len(value):>8}")
            lines += [f"    {line}" for each in value for line in _lines(each)]
        else:
            lines.append(f"{name:<28}{value:>8}")
    return "\n".join(lines)


def _lines(item: Any) -> list[str]:
    """Return an item of a list: words, or a loss that is not explained."""
    if not isinstance(item, Mapping):
        return [str(item)]
    return [f"{item['loss']['account']}: {item['how']}", *(f"    {e}" for e in item["evidence"])]


def _storm(
    sandbox: Sandbox, crew: Crew, people: People, trouble: Trouble, options: argparse.Namespace
) -> bool:
    """Make trouble until enough is rotated; return whether that has come to a halt."""
    started = moved_at = looked_at = told_at = time.monotonic()
    rotated = 0
    now = started
    while rotated < options.refreshes and now - started < options.seconds:
        now = time.monotonic()
        trouble.make()
        crew.look_after()
        if now - looked_at > LOOK_SECONDS:
            looked_at = now
            _look(people)
        if now - told_at > PROGRESS_SECONDS:
            told_at = now
            _tell(
                f"{now - started:4.0f} s: {rotated} rotated, {len(crew.killed)} killed, "
                f"{crew.stops} stopped, {len(people.losses)} lost"
            )
        time.sleep(TICK_SECONDS)
        before, rotated = rotated, _rotated(sandbox)
        if rotated > before:
            moved_at = now
        if now - moved_at > STALL_SECONDS:
            return True
    return False


def _look(people: People) -> None:
    try:
        people.look()
        people.let_time_pass()
    except OperationalError as error:  # whoever holds the lock may be stopped: the next time
        _tell(f"the database is away: {error}")
        connection.close()


def _calm(people: People, spool: Path) -> None:
    """Let leases run out and the rest be done, with nothing in the way."""
    _tell("calm")
    connection.close()  # perhaps it was cut
    time.sleep(conf.LEASE_SECONDS + 0.5)  # of those that were killed
    _age_half_written(spool)
    for _ in range(CALM_RUNS):
        people.let_time_pass()
        Credential.objects.refresh_due()
        people.look(at_once=True)


def _age_half_written(spool: Path) -> None:
    """Let an hour pass for what was left by processes that died while writing."""
    old = time.time() - HALF_WRITTEN_SECONDS - 1
    for path in spool.glob(f"{HALF_WRITTEN}*"):
        os.utime(path, (old, old))


def _case(sandbox: Sandbox, crew: Crew, people: People, folder: Path) -> Case:
    generations = Credential.objects.aggregate(total=Sum("generation"))["total"]
    events = CredentialEvent.objects.exclude(fingerprint="").order_by("pk")
    return Case(
        requests=_presentations(sandbox),
        evidence=Evidence.read(folder),
        events=[Event(*row) for row in events.values_list(*Event.__slots__)],
        losses=people.losses + people.inspect(),
        killed=crew.killed,
        asked_for=people.asked_for,
        stored=generations - people.imports,
    )


def _leftovers(spool: Path) -> list[str]:
    """Tell what should be gone by now."""
    left = [f"{path.name} was left in the spool." for path in sorted(spool.glob("*"))]
    leased = Credential.objects.filter(lease_until__isnull=False)
    left += [f"{each} was left with a lease." for each in leased]
    troubled = ApplicationState.objects.exclude(trouble="")
    return left + [f"The breaker of {each} was left open." for each in troubled]


def _count(
    sandbox: Sandbox, case: Case, crew: Crew, people: People, trouble: Trouble
) -> dict[str, Any]:
    counts = case.evidence.counts
    recovered = [each for each in case.events if each.kind == EventKind.RECOVERED]
    late = [each for each in case.events if each.kind == EventKind.LATE_REPLY_DROPPED]
    return {
        "accounts connected": len(sandbox.accounts),
        "presented": len(case.requests),
        "rotated": _rotated(sandbox),
        "stored": case.stored,
        "replays": sandbox.replays,
        "met a fault": dict(Counter(each.fault for each in case.requests if each.fault)),
        "kills": len(crew.killed),
        "stops": crew.stops,
        "connections cut": trouble.cuts,
        "runs failed by the database": dict(
            Counter(
                each.of for each in case.evidence.lines if each.what == evidence.DATABASE_ERROR
            )
        ),
        "recovered from the spool": len(recovered),
        "late replies dropped": len(late),
        "presented by a person's will": sum(people.asked_for.values()),
        "saved by that": people.rescued,
        "API calls": counts[evidence.API_CALL],
        "API calls refused": counts[evidence.API_REFUSED],
    }


def _presentations(sandbox: Sandbox) -> list[TokenRequest]:
    """Return what Keap was asked with refresh tokens that have been ones: without probes."""
    return [request for request in sandbox.token_requests if request.account]


def _rotated(sandbox: Sandbox) -> int:
    return sum(request.outcome == "rotated" for request in sandbox.token_requests)


def _versions() -> dict[str, str]:
    if connection.vendor == "sqlite":
        import sqlite3

        database = sqlite3.sqlite_version
    else:
        with connection.cursor() as cursor:
            cursor.execute("SELECT version()")
            database = str(cursor.fetchone()[0]).split(" on ")[0]
    return {
        "database": f"{connection.vendor} {database}",
        "python": platform.python_version(),
        "django": django.__version__,
    }


def _url() -> str:
    if connection.vendor == "sqlite":
        return f"sqlite:///{connection.settings_dict['NAME']}"
    database = {name: quote(str(value)) for name, value in connection.settings_dict.items()}
    scheme = {"mysql": "mysql", "postgresql": "postgres"}[connection.vendor]
    return scheme + "://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format_map(database)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
