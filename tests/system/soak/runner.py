"""Runs a soak: first with faults, then without, then counts what was lost."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

from django.db import OperationalError, connection
from django.db.models import Sum
from django.test.utils import setup_databases, teardown_databases

from django_infusionsoft.keap.transport import lease_seconds
from django_infusionsoft.models import ApplicationState, Credential, CredentialEvent
from django_infusionsoft.refresh.spool import KEPT_SECONDS
from django_infusionsoft.sandbox import Sandbox
from tests.services import database_url
from tests.system.soak import process_log, report
from tests.system.soak.accounts import Accounts
from tests.system.soak.analysis import Event, Observations, analyze
from tests.system.soak.fault_injector import FaultInjector
from tests.system.soak.process_log import ProcessLog, ProcessLogs
from tests.system.soak.worker_pool import WorkerPool

TICK_SECONDS: Final = 0.05
RECONNECT_SECONDS: Final = 0.5
PROGRESS_SECONDS: Final = 10.0
# If nothing is rotated for this long, something hangs.
STALL_SECONDS: Final = 60.0
FINAL_RUNS: Final = 4


@contextmanager
def temporary_database() -> Iterator[None]:
    """Create and migrate a database for this process and its children; drop it at the end."""
    old = setup_databases(verbosity=0, interactive=False, serialized_aliases=set())
    os.environ["DATABASE_URL"] = database_url()
    try:
        yield
    finally:
        teardown_databases(old, verbosity=0)


class Soak:
    """One soak, from the first connection of the accounts to the report."""

    def __init__(self, sandbox: Sandbox, folder: Path, options: argparse.Namespace) -> None:
        """
        :param folder: for the logs of the processes and for the spool.
        :param options: those of the command line.
        """
        shortest, longest = 1.1 * lease_seconds(), 1.6 * lease_seconds()
        self.sandbox, self.folder, self.options = sandbox, folder, options
        self.accounts = Accounts(sandbox, delay_seconds=longest + 2.0)
        for account in sandbox.accounts:
            self.accounts.connect(account.app_id)
        roles = ["refresher"] * options.workers + ["reader"] * options.readers
        self.pool = WorkerPool(folder, roles, Random(options.seed + 1))  # noqa: S311
        self.injector = FaultInjector(
            sandbox,
            self.pool,
            rates=_rates(options),
            stop_seconds=(shortest, longest),
            random=Random(options.seed),  # noqa: S311  # for the faults and their moments
        )

    def run(self) -> dict[str, Any]:
        """Run it, and return the report."""
        started = time.monotonic()
        process_log.record_refreshes(ProcessLog(self.folder))
        try:
            is_stalled = self._run_with_faults()
            self.sandbox.clear_plan()
            self.pool.terminate()
        finally:
            self.pool.kill_all()
        seconds = time.monotonic() - started
        self._run_without_faults()
        observed = self._observations()
        findings = analyze(observed)
        findings.violations += self._leftovers() + self.pool.crashes
        if is_stalled:
            findings.violations.append(f"Nothing was rotated for {STALL_SECONDS:g} s.")
        counts = report.count(self.sandbox, self.pool, self.accounts, self.injector)
        return report.build(self.options, seconds, observed, findings, counts)

    def _run_with_faults(self) -> bool:
        """Inject faults until enough is rotated; return whether the soak has stalled instead."""
        if not self._wait_for_workers():
            return True
        started = progressed_at = reconnected_at = reported_at = now = time.monotonic()
        rotated = 0
        while rotated < self.options.refreshes and now - started < self.options.seconds:
            now = time.monotonic()
            self.injector.inject_due()
            self.pool.check()
            if now - reconnected_at > RECONNECT_SECONDS:
                reconnected_at = now
                self._reconnect()
            if now - reported_at > PROGRESS_SECONDS:
                reported_at = now
                self._report_progress(now - started, rotated)
            time.sleep(TICK_SECONDS)
            before, rotated = rotated, report.count_rotated(self.sandbox)
            if rotated > before:
                progressed_at = now
            if now - progressed_at > STALL_SECONDS:
                return True
        return False

    def _wait_for_workers(self) -> bool:
        """Return whether the workers rotate: a busy machine starts them slowly."""
        deadline = time.monotonic() + STALL_SECONDS
        while not report.count_rotated(self.sandbox):
            if time.monotonic() > deadline:
                return False
            self.pool.check()
            time.sleep(TICK_SECONDS)
        return True

    def _reconnect(self) -> None:
        try:
            self.accounts.reconnect_lost()
            self.accounts.skip_delays()
        except OperationalError as error:  # a stopped process may hold the lock: retry later
            _print(f"the database does not answer: {error}")
            connection.close()

    def _report_progress(self, seconds: float, rotated: int) -> None:
        _print(
            f"{seconds:4.0f} s: {rotated} rotated, {len(self.pool.killed)} killed, "
            f"{self.pool.stops} stopped, {len(self.accounts.lost)} lost"
        )

    def _run_without_faults(self) -> None:
        """Let the leases expire, and refresh what is due, with no faults any more."""
        _print("running without faults")
        connection.close()  # the injector may have ended it
        time.sleep(lease_seconds() + 0.5)  # the leases of killed processes
        self._age_empty_files()
        for _ in range(FINAL_RUNS):
            self.accounts.skip_delays()
            Credential.objects.refresh_due()
            self.accounts.reconnect_lost(immediately=True)

    def _age_empty_files(self) -> None:
        """Make the files that killed processes left empty old enough to be deleted."""
        old = time.time() - KEPT_SECONDS - 1
        for path in self._spool.glob("*"):
            if not path.read_bytes().strip(b"\0"):
                os.utime(path, (old, old))

    def _observations(self) -> Observations:
        generations = Credential.objects.aggregate(total=Sum("generation"))["total"]
        events = CredentialEvent.objects.exclude(fingerprint="").order_by("pk")
        return Observations(
            # Without probes, whose tokens belong to no account.
            requests=[each for each in self.sandbox.token_requests if each.account],
            logs=ProcessLogs.read(self.folder),
            events=[Event(*row) for row in events.values_list(*Event.__slots__)],
            lost=self.accounts.lost + self.accounts.find_lost(),
            killed=self.pool.killed,
            forced=self.accounts.forced,
            stored=generations - self.accounts.imports,
        )

    def _leftovers(self) -> list[str]:
        """Return what should no longer exist."""
        left = [f"{path.name} was left in the spool." for path in sorted(self._spool.glob("*"))]
        leased = Credential.objects.filter(lease_until__isnull=False)
        left += [f"{each} was left with a lease." for each in leased]
        blocked = ApplicationState.objects.exclude(block_reason="")
        return left + [f"The breaker of {each} was left open." for each in blocked]

    @property
    def _spool(self) -> Path:
        return self.folder / "spool"


def _rates(options: argparse.Namespace) -> dict[str, float]:
    kinds = ("kills", "stops", "faults", "slow", "disconnects")
    return {kind: getattr(options, f"{kind}_per_minute") for kind in kinds}


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
