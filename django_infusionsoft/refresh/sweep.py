"""The loop of a run: claim ahead, start each claim in its slot, store the answers."""

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from django.db.models import QuerySet

from django_infusionsoft import elapsed
from django_infusionsoft.choices import Outcome
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import (
    ClientRejected,
    InfusionsoftError,
    RejectionDoubted,
)
from django_infusionsoft.monitoring import heartbeat
from django_infusionsoft.refresh import breaker, rate_limit, receivers
from django_infusionsoft.refresh.attempt_pool import AttemptPool
from django_infusionsoft.refresh.leases import Claim, claim_batch, mark_used, release
from django_infusionsoft.refresh.reporting import report_previous
from django_infusionsoft.refresh.run_result import Ended, Run
from django_infusionsoft.refresh.storing import AttemptResult
from django_infusionsoft.refresh.turns import take_turns
from django_infusionsoft.storage.credentials import CredentialRow, alias_of
from django_infusionsoft.storage.database import own_transaction

# How many times the concurrency is claimed ahead: each claim takes three statements.
PREFETCH: Final = rate_limit.CLAIMS_PER_THREAD - 1
# How often a run checks whether it should stop.
TICK_SECONDS: Final = 0.2
HEARTBEAT_SECONDS: Final = 60.0
# After this it claims nothing more, so that the signals can be sent.
SIGNALS_WAIT_SECONDS: Final = 5.0


@dataclass(slots=True)
class Sweep:
    """Keeps the pool busy: claims ahead, starts each claim in its slot, counts the results."""

    due: QuerySet[CredentialRow]
    run: Run
    pool: AttemptPool
    ends_at: float
    """By ``elapsed.monotonic()``."""
    should_stop: Callable[[], bool]
    on_progress: Callable[[Run], None]
    waiting: deque[tuple[float, Claim]] = field(default_factory=deque, init=False)
    """The claims that are not started yet, with their slots, by time."""
    # The first call is alone: if Keap is down or a client is wrong, one credential finds out.
    concurrency: int = field(default=1, init=False)
    """How many calls may be under way for now."""
    must_probe: bool = field(default=True, init=False)
    """Whether the blocked clients must be probed before anything is claimed."""
    is_hanging: bool = field(default=False, init=False)
    """Whether Keap left a probe of this run waiting: no more are sent."""
    seen_at: float = field(default_factory=elapsed.monotonic, init=False)
    """When the run's heartbeat was last recorded, by ``elapsed.monotonic()``."""

    def run_until_done(self) -> None:
        try:
            while self._should_continue():
                self._claim()
                if not self.waiting and not self.pool:
                    if not self._wait_for_slots():
                        break
                    continue
                self._start()
                self._collect()
        finally:
            self._release_unused()
        while self.pool:
            for result in self.pool.results():
                self.run.count(result)

    def _should_continue(self) -> bool:
        if self.should_stop():
            self.run.ended = Ended.STOP
        elif elapsed.monotonic() >= self.ends_at:
            self.run.ended = Ended.TIME_LIMIT
        return self.run.ended == Ended.DONE

    def _claim(self) -> None:
        """Claim more once three quarters of the claims ahead are started.

        A claim waits for four answers at most; its lease leaves time for those of 15 seconds.
        """
        ahead = len(self.pool) + len(self.waiting)
        prefetch = PREFETCH * self.concurrency if self.concurrency > 1 else 0
        room = self.concurrency + prefetch - ahead
        if ahead and 4 * room < max(3 * prefetch, 1):
            return
        if receivers.seconds_waiting() > SIGNALS_WAIT_SECONDS:
            if ahead:
                return  # neither leases nor answers must wait for receivers
            receivers.send_waiting()
        must_probe = self.must_probe
        if must_probe:
            if ahead:
                return  # answers must not wait for a probe
            self._probe()
            self.pool.resume()
            self.must_probe = False
            if self.run.ended != Ended.DONE:  # probes take time
                return
        claims = take_turns(self.due) if must_probe else []
        claims += claim_batch(self.due, room)
        # First, so that they are released if anything fails.
        self.waiting.extend((math.inf, claim) for claim in claims)
        for claim in claims:
            report_previous(claim)
        self._reserve(claims)

    def _probe(self) -> None:
        """Probe the blocked applications, and count those that stay blocked."""
        if self.is_hanging:
            self.run.stopped = breaker.count_blocked(self.due.db)
            return
        self.run.stopped, self.is_hanging = breaker.probe_all(
            self.due.db, is_over=lambda: not self._should_continue()
        )

    def _reserve(self, claims: list[Claim]) -> None:
        """Reserve a slot for each of the new claims."""
        with_slots = [each for each in self.waiting if each[0] < math.inf]
        by_application: dict[int | None, list[Claim]] = defaultdict(list)
        for claim in claims:
            by_application[claim.credential.application_id].append(claim)
        for group in by_application.values():
            application = group[0].credential.application
            slots = rate_limit.reserve(self.due.db, application, len(group))
            with_slots.extend(zip(slots, group, strict=True))
        self.waiting = deque(sorted(with_slots, key=lambda each: each[0]))

    def _start(self) -> None:
        """Start the claims whose slots have come, several at once: each time costs a write.

        If the process dies after that write, each of them counts as an attempt.
        """
        if len(self.pool) > self.concurrency:
            return
        now, most = elapsed.monotonic(), 2 * self.concurrency - len(self.pool)
        ready = [claim for slot, claim in islice(self.waiting, most) if slot <= now]
        mark_used(ready)
        for claim in ready:
            self.waiting.popleft()
            self.pool.start(claim)

    def _collect(self) -> None:
        """Wait a moment for answers, and count them."""
        pause = TICK_SECONDS
        if self.waiting and len(self.pool) <= self.concurrency:
            pause = max(0.0, min(pause, self.waiting[0][0] - elapsed.monotonic()))
        if not self.pool:
            time.sleep(pause)
            return
        for result in self.pool.results(timeout_seconds=pause):
            self._count(result)
            if isinstance(result.error, RejectionDoubted):
                self._pause_for_probe()
        if self.pool.is_halted:
            self._pause_for_probe()
        if elapsed.monotonic() - self.seen_at > HEARTBEAT_SECONDS:
            self.seen_at = elapsed.monotonic()
            heartbeat.record_heartbeat(self.due.db)
        self.on_progress(self.run)

    def _count(self, result: AttemptResult) -> None:
        self.run.count(result)
        credential, error = result.attempt.credential, result.error
        match result.outcome:
            case Outcome.OK if self.concurrency == 1 and not self.must_probe:
                self.concurrency = conf.REFRESH_CONCURRENCY
                # It may have unblocked its application.
                self.must_probe = bool(self.run.stopped)
            case Outcome.UNAVAILABLE if error and self.pool.is_failing(credential.application_id):
                self._trip(credential, error)
        if result.outcome == Outcome.MISCONFIGURED and not isinstance(error, ClientRejected):
            # Even if a probe succeeds: a setting that only a refresh needs may be invalid.
            self.due = self.due.exclude(application=credential.application_id)

    def _trip(self, credential: CredentialRow, error: InfusionsoftError) -> None:
        breaker.trip(alias_of(credential), credential.application, error)
        self._pause_for_probe()

    def _pause_for_probe(self) -> None:
        """Send nothing more before the blocked clients are probed, and then one call at first."""
        self._release_unused()
        self.concurrency, self.must_probe = 1, True

    def _release_unused(self) -> None:
        waiting = [claim for _, claim in self.waiting]
        self.waiting.clear()
        try:
            self.pool.release()
        finally:
            release(waiting)

    def _wait_for_slots(self) -> bool:
        """Wait for free slots; return whether the run should claim again."""
        if self.run.ended != Ended.DONE:
            return False
        pause = rate_limit.seconds_until_free(self.due.db)
        if pause < math.inf and self._is_anything_due():
            time.sleep(min(max(pause, 0.01), TICK_SECONDS))
            return True
        if self._is_anything_due():
            # Not only those of the last probe: rejections in a row block an application, too.
            self.run.stopped = breaker.count_blocked(self.due.db)
            if self.run.stopped:
                self.run.ended = Ended.KEAP
        return False

    def _is_anything_due(self) -> bool:
        with own_transaction(self.due.db):
            return self.due.exists()
