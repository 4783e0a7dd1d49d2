"""A run over what is due: many credentials, side by side, however many are stored.

Several runs, on several machines, share the work without talking to each other: each claims a few
at a time, in the rows themselves.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Final

from django.db import Error

from django_infusionsoft import alarms, breaker, history, pace, upkeep
from django_infusionsoft.attempts import Settled, tell_abandoned
from django_infusionsoft.calls import FAILURES_THAT_HALT, Calls
from django_infusionsoft.choices import Outcome
from django_infusionsoft.conf import conf
from django_infusionsoft.database import own_transaction
from django_infusionsoft.exceptions import (
    ClientRejected,
    ConfigurationError,
    DatabaseBusy,
    InfusionsoftError,
    RefreshInProgress,
)
from django_infusionsoft.leases import Claim, claim_batch, release, use
from django_infusionsoft.recovery import recover_all
from django_infusionsoft.rows import alias_of

if TYPE_CHECKING:
    from django_infusionsoft.managers import CredentialQuerySet
    from django_infusionsoft.models import Credential

logger = logging.getLogger("django_infusionsoft")

# However quick Keap is.
MOST_AHEAD: Final = 100
# How soon it is noticed that the run is to stop.
TICK_SECONDS: Final = 0.2
HEARTBEAT_SECONDS: Final = 60.0
# Who they are is asked one by one, and of servers that do not know; the others' turn will come.
NAMELESS_OF_A_RUN: Final = 5


class Ended(StrEnum):
    """Why a run ended."""

    DONE = "done"
    """Nothing is due any more."""
    TIME_LIMIT = "time_limit"
    STOP = "stop"
    """Somebody wanted it to."""
    KEAP = "keap"
    """What is due is of applications whose client is not used now."""


@dataclass(slots=True)
class Run:
    """What a run over the due credentials did, counted by outcome, and what it left."""

    refreshed: int = 0
    rejected: int = 0
    misconfigured: int = 0
    unavailable: int = 0
    unknown: int = 0
    unreadable: int = 0
    stopped: int = 0
    """Applications whose client is not used: Keap refuses it, or does not answer."""
    ended: Ended = field(default=Ended.DONE, init=False)
    pruned: int = field(default=0, init=False)
    """Events that were too old."""
    nameless: list[Credential] = field(default_factory=list, init=False)
    """Some that were refreshed, and are of an account that Keap has not told."""

    def as_dict(self) -> dict[str, int]:
        """Return the counts."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}

    @property
    def tried(self) -> int:
        """How many credentials were tried."""
        return sum(self.as_dict().values()) - self.stopped

    @property
    def went_well(self) -> bool:
        """Whether every credential that was tried has been refreshed."""
        return sum(self.as_dict().values()) == self.refreshed

    def count(self, settled: Settled) -> None:
        """Count one more."""
        credential, outcome = settled.attempt.credential, settled.outcome
        name = "refreshed" if outcome == Outcome.OK else outcome.value
        setattr(self, name, getattr(self, name) + 1)
        is_nameless = outcome == Outcome.OK and credential.account is None
        if is_nameless and len(self.nameless) < NAMELESS_OF_A_RUN:
            self.nameless.append(credential)


def refresh_due(
    due: CredentialQuerySet,
    *,
    time_limit_seconds: float,
    should_stop: Callable[[], bool],
    on_progress: Callable[[Run], None],
) -> Run:
    """Refresh what is due until nothing is, or the time is over; then prune the history.

    No lease is left behind, and no answer: what is under way in the end is awaited.

    :param should_stop: asked several times a second.
    :param on_progress: called after every handful.
    """
    run, ends_at = Run(), time.monotonic() + time_limit_seconds
    upkeep.see_run(due.db)
    progress = _Heartbeat(due.db, on_progress)
    for settled in recover_all(due.model, due.db):
        run.count(settled)
    with Calls(conf.REFRESH_CONCURRENCY) as calls:
        _Sweep(due, run, calls, ends_at, should_stop, progress).go()
    on_progress(run)
    if run.ended != Ended.STOP:
        run.pruned = history.prune(
            due.model, due.db, is_over=lambda: should_stop() or time.monotonic() >= ends_at
        )
    counts = " ".join(f"{name}={count}" for name, count in run.as_dict().items())
    logger.info("run_finished %s pruned=%s ended=%s", counts, run.pruned, run.ended)
    _report(due.db, run)
    return run


def _report(alias: str, run: Run) -> None:
    """Let the others know that a run has ended; mail what it has come upon."""
    try:
        upkeep.end_run(
            alias, ended=run.ended, refreshed=run.refreshed, failed=run.tried - run.refreshed
        )
    except (Error, DatabaseBusy):  # what it did is done
        logger.exception("run_not_reported")
    if run.ended != Ended.STOP:
        alarms.tell(alias)


@dataclass(slots=True)
class _Heartbeat:
    """Writes down now and then that the run goes on, and passes on how far it has come."""

    alias: str
    on_progress: Callable[[Run], None]
    seen_at: float = field(default_factory=time.monotonic, init=False)

    def __call__(self, run: Run) -> None:
        if time.monotonic() - self.seen_at > HEARTBEAT_SECONDS:
            self.seen_at = time.monotonic()
            upkeep.see_run(self.alias)
        self.on_progress(run)


@dataclass(slots=True)
class _Sweep:
    """Keeps the calls going: claims ahead, starts each claim in its time, settles answers."""

    due: CredentialQuerySet
    run: Run
    calls: Calls
    ends_at: float
    """By ``time.monotonic()``."""
    should_stop: Callable[[], bool]
    on_progress: Callable[[Run], None]
    waiting: deque[tuple[float, Claim]] = field(default_factory=deque, init=False)
    """What is claimed and has its place, by time."""
    # The first goes alone: a dead Keap or a wrong client is met by one credential.
    width: int = field(default=1, init=False)
    """How many calls there may be side by side for now."""
    reach: int = field(default=1, init=False)
    """How many are claimed ahead of those that are under way."""
    claimed_at: float = field(default=0.0, init=False)
    reconsiders: bool = field(default=True, init=False)
    """Whether the clients that are not used are to be looked at before anything is claimed."""
    claims_at: float = field(default=0.0, init=False)
    """Not before this moment: there was nothing more to be had."""
    was_booked_out: bool = field(default=False, init=False)
    """Whether every place was taken when this was last looked at."""
    failures: Counter[int | None] = field(default_factory=Counter, init=False)
    """Errors of Keap's in a row, by application."""

    def go(self) -> None:
        try:
            while self._may_go_on():
                self._claim()
                if not self.waiting and not self.calls:
                    if not self._wait_for_more():
                        break
                    continue
                self._start()
                self._settle()
        finally:
            self._give_back()
        while self.calls:  # what is under way
            for settled in self.calls.settle():
                self.run.count(settled)

    def _may_go_on(self) -> bool:
        if self.should_stop():
            self.run.ended = Ended.STOP
        elif time.monotonic() >= self.ends_at:
            self.run.ended = Ended.TIME_LIMIT
        return self.run.ended == Ended.DONE

    def _claim(self) -> None:
        """Claim some more where half of what was claimed ahead has been used up."""
        now, ahead = time.monotonic(), len(self.calls) + len(self.waiting)
        room = self.width + (self.reach if self.width > 1 else 0) - ahead
        if ahead and (self.width == 1 or 2 * room <= self.reach or now < self.claims_at):
            return
        if self.reconsiders:
            if ahead:
                return  # a probe takes its time, and answers are not to wait for it
            self.run.stopped = breaker.reconsider(self.due.db)
            self.reconsiders = False
        claims = claim_batch(self.due, room)
        if len(claims) < room:
            self.claims_at = now + TICK_SECONDS
        self._adapt(now)
        # First of all where they are given back from, should anything fail.
        self.waiting.extend((math.inf, claim) for claim in claims)
        for claim in claims:
            tell_abandoned(claim)
        self._book()

    def _adapt(self, now: float) -> None:
        """Reach as far ahead as is used up in a moment: claims cost time, and hold leases."""
        if now - self.claimed_at < TICK_SECONDS:
            self.reach = min(2 * self.reach, MOST_AHEAD)
        elif now - self.claimed_at > 1.0:
            self.reach = max(self.reach // 2, 1)
        self.claimed_at = now

    def _book(self) -> None:
        """Give a place to each claim that has none yet."""
        placed = [each for each in self.waiting if each[0] < math.inf]
        by_application: dict[int | None, list[Claim]] = {}
        for place, claim in self.waiting:
            if place == math.inf:
                by_application.setdefault(claim.credential.application_id, []).append(claim)
        for claims in by_application.values():
            application = claims[0].credential.application
            places = pace.book(self.due.db, application, len(claims))
            placed.extend(zip(places, claims, strict=True))
        self.waiting = deque(sorted(placed, key=lambda each: each[0]))

    def _start(self) -> None:
        """Let those go whose time has come, some at a time: each time costs a write, and whoever
        dies from then on has cost an attempt.
        """
        if len(self.calls) > self.width:
            return
        now, most = time.monotonic(), 2 * self.width - len(self.calls)
        ready = [claim for place, claim in islice(self.waiting, most) if place <= now]
        use(ready)
        for claim in ready:
            self.waiting.popleft()
            self.calls.start(claim)

    def _settle(self) -> None:
        """Take in what has been answered; wait a moment for it."""
        pause = TICK_SECONDS
        if self.waiting and len(self.calls) <= self.width:
            pause = max(0.0, min(pause, self.waiting[0][0] - time.monotonic()))
        if not self.calls:
            time.sleep(pause)
            return
        for settled in self.calls.settle(timeout_seconds=pause):
            self._take_in(settled)
        if self.calls.is_halted:
            self._reconsider()
        release(self.calls.unused())
        self.on_progress(self.run)

    def _take_in(self, settled: Settled) -> None:
        self.run.count(settled)
        credential, error = settled.attempt.credential, settled.error
        match settled.outcome:
            case Outcome.OK:
                self.failures[credential.application_id] = 0
                if not self.reconsiders:
                    self.width = conf.REFRESH_CONCURRENCY
            case Outcome.UNAVAILABLE if error and not isinstance(error, RefreshInProgress):
                self._count_failure(credential, error)
        if settled.outcome == Outcome.MISCONFIGURED and not isinstance(error, ClientRejected):
            # Of which the breaker knows nothing, and which the next of this application's meets.
            self.due = self.due.without_application(credential.application_id)

    def _count_failure(self, credential: Credential, error: InfusionsoftError) -> None:
        self.failures[credential.application_id] += 1
        if self.failures[credential.application_id] < FAILURES_THAT_HALT:
            return
        try:
            client = credential.client
        except ConfigurationError:
            return
        breaker.trip(alias_of(credential), credential.application, client, error)
        self.failures[credential.application_id] = 0
        self._reconsider()

    def _reconsider(self) -> None:
        """Send nothing more until it is known which clients are in use, then one at first."""
        self._give_back()
        self.width, self.reconsiders = 1, True

    def _give_back(self) -> None:
        unused = [claim for _, claim in self.waiting] + self.calls.withdraw()
        self.waiting.clear()
        release(unused)

    def _wait_for_more(self) -> bool:
        """Wait for free places; return whether that is what the rest waits for."""
        pause = pace.seconds_until_free(self.due.db)
        was_booked_out, self.was_booked_out = self.was_booked_out, pause < math.inf
        if self.was_booked_out and self._is_anything_due():
            time.sleep(min(max(pause, 0.01), TICK_SECONDS))
            return True
        if was_booked_out:
            return True  # they may have come free since it was tried to claim
        if self.run.stopped and self._is_anything_due():
            self.run.ended = Ended.KEAP
        return False

    def _is_anything_due(self) -> bool:
        with own_transaction(self.due.db):
            return self.due.exists()
