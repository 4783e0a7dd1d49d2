"""What is measured, and what it must reach: each measure is a generator of rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from django.db import connection

from benchmarks import stock
from benchmarks.bench import Bench, Sweep, connections, median, median_ratio, tell
from benchmarks.timed import timed
from django_infusionsoft.leases import claim_batch
from django_infusionsoft.models import Credential

CLAIMED: Final = 100
MEGABYTE: Final = 1_000_000
# Enough to keep the sandbox busy, and no more.
HAMMERS: Final = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """The least or the most that a figure may be."""

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
    """For the ratio; without one, for our figure."""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_met(self) -> bool | None:
        """Whether it is what it must be; ``None`` where nothing is asked of it."""
        if self.bar is None:
            return None
        return self.bar.is_met_by(self.ours if self.ratio is None else self.ratio)

    def as_dict(self) -> dict[str, Any]:
        bar = None if self.bar is None else str(self.bar)
        return {**asdict(self), "bar": bar, "met": self.is_met}


Measure = Callable[[Bench], Iterator[Row]]


def sandbox(bench: Bench) -> Iterator[Row]:
    due, before = bench.scale.due, bench.keap.cpu_seconds
    sweep = bench.hammered(due, concurrency=HAMMERS)
    cpu_ms = (bench.keap.cpu_seconds - before) / due * 1000
    yield Row("what the sandbox can do, 0 ms", "per second", sweep.rate, facts={"cpu_ms": cpu_ms})


def sweep(bench: Bench) -> Iterator[Row]:
    due = bench.scale.due
    bench.stock(due)
    ours, theirs = _in_turns(
        bench, lambda: bench.ours(due), lambda: bench.plain(due), "sweep, 50 ms"
    )
    yield Row(
        f"sweep of {due:,} due, 50 ms, concurrency {bench.concurrency}; plain threads",
        "per second",
        median(ours).rate,
        median(theirs).rate,
        median_ratio(ours, theirs, "rate"),
        Bar(0.8, at_least=True),
        _rounds(ours, theirs),
    )


def concurrency(bench: Bench) -> Iterator[Row]:
    for threads in bench.scale.concurrencies:
        due = threads * bench.scale.due_per_thread
        bench.stock(due)
        tell(f"concurrency {threads}")
        ours = bench.ours(due, concurrency=threads)
        theirs = bench.plain(due, concurrency=threads)
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
    bench.stock(due)
    ours, theirs = _in_turns(
        bench, lambda: bench.ours(due, latency=0.0), lambda: bench.plain(due, latency=0.0), "CPU"
    )
    yield Row(
        "CPU per refresh, 0 ms; plain threads",
        "ms",
        statistics.median(each.cpu_ms for each in ours),
        statistics.median(each.cpu_ms for each in theirs),
        median_ratio(ours, theirs, "cpu_ms"),
        Bar(3.0),
        _rounds(ours, theirs),
    )


def workers(bench: Bench) -> Iterator[Row]:
    due = bench.scale.due
    bench.stock(due)
    two, one = _in_turns(
        bench, lambda: bench.ours(due, processes=2), lambda: bench.ours(due), "two workers"
    )
    yield Row(
        "two worker processes, 50 ms; one",
        "per second",
        median(two).rate,
        median(one).rate,
        median_ratio(two, one, "rate"),
        Bar(1.7, at_least=True),
        _rounds(two, one),
    )


def claim(bench: Bench) -> Iterator[Row]:
    few, many = bench.scale.claim_stored
    bench.stock(min(bench.scale.due, few))
    seconds, facts = {}, {}
    for stored in (few, many):
        tell(f"claims among {stored:,}")
        stock.fill_up(stored)
        stock.make_due()
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
    ours, theirs = bench.sweep_of(many).peak_bytes, bench.sweep_of(few).peak_bytes
    name = f"peak memory, {many:,} due"
    yield Row(name, "MB", ours / MEGABYTE, bar=Bar(150.0))
    yield Row(
        f"{name}; {few:,}", "MB", ours / MEGABYTE, theirs / MEGABYTE, ours / theirs, Bar(1.10)
    )


def connected(bench: Bench) -> Iterator[Row]:
    bench.stock(bench.scale.due)
    seen: list[int] = []
    bench.ours(bench.scale.due, watch=lambda: seen.append(connections()))
    yield Row("database connections of a run", "most", max(seen), bar=Bar(1.0))


def session(bench: Bench) -> Iterator[Row]:
    bench.stock(1)
    account = Credential.objects.get().account
    api_url = bench.keap.settings["INFUSIONSOFT_API_URL"]
    job = {"account": account, "api_url": api_url, "gets": bench.scale.gets}
    tell("session().get()")
    facts = timed("gets", job).facts
    ours, plain = facts["ours"], facts["plain"]
    yield Row(
        "session().get(); requests.Session().get", "ms", ours * 1000, plain * 1000, ours / plain,
        Bar(1.10),
    )  # fmt: skip
    yield Row("  its queries", "queries", facts["queries"], bar=Bar(0.0))


def peers(bench: Bench) -> Iterator[Row]:
    due = bench.scale.peers_due
    bench.stock(due)
    tell("peers")
    ours = bench.ours(due)
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
    bench.stock(due)
    for stored in bench.scale.growth_stored:
        tell(f"sweep of {due:,} among {stored:,}, 0 ms")
        stock.fill_up(stored)
        taken = bench.ours(due, latency=0.0).seconds
        yield Row(f"sweep of {due:,} due, 0 ms, among {stored:,} stored", "seconds", taken,
                  facts={"stored": stored, "due": due})  # fmt: skip
    for due in bench.scale.growth_due:
        taken = bench.sweep_of(due).seconds
        yield Row(f"sweep of {due:,} due, 0 ms", "seconds", taken, facts={"due": due})


MEASURES: Final[Mapping[str, Measure]] = {
    "sandbox": sandbox,
    "sweep": sweep,
    "concurrency": concurrency,
    "cpu": cpu,
    "workers": workers,
    "claim": claim,
    "memory": memory,
    "connections": connected,
    "session": session,
    "peers": peers,
    "growth": growth,
}


def _in_turns(
    bench: Bench, ours: Callable[[], Sweep], theirs: Callable[[], Sweep], what: str
) -> tuple[list[Sweep], list[Sweep]]:
    """Let each be measured in each round: what else happens on the machine meets both."""
    pairs = []
    for number in range(1, bench.scale.rounds + 1):
        tell(f"{what}, round {number} of {bench.scale.rounds}")
        pairs.append((ours(), theirs()))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _rounds(ours: list[Sweep], theirs: list[Sweep]) -> dict[str, Any]:
    return {"ours": [asdict(each) for each in ours], "theirs": [asdict(each) for each in theirs]}


def _claim_seconds(times: int) -> float:
    """Return the median time of a claim; each is given back."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        claims = claim_batch(Credential.objects.due(), CLAIMED)
        seconds.append(time.perf_counter() - started)
        stock.give_back([each.credential.pk for each in claims])
    return statistics.median(seconds)


def _explain_claim() -> list[str]:
    """Return the plan of the query by which a claim finds its credentials."""
    found: list[tuple[str, Any]] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "SKIP LOCKED" in sql:
            found.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        claims = claim_batch(Credential.objects.due(), CLAIMED)
    stock.give_back([each.credential.pk for each in claims])
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {found[0][0]}", found[0][1])
        return [line for (line,) in cursor.fetchall()]
