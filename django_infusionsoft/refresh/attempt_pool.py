"""Concurrent attempts: threads call Keap, and the calling thread stores and reports the results.

The threads use no database, with two exceptions: a thread whose answer comes after its call was
given up stores the answer itself, and if the caller does not wait to the end, a thread takes its
place.
"""

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Final, Self

from django.db import connections

from django_infusionsoft import elapsed
from django_infusionsoft.choices import Outcome
from django_infusionsoft.exceptions import (
    ConfigurationError,
    DatabaseBusy,
    DecryptionError,
    OutcomeUnknown,
    ReauthorizationRequired,
    RefreshesLimited,
    RefreshInProgress,
    RejectionDoubted,
    SpoolError,
    TemporarilyUnavailable,
)
from django_infusionsoft.keap.sent import Call
from django_infusionsoft.monitoring import alerts
from django_infusionsoft.refresh import spool
from django_infusionsoft.refresh.leases import Claim, persist_or_keep, release
from django_infusionsoft.refresh.reporting import report
from django_infusionsoft.refresh.sending import Attempt, give_up, send
from django_infusionsoft.refresh.storing import AttemptResult, record_outcome, spooled_error
from django_infusionsoft.storage.credentials import alias_of, require_same_table
from django_infusionsoft.storage.database import persist, retry_pauses, tenant_selector

logger = logging.getLogger("django_infusionsoft")

# After this many errors of Keap's in a row nothing is sent until their cause is known.
FAILURES_THAT_HALT: Final = 5
# How often ``__exit__`` checks for answers that an interrupt took from the queue.
FINISH_PAUSE_SECONDS: Final = 0.2
# Added at the end of a lease: if this process was stopped, the answer may have arrived, and its
# thread needs a moment to read it.
GRACE_SECONDS: Final = 1.0
NO_THREAD: Final = (
    "No thread can be started to call Keap: nothing was sent. Raise the limit of processes or of "
    "memory, or retry later."
)


@dataclass(eq=False, slots=True)
class _Call:
    """A claim, from the queue to its result."""

    claim: Claim
    http: Call
    ends_at: float
    """When it is given up, by ``elapsed.monotonic()``."""
    select_tenant: Callable[[], None]
    """For its thread."""
    has_begun: bool = False
    is_over: bool = False
    result: Attempt | BaseException | None = None
    """``None`` if nothing was tried. After an exception the lease stays, as after a crash."""


class AttemptPool:
    """The attempts under way. Leaving the block waits for all of them, stores and reports them.

    An exception in the block (Ctrl-C, a time limit, a lost database) is raised after that, so that
    no answer is lost.

    An answer is waited for until its lease expires. The interpreter's exit does not wait for
    answers, unless they were handed over.

    :param wait_seconds: how long leaving the block waits, counted from now. After that, a thread
        stores and reports the rest, and the interpreter's exit waits for it.
    :param on_end: called once everything is stored and reported, perhaps in that thread.
    """

    def __init__(
        self,
        concurrency: int,
        *,
        wait_seconds: float = math.inf,
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        self._concurrency = concurrency
        self._on_end = on_end
        self._leave_at = elapsed.monotonic() + wait_seconds
        self._is_handed_over = False
        self._threads = 0
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._under_way: set[_Call] = set()
        self._over: SimpleQueue[_Call] = SimpleQueue()
        self._unused: list[Claim] = []
        self._unreported: list[AttemptResult] = []
        self._retry_delays = retry_pauses(self._leave_at)
        self._failures: Counter[int | None] = Counter()
        # The applications with a rejection since the last success: claims made before do not know.
        self._suspects: set[int | None] = set()
        self.is_halted = False
        """Whether a failure keeps the threads from sending anything, until ``resume()``."""

    def __len__(self) -> int:
        return len(self._under_way)

    def __enter__(self) -> Self:
        return self

    def is_failing(self, application_id: int | None) -> bool:
        """Whether an application had so many errors in a row that it must be blocked."""
        return self._failures[application_id] >= FAILURES_THAT_HALT

    def start(self, claim: Claim) -> None:
        """Let the next free thread present the refresh token.

        :raises TemporarilyUnavailable: the pool has no thread, and the process may start none.
        """
        lease = claim.lease
        call = _Call(
            claim,
            Call(until=lease.send_until),
            lease.ends_at - GRACE_SECONDS,
            tenant_selector(alias_of(claim.credential)),
        )
        self._under_way.add(call)
        self._queue.put(call)
        try:
            if self._threads < min(self._concurrency, len(self._under_way)):
                # The interpreter's exit would wait for the threads of a ThreadPoolExecutor.
                threading.Thread(target=self._work, name="infusionsoft", daemon=True).start()
                self._threads += 1
        except RuntimeError as error:
            if self._threads:
                return  # fewer than the concurrency do it, too
            self._unused += self._withdraw([call])
            raise TemporarilyUnavailable(NO_THREAD) from error

    def results(self, *, timeout_seconds: float = math.inf) -> Iterator[AttemptResult]:
        """Wait for an answer; store and report all that have arrived.

        :param timeout_seconds: how long to wait for the first one; by default, until it arrives
            or its lease expires.
        """
        with suppress(Empty):
            yield from self._record(self._next(timeout_seconds))
            while True:
                yield from self._record(self._over.get_nowait())
        self.report()

    def report(self) -> None:
        """Report the attempts whose outcome is stored."""
        report(self._unreported)  # if interrupted, twice rather than never
        self._unreported.clear()

    def release(self) -> None:
        """Release the claims that were not sent."""
        unused, self._unused = self._unused + self._withdraw(self._under_way), []
        release(unused, retry_delays=self._retry_delays)

    def resume(self) -> None:
        """Let the threads send again, once the cause of the failures is known."""
        with self._lock:
            self._failures.clear()
            self.is_halted = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        errors: list[BaseException] = [] if error is None else [error]
        is_in_thread = self._is_handed_over
        for step in (self._finish, self.report, self.release):
            if self._is_handed_over and not is_in_thread:
                break  # the thread does the rest
            while True:
                try:
                    step()
                except BaseException as failure:  # noqa: BLE001
                    errors.append(failure)
                    if step == self._finish:
                        continue  # with the next attempt
                break
        if is_in_thread or not self._is_handed_over:
            self._on_end()
        worst = max(errors, key=lambda each: not isinstance(each, Exception), default=None)
        if worst is not None and worst is not error:
            raise worst

    def _finish(self) -> None:
        """Store and report everything under way, and end the threads."""
        while self._under_way:
            if elapsed.monotonic() >= self._leave_at and self._hand_over():
                return
            # Without the queue: an interrupt may have taken a call from it and lost it.
            for call in [each for each in self._under_way if each.is_over]:
                self._record(call)
            for _ in self.results(timeout_seconds=FINISH_PAUSE_SECONDS):
                pass
        self._queue.put(None)

    def _hand_over(self) -> bool:
        """Let a thread do the rest; return False if there can be no more threads."""
        # From then on the thread alone uses what this pool has collected.
        self.report()
        self.release()
        self._leave_at, self._is_handed_over = math.inf, True
        self._retry_delays = retry_pauses()
        finish = self._finish_elsewhere
        try:
            threading.Thread(target=finish, name="infusionsoft-store", daemon=False).start()
        except RuntimeError:
            self._is_handed_over = False
        return self._is_handed_over

    def _finish_elsewhere(self) -> None:
        """Store and report the rest in a thread, with connections of its own."""
        aliases = {alias_of(call.claim.credential) for call in self._under_way}
        try:
            with self:
                pass
            for alias in aliases:
                alerts.send_pending(alias)
        except Exception:
            logger.exception("outcome_not_stored_in_thread")
        finally:
            connections.close_all()

    def _next(self, timeout_seconds: float) -> _Call:
        """Wait for a call to be over; raise ``Empty`` if none is in time."""
        ends_at = elapsed.monotonic() + timeout_seconds
        while self._under_way:
            eldest = min(self._under_way, key=attrgetter("ends_at"))
            until = min(ends_at, eldest.ends_at)
            with suppress(Empty):
                return self._over.get(timeout=max(0.0, until - elapsed.monotonic()))
            if until == ends_at:
                break
            self._give_up(eldest)
        raise Empty

    def _give_up(self, call: _Call) -> None:
        """End a call without an answer, after a time of grace. The answer may still come later."""
        if call.ends_at < call.claim.lease.ends_at:
            call.ends_at = elapsed.monotonic() + GRACE_SECONDS
            return
        # If it has not begun, too little of the lease is left: send() says so, and sends nothing.
        attempt = give_up(call.claim, call.http) if call.has_begun else send(call.claim)
        if self._end(call, attempt) and call.has_begun:
            self._threads -= 1  # its thread may never return

    def _end(self, call: _Call, result: Attempt | BaseException | None) -> bool:
        """Give a call its result; return False if it was over already."""
        with self._lock:
            if call.is_over:
                return False
            call.result, call.is_over = result, True
        if isinstance(result, Attempt):
            self._note_failure(call.claim, result.reply)
        self._over.put(call)
        return True

    def _withdraw(self, calls: Iterable[_Call]) -> list[Claim]:
        with self._lock:
            withdrawn = [call for call in calls if not call.has_begun]
            for call in withdrawn:
                call.is_over = True
        self._under_way.difference_update(withdrawn)
        return [call.claim for call in withdrawn]

    def _work(self) -> None:
        """Run the calls in the queue. Runs in a thread."""
        while (call := self._queue.get()) is not None:
            has_ended_it = self._send(call)
            if call.has_begun and not has_ended_it:
                return  # given up; another thread may have replaced this one
        self._queue.put(None)  # for the other threads

    def _send(self, call: _Call) -> bool:
        """Run one call; return False if it was withdrawn or given up meanwhile."""
        result: Attempt | BaseException | None = None
        try:
            with self._lock:
                call.has_begun = not (call.is_over or self.is_halted)
            if call.has_begun:
                result = send(call.claim, call.http)
        except BaseException as error:  # noqa: BLE001
            result = error
        has_ended_it = self._end(call, result)
        if isinstance(result, Attempt) and not has_ended_it:
            _store_late(result, call.select_tenant)
        return has_ended_it

    def _note_failure(self, claim: Claim, reply: object) -> None:
        """Count errors in a row, in the order in which they arrive."""
        if isinstance(reply, RefreshInProgress | DatabaseBusy):
            return  # Keap was not asked
        application_id = claim.credential.application_id
        is_failure = isinstance(reply, TemporarilyUnavailable)
        with self._lock:
            count = self._failures[application_id] + 1 if is_failure else 0
            self._failures[application_id] = count
            if _affects_all(reply) or self.is_failing(application_id):
                self.is_halted = True

    def _record(self, call: _Call) -> list[AttemptResult]:
        """Store the outcome of a call that is over; return it, if there is one."""
        if call not in self._under_way:
            return []  # withdrawn
        try:
            if isinstance(call.result, BaseException):
                raise call.result
            if call.result is None:
                self._unused.append(call.claim)
                return []
            credential = call.claim.credential
            if self._is_handed_over:
                _select_table(call.result, call.select_tenant)
            if credential.application_id in self._suspects:
                credential.is_suspect = True
            result = record_outcome(call.result, retry_delays=self._retry_delays)
        finally:
            self._under_way.discard(call)
        self._retry_delays = retry_pauses(self._leave_at)  # the database is available
        if result.outcome == Outcome.OK:
            self._suspects.discard(credential.application_id)
        elif isinstance(result.error, ReauthorizationRequired | RejectionDoubted):
            self._suspects.add(credential.application_id)
        self._unreported.append(result)
        return [result]


def _store_late(attempt: Attempt, select_tenant: Callable[[], None]) -> None:
    """Store a pair that came after its call was given up. Runs in the call's thread."""
    if not isinstance(attempt.reply, spool.SpooledPair):
        return
    try:
        _select_table(attempt, select_tenant)
        report([record_outcome(attempt)])
    except Exception:
        logger.exception("late_reply_not_stored credential=%s", attempt.credential.pk)
    finally:
        connections.close_all()


def _select_table(attempt: Attempt, select_tenant: Callable[[], None]) -> None:
    """Make sure that this thread's connection finds the same table as the caller's.

    It may have had another search path.
    """
    credential, reply = attempt.credential, attempt.reply
    select_tenant()
    check = partial(require_same_table, credential)
    if isinstance(reply, spool.SpooledPair):
        who = f"credential={credential.pk} account={credential.account}"
        persist(alias_of(credential), check, what=who, fsync=reply.fsync)
    else:
        persist_or_keep(spooled_error(attempt, reply), credential, check, None)


def _affects_all(reply: object) -> bool:
    """Whether the cause of one attempt's failure may make the next one fail as well."""
    if isinstance(reply, DecryptionError | SpoolError):
        return False
    return isinstance(reply, ConfigurationError | OutcomeUnknown | RefreshesLimited)
