"""The measures and their bars. Each measure is a generator of rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from django.db import connection

from benchmarks import credentials
from benchmarks.bench import Bench, Sweep, count_connections, median, median_ratio, print_progress
from benchmarks.timed_process import run_timed
from django_infusionsoft.models import Credential, CredentialEvent, DailyCount
from django_infusionsoft.monitoring import counts, heartbeat, retention
from django_infusionsoft.refresh.leases import claim_batch

CLAIMED: Final = 100
MEGABYTE: Final = 1_000_000
# In the history.
REFRESH_HOURS: Final = 18
# Autovacuum begins when a fifth of a table is dead: after a fifth of the 20 refreshes it keeps.
ROUNDS_PER_VACUUM: Final = 4
# One refresh in a hundred fails.
FAILS_EVERY: Final = 100
API_THREADS: Final = 20
API_TASKS: Final = 50
# Just enough to keep the sandbox busy.
SOCKETS: Final = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """The smallest or the largest value that a figure may have."""

    value: float
    at_least: bool = False

    def is_met_by(self, figure: float) -> bool:
        return figure >= self.value if self.at_least else figure <= self.value

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    measure: str
    unit: str
    ours: float
    theirs: float | None = None
    ratio: float | None = None
    bar: Bar | None = None
    """For the ratio if there is one, otherwise for ``ours``."""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_met(self) -> bool | None:
        """Whether the figure meets the bar; ``None`` without a bar."""
        if self.bar is None:
            return None
        return self.bar.is_met_by(self.ours if self.ratio is None else self.ratio)

    def as_dict(self) -> dict[str, Any]:
        bar = None if self.bar is None else str(self.bar)
        return {**asdict(self), "bar": bar, "met": self.is_met}


Measure = Callable[[Bench], Iterator[Row]]


def sandbox(bench: Bench) -> Iterator[Row]:
    due, before = bench.scale.due, bench.sandbox.cpu_seconds
    sweep = bench.raw_sockets(due, concurrency=SOCKETS)
    cpu_ms = (bench.sandbox.cpu_seconds - before) / due * 1000
    yield Row(
        "what the sandbox can do, 0 ms",
        "per second",
        sweep.rate,
        bar=Bar(1500.0, at_least=True),
        facts={"cpu_ms": cpu_ms},
    )


def sweep(bench: Bench) -> Iterator[Row]:
    due = bench.scale.due
    bench.store_due(due)
    ours, theirs = _in_turns(
        "sweep, 50 ms",
        bench.scale.rounds,
        lambda: bench.refresh_due(due),
        lambda: bench.plain_threads(due),
    )
    yield Row(
        f"sweep of {due:,} due, 50 ms, concurrency {bench.concurrency}; plain threads",
        "per second",
        median(ours).rate,
        median(theirs).rate,
        median_ratio(ours, theirs, "rate"),
        Bar(0.8, at_least=True),
        _facts(ours, theirs),
    )


def concurrency(bench: Bench) -> Iterator[Row]:
    for threads in bench.scale.concurrencies:
        due = threads * bench.scale.due_per_thread
        bench.store_due(due)
        print_progress(f"concurrency {threads}")
        ours = bench.refresh_due(due, concurrency=threads)
        theirs = bench.plain_threads(due, concurrency=threads)
        yield Row(
            f"  the same with {due:,} due at concurrency {threads}",
            "per second",
            ours.rate,
            theirs.rate,
            ours.rate / theirs.rate,
            facts={"ours": asdict(ours), "theirs": asdict(theirs)},
        )


def cpu(bench: Bench) -> Iterator[Row]:
    due = bench.scale.due
    bench.store_due(due)
    ours, theirs = _in_turns(
        "CPU",
        bench.scale.cpu_rounds,
        lambda: bench.refresh_due(due, latency=0.0),
        lambda: bench.plain_threads(due, latency=0.0),
    )
    yield Row(
        "CPU per refresh, 0 ms; plain threads",
        "ms",
        statistics.median(each.cpu_ms for each in ours),
        statistics.median(each.cpu_ms for each in theirs),
        median_ratio(ours, theirs, "cpu_ms"),
        Bar(2.5),
        _facts(ours, theirs),
    )


def workers(bench: Bench) -> Iterator[Row]:
    due = bench.scale.due
    bench.store_due(due)
    two, one = _in_turns(
        "two workers",
        bench.scale.rounds,
        lambda: bench.refresh_due(due, processes=2),
        lambda: bench.refresh_due(due),
    )
    yield Row(
        "two worker processes, 50 ms; one",
        "per second",
        median(two).rate,
        median(one).rate,
        median_ratio(two, one, "rate"),
        Bar(1.7, at_least=True),
        _facts(two, one),
    )


def claim(bench: Bench) -> Iterator[Row]:
    few, many = bench.scale.claim_stored
    bench.store_due(min(bench.scale.due, few))
    seconds, facts = {}, {}
    for stored in (few, many):
        print_progress(f"claims among {stored:,}")
        credentials.add_idle(stored)
        credentials.make_due()
        seconds[stored] = _claim_seconds(bench.scale.claims)
        facts[f"explain among {stored}"] = _explain_claim()
    yield Row(
        f"claim of {CLAIMED} among {many:,} stored; among {few:,}",
        "ms",
        seconds[many] * 1000,
        seconds[few] * 1000,
        seconds[many] / seconds[few],
        Bar(1.5),
        facts,
    )


def memory(bench: Bench) -> Iterator[Row]:
    few, many = bench.scale.memory_due
    ours, theirs = (
        bench.sweep_without_latency(many).peak_bytes,
        bench.sweep_without_latency(few).peak_bytes,
    )
    name = f"peak memory, {many:,} due"
    yield Row(name, "MB", ours / MEGABYTE, bar=Bar(150.0))
    yield Row(
        f"{name}; {few:,}", "MB", ours / MEGABYTE, theirs / MEGABYTE, ours / theirs, Bar(1.10)
    )


def history(bench: Bench) -> Iterator[Row]:
    stored, hours = bench.scale.history_stored, bench.scale.history_days * 24
    credentials.delete_all()
    credentials.add_idle(stored)
    credentials.add_events("imported", hours_ago=hours)
    heartbeat.begin_run("default", pause_seconds=0)
    slowest = 0.0
    for number, hours_ago in enumerate(range(hours, 0, -REFRESH_HOURS)):
        print_progress(f"history of {stored:,}, {hours_ago} hours ago")
        credentials.add_events("refreshed", hours_ago=hours_ago)
        credentials.add_events(
            "refresh_failed", hours_ago=hours_ago, every=FAILS_EVERY, offset=number % FAILS_EVERY
        )
        counts.add_up("default")
        for _ in range(0, stored, retention.CREDENTIALS_PER_RUN):
            started = time.perf_counter()
            retention.prune("default", is_over=lambda: False)
            slowest = max(slowest, time.perf_counter() - started)
        if number % ROUNDS_PER_VACUUM == 0:
            credentials.vacuum(CredentialEvent)
    models = (CredentialEvent, DailyCount)
    size = sum(credentials.table_bytes(model) for model in models) / MEGABYTE
    facts = {"kept_per_account": CredentialEvent.objects.count() / stored}
    name = f"history of {bench.scale.history_days} days of {stored:,} accounts"
    yield Row(name, "MB", size, bar=Bar(500.0), facts=facts)
    yield Row("  credentials", "MB", credentials.table_bytes(Credential) / MEGABYTE)
    yield Row("  longest time that a run prunes", "seconds", slowest)


def connections(bench: Bench) -> Iterator[Row]:
    bench.store_due(bench.scale.due)
    seen: list[int] = []
    bench.refresh_due(bench.scale.due, watch=lambda: seen.append(count_connections()))
    yield Row("database connections of a run", "most", max(seen), bar=Bar(1.0))


def session(bench: Bench) -> Iterator[Row]:
    job = _api_job(bench)
    print_progress("session().get()")
    facts = run_timed("api_calls", job).facts
    ours, plain = facts["ours"], facts["plain"]
    yield Row(
        "session().get(); requests.Session().get", "ms", ours * 1000, plain * 1000, ours / plain,
        Bar(1.10),
    )  # fmt: skip
    yield Row("  its queries", "queries", facts["queries"], bar=Bar(0.0))
    print_progress("for_account().session().get()")
    facts = run_timed("calls_of_requests", job).facts
    ours, plain = facts["ours"], facts["plain"]
    yield Row(
        "for_account().session().get(); requests.Session().get", "ms", ours * 1000, plain * 1000,
        ours / plain, Bar(1.5),
    )  # fmt: skip
    yield Row("  the queries of one", "queries", facts["queries"], bar=Bar(1.0))


def threads(bench: Bench) -> Iterator[Row]:
    print_progress("threads")
    facts = run_timed("calls_in_threads", _api_job(bench)).facts
    yield Row(
        f"calls of {API_THREADS} threads; plain sessions", "per second", facts["ours"],
        facts["plain"], facts["ratio"], Bar(0.9, at_least=True),
    )  # fmt: skip


def tasks(bench: Bench) -> Iterator[Row]:
    print_progress("tasks")
    job = _api_job(bench)
    bench.sandbox.set_api_latency(0.05)
    facts = run_timed("async_calls", job).facts
    bench.sandbox.set_api_latency(0.0)
    yield Row(
        f"calls of 50 ms by {API_TASKS} tasks; httpx2", "seconds", facts["ours"],
        facts["plain"], facts["ratio"], Bar(1.15),
    )  # fmt: skip


def items(bench: Bench) -> Iterator[Row]:
    few, many = bench.scale.listed
    bench.sandbox.add_contacts(many)
    job = {**_api_job(bench), "page_size": few, "listed": many}
    print_progress("items()")
    facts = run_timed("lists", job).facts
    yield Row(
        f"items() of {many:,} contacts; a loop with requests", "seconds", facts["ours"],
        facts["plain"], facts["ratio"], Bar(1.10),
    )  # fmt: skip
    most, least = (
        run_timed("items", {**job, "read": number}).peak_bytes / MEGABYTE for number in (many, few)
    )
    yield Row(f"its peak memory; of {few:,}", "MB", most, least, most / least, Bar(1.10))


def _api_job(bench: Bench) -> dict[str, Any]:
    bench.store_due(1)
    return {
        "account": Credential.objects.get().account,
        "api_url": bench.sandbox.settings["INFUSIONSOFT_API_URL"],
        "api_calls": bench.scale.api_calls,
        "threads": API_THREADS,
        "calls_per_thread": bench.scale.api_calls // 10,
        "tasks": API_TASKS,
        "async_calls": bench.scale.api_calls // 10,
        "rounds": bench.scale.rounds,
    }


def peers(bench: Bench) -> Iterator[Row]:
    due = bench.scale.peers_due
    bench.store_due(due)
    print_progress("peers")
    ours = bench.refresh_due(due)
    titles = {"social": "social-auth-app-django", "recipe": "requests-oauthlib recipe"}
    for name, title in titles.items():
        theirs = bench.peer(name, due)
        yield Row(
            f"sweep of {due:,} due, 50 ms; {title}",
            "per second",
            ours.rate,
            theirs.rate,
            ours.rate / theirs.rate,
        )


def growth(bench: Bench) -> Iterator[Row]:
    due = bench.scale.growth_stored_due
    bench.store_due(due)
    for stored in bench.scale.growth_stored:
        print_progress(f"sweep of {due:,} among {stored:,}, 0 ms")
        credentials.add_idle(stored)
        seconds = bench.refresh_due(due, latency=0.0).seconds
        yield Row(f"sweep of {due:,} due, 0 ms, among {stored:,} stored", "seconds", seconds,
                  facts={"stored": stored, "due": due})  # fmt: skip
    for due in bench.scale.growth_due:
        seconds = bench.sweep_without_latency(due).seconds
        yield Row(f"sweep of {due:,} due, 0 ms", "seconds", seconds, facts={"due": due})


MEASURES: Final[Mapping[str, Measure]] = {
    "sandbox": sandbox,
    "sweep": sweep,
    "concurrency": concurrency,
    "cpu": cpu,
    "workers": workers,
    "claim": claim,
    "memory": memory,
    "connections": connections,
    "session": session,
    "threads": threads,
    "tasks": tasks,
    "items": items,
    "peers": peers,
    "growth": growth,
    "history": history,
}


def _in_turns(
    name: str, rounds: int, ours: Callable[[], Sweep], theirs: Callable[[], Sweep]
) -> tuple[list[Sweep], list[Sweep]]:
    """Measure both in each round, so that other load on the machine affects both equally."""
    pairs = []
    for number in range(1, rounds + 1):
        print_progress(f"{name}, round {number} of {rounds}")
        pairs.append((ours(), theirs()))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _facts(ours: list[Sweep], theirs: list[Sweep]) -> dict[str, Any]:
    return {"ours": [asdict(each) for each in ours], "theirs": [asdict(each) for each in theirs]}


def _claim_seconds(times: int) -> float:
    """Return the median time of a claim; each claim is undone."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        claims = claim_batch(Credential.objects.due(), CLAIMED)
        seconds.append(time.perf_counter() - started)
        credentials.release([each.credential.pk for each in claims])
    return statistics.median(seconds)


def _explain_claim() -> list[str]:
    """Return PostgreSQL's plan for the query that selects the credentials to claim."""
    queries: list[tuple[str, Any]] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "SKIP LOCKED" in sql:
            queries.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        claims = claim_batch(Credential.objects.due(), CLAIMED)
    credentials.release([each.credential.pk for each in claims])
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {queries[0][0]}", queries[0][1])
        return [line for (line,) in cursor.fetchall()]
