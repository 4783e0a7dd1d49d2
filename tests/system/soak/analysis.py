"""Explains every lost grant, and finds what must never happen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from django_infusionsoft.choices import EventKind, Reason
from django_infusionsoft.sandbox import TokenRequest
from tests.system.soak.accounts import Grant
from tests.system.soak.fault_injector import REPLY_LOST
from tests.system.soak.process_log import (
    EVENT_NOT_WRITTEN,
    NOT_SPOOLED,
    REPLY_READ,
    SPOOLED,
    ProcessLogs,
)

# Of one refresh token: the attempt and one retry.
MAX_PRESENTATIONS: Final = 2
NOT_PROCESSED: Final = "not_processed"
# Faults after which no process can have read the reply.
REPLY_LOST_NAMES: Final = {str(fault) for fault, _ in REPLY_LOST}
# The events that a presentation may lead to.
PRESENTATION_EVENTS: Final = (
    EventKind.REFRESHED,
    EventKind.REFRESH_FAILED,
    EventKind.REAUTHORIZATION_REQUIRED,
    EventKind.LATE_REPLY_DROPPED,
    EventKind.ABANDONED,
)
STORED: Final = (EventKind.REFRESHED, EventKind.RECOVERED)


@dataclass(frozen=True, slots=True)
class Event:
    """An event of the history that is about a refresh token."""

    kind: str
    outcome: str
    fingerprint: str
    worker: str


@dataclass(frozen=True, slots=True)
class Loss:
    """A lost grant, and why it was lost."""

    grant: Grant
    cause: str
    is_explained: bool
    evidence: list[str]
    """What the sandbox and the processes recorded; only for an unexplained loss."""


@dataclass(frozen=True)
class Observations:
    """Everything that was recorded during a soak."""

    requests: list[TokenRequest]
    """The presentations of refresh tokens, from the sandbox's journal; without probes."""
    logs: ProcessLogs
    events: list[Event]
    lost: list[Grant]
    killed: Collection[int]
    forced: Counter[str]
    stored: int
    """How many token pairs from refreshes are in a row now, or were."""


@dataclass
class Findings:
    """The result of the analysis."""

    losses: list[Loss]
    violations: list[str] = field(default_factory=list)
    missing_events: Counter[str] = field(default_factory=Counter)
    """How many presentations have no event, by the reason that excuses it."""
    misreported: list[str] = field(default_factory=list)
    """Replies that were stored although the history says that they were dropped."""

    @property
    def explained(self) -> Counter[str]:
        return Counter(each.cause for each in self.losses if each.is_explained)

    @property
    def unexplained(self) -> list[Loss]:
        return [each for each in self.losses if not each.is_explained]

    def as_dict(self) -> dict[str, Any]:
        """Return the findings for JSON."""
        return {
            "lost": len(self.losses),
            "explained": dict(self.explained),
            "unexplained": [asdict(each) for each in self.unexplained],
            "violations": self.violations,
            "presentations without an event": dict(self.missing_events),
            "stored, but reported as dropped": self.misreported,
        }


def analyze(observed: Observations) -> Findings:
    """Explain every loss, and find the violations."""
    findings = Findings([_explain(grant, observed) for grant in observed.lost])
    findings.violations += _presented_too_often(observed)
    findings.violations += _wrong_statuses(observed.lost)
    findings.violations += _imbalance(observed)
    _check_history(observed, findings)
    findings.misreported = _misreported(observed)
    return findings


def _explain(grant: Grant, observed: Observations) -> Loss:
    cause, is_explained = _cause(grant, observed)
    evidence = [] if is_explained else _evidence(grant.presented, observed)
    return Loss(grant, cause, is_explained, evidence)


def _cause(grant: Grant, observed: Observations) -> tuple[str, bool]:
    """Return why a grant was lost, and whether no software could have prevented it."""
    presented, logs = grant.presented, observed.logs
    requests = (each for each in observed.requests if each.fingerprint == presented)
    rotation = next((each for each in requests if each.outcome == "rotated"), None)
    if rotation is None:
        return "Keap did not rotate it", False
    if logs.processes(SPOOLED, NOT_SPOOLED, presented=presented):
        return "a process had the reply in the spool", False
    if readers := logs.processes(REPLY_READ, presented=presented):
        return "killed between reading and spooling the reply", readers <= set(observed.killed)
    if rotation.fault in REPLY_LOST_NAMES:
        return f"planned: {rotation.fault}", True
    if logs.unfinished_process(presented, rotation.at) in observed.killed:
        return "killed before the reply was read", True
    if not rotation.is_delivered:
        return "no process waited for the reply any more", True
    return "the reply was delivered to a running process", False


def _evidence(presented: str, observed: Observations) -> list[str]:
    """Return all records about a refresh token."""
    requests = [each for each in observed.requests if each.fingerprint == presented]
    return [
        *(f"{r.at:.6f} Keap: {r.outcome} {r.fault} delivered={r.is_delivered}" for r in requests),
        *map(str, observed.logs.about(presented)),
        *(str(each) for each in observed.events if each.fingerprint == presented),
    ]


def _presented_too_often(observed: Observations) -> Iterable[str]:
    # If Keap answered that it had not processed a request, another one does no harm.
    risky = (
        each for each in observed.requests if each.outcome != NOT_PROCESSED or not each.status
    )
    for presented, count in Counter(each.fingerprint for each in risky).items():
        if count > MAX_PRESENTATIONS + observed.forced[presented]:
            yield f"Refresh token {presented} was presented {count} times."


def _wrong_statuses(lost: list[Grant]) -> Iterable[str]:
    for grant in lost:
        if grant.status == "connected":
            yield f"{grant.account} is called connected, and its grant is lost."
        elif grant.is_live and grant.reason != Reason.UNANSWERED:
            yield f"{grant.account} is called {grant.reason}, and its grant is alive."


def _imbalance(observed: Observations) -> Iterable[str]:
    rotated = {each.fingerprint for each in observed.requests if each.outcome == "rotated"}
    lost = sum(grant.presented in rotated for grant in observed.lost)
    if len(rotated) != observed.stored + lost:
        yield f"Keap rotated {len(rotated)}; {observed.stored} were stored and {lost} lost."


def _misreported(observed: Observations) -> list[str]:
    stored = {each.fingerprint for each in observed.events if each.kind in STORED}
    dropped = (each for each in observed.events if each.kind == EventKind.LATE_REPLY_DROPPED)
    return [
        f"{each.fingerprint} by {each.worker}" for each in dropped if each.fingerprint in stored
    ]


def _check_history(observed: Observations, findings: Findings) -> None:
    """Check that each presentation has an event with its process and its result."""
    reported = Counter(
        (each.worker.rpartition(":")[2], each.fingerprint)
        for each in observed.events
        if each.kind in PRESENTATION_EVENTS and each.outcome
    )
    logged: Counter[str] = Counter()
    for (process, presented), count in observed.logs.presentations.items():
        logged[presented] += count
        missing = count - reported[str(process), presented]
        if missing > 0:
            _note_missing_events(observed, findings, process, presented, missing)
    for presented, count in Counter(each.fingerprint for each in observed.requests).items():
        if count > logged[presented]:
            findings.violations.append(f"No process logged that it presented {presented}.")


def _note_missing_events(
    observed: Observations, findings: Findings, process: int, presented: str, missing: int
) -> None:
    logs = observed.logs
    if process in observed.killed:
        findings.missing_events["the process was killed"] += missing
    elif process in logs.processes(EVENT_NOT_WRITTEN, presented=presented):
        findings.missing_events["the database did not accept the event"] += missing
    elif logs.database_failed_after(process, presented):
        findings.missing_events["the database failed the run"] += missing
    else:
        findings.violations.append(
            f"The history has no event of {presented}, presented by {process}."
        )
