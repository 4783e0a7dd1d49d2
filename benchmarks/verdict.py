"""What a soak has come to: the count, and what it has against the app."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from benchmarks.evidence import KEPT, NOT_KEPT, READ, UNTOLD, Evidence
from benchmarks.people import Loss
from benchmarks.trouble import LOSING
from django_infusionsoft.choices import EventKind, Reason
from django_infusionsoft.sandbox import TokenRequest

# Of one refresh token: the attempt, and one repeat.
MAX_PRESENTATIONS: Final = 2
NOT_PROCESSED: Final = "not_processed"
# Faults in whose wake nobody can have read the reply.
LOSING_FAULTS: Final = {str(fault) for fault, _ in LOSING}
# What the history tells of a presentation.
TELLING: Final = (
    EventKind.REFRESHED,
    EventKind.REFRESH_FAILED,
    EventKind.REAUTHORIZATION_REQUIRED,
    EventKind.LATE_REPLY_DROPPED,
    EventKind.ABANDONED,
)
STORED: Final = (EventKind.REFRESHED, EventKind.RECOVERED)


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the history that is about a refresh token."""

    kind: str
    outcome: str
    fingerprint: str
    worker: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """Why a grant was lost."""

    loss: Loss
    how: str
    is_explained: bool
    evidence: list[str]
    """What Keap and the processes say of its last refresh token; only where it is needed."""


@dataclass(frozen=True)
class Case:
    """All that is known of a soak."""

    requests: list[TokenRequest]
    """Presentations of refresh tokens that have been ones, as Keap has them."""
    evidence: Evidence
    events: list[Event]
    losses: list[Loss]
    killed: Collection[int]
    asked_for: Counter[str]
    stored: int
    """Pairs that came from a refresh and are or were in a row."""


@dataclass
class Verdict:
    """The judgement of a case."""

    judgements: list[Judgement]
    violations: list[str] = field(default_factory=list)
    untold: Counter[str] = field(default_factory=Counter)
    """Presentations that the history has no event of, by excuse."""
    mistold: list[str] = field(default_factory=list)
    """Replies that the history calls dropped and that were stored."""

    @property
    def explained(self) -> Counter[str]:
        return Counter(each.how for each in self.judgements if each.is_explained)

    @property
    def unexplained(self) -> list[Judgement]:
        return [each for each in self.judgements if not each.is_explained]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "lost": len(self.judgements),
            "explained": dict(self.explained),
            "unexplained": [asdict(each) for each in self.unexplained],
            "violations": self.violations,
            "presentations without an event": dict(self.untold),
            "called dropped, and stored": self.mistold,
        }


def judge(case: Case) -> Verdict:
    """Explain every loss, and find what should never be."""
    verdict = Verdict([_explain(loss, case) for loss in case.losses])
    verdict.violations += _presented_too_often(case)
    verdict.violations += _untruths(case.losses)
    verdict.violations += _imbalance(case, verdict)
    _look_for_events(case, verdict)
    verdict.mistold = _mistold(case)
    return verdict


def _explain(loss: Loss, case: Case) -> Judgement:
    how, is_explained = _how(loss, case)
    evidence = []
    if not is_explained:
        asked = [each for each in case.requests if each.fingerprint == loss.presented]
        evidence = [
            *(f"{r.at:.6f} Keap: {r.outcome} {r.fault} delivered={r.is_delivered}" for r in asked),
            *map(str, case.evidence.about(loss.presented)),
            *(str(each) for each in case.events if each.fingerprint == loss.presented),
        ]
    return Judgement(loss, how, is_explained, evidence)


def _how(loss: Loss, case: Case) -> tuple[str, bool]:
    """Return how it was lost, and whether that is none of our fault."""
    who = case.evidence.who
    fitting = (each for each in case.requests if each.fingerprint == loss.presented)
    rotation = next((each for each in fitting if each.outcome == "rotated"), None)
    if rotation is None:
        return "Keap has not rotated it", False
    if who(KEPT, NOT_KEPT, of=loss.presented):
        return "a process had the reply in the spool", False
    if readers := who(READ, of=loss.presented):
        return "killed between reading the reply and keeping it", readers <= set(case.killed)
    if rotation.fault in LOSING_FAULTS:
        return f"planned: {rotation.fault}", True
    if case.evidence.waiting_for(loss.presented, rotation.at) in case.killed:
        return "killed before the reply was read", True
    if not rotation.is_delivered:
        return "nobody waited for the reply any more", True
    return "the reply was delivered to a process that lived", False


def _presented_too_often(case: Case) -> Iterable[str]:
    # Keap told of the others that it had not looked at them.
    risky = (each for each in case.requests if each.outcome != NOT_PROCESSED or not each.status)
    for presented, count in Counter(each.fingerprint for each in risky).items():
        if count > MAX_PRESENTATIONS + case.asked_for[presented]:
            yield f"Refresh token {presented} was presented {count} times."


def _untruths(losses: list[Loss]) -> Iterable[str]:
    """Tell what a row said that was not so."""
    for loss in losses:
        if loss.status == "connected":
            yield f"{loss.account} was called connected in the end, and its grant is lost."
        elif loss.is_live and loss.reason != Reason.UNANSWERED:
            yield f"{loss.account} was called {loss.reason}, and its grant was alive."


def _imbalance(case: Case, verdict: Verdict) -> Iterable[str]:
    rotated = {each.fingerprint for each in case.requests if each.outcome == "rotated"}
    lost = sum(loss.presented in rotated for loss in case.losses)
    if len(rotated) != case.stored + lost:
        yield f"Keap rotated {len(rotated)}; {case.stored} were stored and {lost} lost."


def _mistold(case: Case) -> list[str]:
    stored = {each.fingerprint for each in case.events if each.kind in STORED}
    dropped = (e for e in case.events if e.kind == EventKind.LATE_REPLY_DROPPED)
    return [
        f"{each.fingerprint} by {each.worker}" for each in dropped if each.fingerprint in stored
    ]


def _look_for_events(case: Case, verdict: Verdict) -> None:
    """See that the history knows each presentation: who, which, and with what result."""
    told = Counter(
        (each.worker.rpartition(":")[2], each.fingerprint)
        for each in case.events
        if each.kind in TELLING and each.outcome
    )
    noted: Counter[str] = Counter()
    for (process, presented), count in case.evidence.presentations.items():
        noted[presented] += count
        missing = count - told[str(process), presented]
        if missing > 0:
            _note_untold(case, verdict, process, presented, missing)
    for presented, count in Counter(each.fingerprint for each in case.requests).items():
        if count > noted[presented]:
            verdict.violations.append(f"Nobody owns up to having presented {presented}.")


def _note_untold(case: Case, verdict: Verdict, process: int, presented: str, missing: int) -> None:
    evidence = case.evidence
    if process in case.killed:
        verdict.untold["its process was killed"] += missing
    elif process in evidence.who(UNTOLD, of=presented):
        verdict.untold["the database did not take the event"] += missing
    elif evidence.failed_after(process, presented):
        verdict.untold["the database failed the run"] += missing
    else:
        verdict.violations.append(
            f"The history does not tell what came of {presented}, presented by {process}."
        )
