"""The report of a soak, as JSON and as a table."""

from __future__ import annotations

import argparse
import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import django
from django.db import connection

from django_infusionsoft.choices import EventKind
from django_infusionsoft.sandbox import Sandbox
from tests.system.soak import process_log
from tests.system.soak.accounts import Accounts
from tests.system.soak.analysis import Findings, Observations
from tests.system.soak.fault_injector import FaultInjector
from tests.system.soak.worker_pool import WorkerPool


def build(
    options: argparse.Namespace,
    seconds: float,
    observed: Observations,
    findings: Findings,
    counts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the report for JSON."""
    return {
        "options": {name: _as_json(value) for name, value in vars(options).items()},
        "versions": _versions(),
        "seconds": round(seconds, 1),
        **counts,
        **_observed_counts(observed),
        **findings.as_dict(),
    }


def count(
    sandbox: Sandbox, pool: WorkerPool, accounts: Accounts, injector: FaultInjector
) -> dict[str, Any]:
    """Return the counts of what happened during the soak."""
    return {
        "accounts connected": len(sandbox.accounts),
        "rotated": count_rotated(sandbox),
        "replays": sandbox.replays,
        "kills": len(pool.killed),
        "stops": pool.stops,
        "database disconnects": injector.disconnects,
        "forced refreshes": sum(accounts.forced.values()),
        "forced refreshes that succeeded": accounts.forced_successes,
    }


def count_rotated(sandbox: Sandbox) -> int:
    return sum(request.outcome == "rotated" for request in sandbox.token_requests)


def as_table(report: Mapping[str, Any]) -> str:
    """Return the report as a table."""
    lines = []
    for name, value in report.items():
        if name in ("options", "versions"):
            lines.append(f"{name:<32}{' '.join(f'{k}={v}' for k, v in value.items())}")
        elif isinstance(value, Mapping):
            lines.append(f"{name:<32}{sum(value.values()):>8}")
            lines += [f"    {each:<48}{number:>8}" for each, number in value.items()]
        elif isinstance(value, list):
            lines.append(f"{name:<32}{len(value):>8}")
            lines += [f"    {line}" for each in value for line in _lines(each)]
        else:
            lines.append(f"{name:<32}{value:>8}")
    return "\n".join(lines)


def _observed_counts(observed: Observations) -> dict[str, Any]:
    logs, kinds = observed.logs, Counter(event.kind for event in observed.events)
    errors = [each for each in logs.entries if each.action == process_log.DATABASE_ERROR]
    return {
        "presented": len(observed.requests),
        "stored": observed.stored,
        "faults": dict(Counter(each.fault for each in observed.requests if each.fault)),
        "database errors": dict(Counter(each.subject for each in errors)),
        "recovered from the spool": kinds[EventKind.RECOVERED],
        "late replies dropped": kinds[EventKind.LATE_REPLY_DROPPED],
        "API calls": logs.counts[process_log.API_CALL],
        "API calls refused": logs.counts[process_log.API_REFUSED],
    }


def _lines(item: Any) -> list[str]:
    """Return the lines of a violation or of an unexplained loss."""
    if not isinstance(item, Mapping):
        return [str(item)]
    evidence = (f"    {each}" for each in item["evidence"])
    return [f"{item['grant']['account']}: {item['cause']}", *evidence]


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


def _as_json(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
