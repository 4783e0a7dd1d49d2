"""Attempts side by side: threads ask Keap, and this one settles and tells what came of it.

Threads do nothing but talk to Keap; every database access is the calling thread's.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Final, Self

from django_infusionsoft.attempts import Attempt, Settled, send, settle, tell
from django_infusionsoft.database import retry_pauses
from django_infusionsoft.exceptions import (
    ConfigurationError,
    DecryptionError,
    OutcomeUnknown,
    RateLimited,
    SpoolError,
    TemporarilyUnavailable,
)
from django_infusionsoft.leases import Claim, release

# Told together, where there is no pause in between.
MOST_UNTOLD: Final = 50
# After so many errors of Keap's in a row nothing is sent before it is clear what they mean.
FAILURES_THAT_HALT: Final = 5
# How soon the end looks again at what is under way.
FINISH_PAUSE_SECONDS: Final = 0.2


@dataclass(eq=False, slots=True)
class _Call:
    """A claim on its way through a thread."""

    claim: Claim
    has_begun: bool = False
    is_withdrawn: bool = False
    is_over: bool = False
    attempt: Attempt | None = None
    """What came of it; ``None`` where nothing was tried."""
    error: BaseException | None = None
    """What broke while it was tried. Its lease tells the others of it."""


class Calls:
    """The attempts under way. Leaving the block awaits, settles and tells all of them.

    So nothing that interrupts the block (Ctrl-C, a time limit, a database that is gone) loses an
    answer; it is raised in the end.
    """

    def __init__(self, concurrency: int) -> None:
        self._pool = ThreadPoolExecutor(concurrency)
        self._lock = threading.Lock()
        self._under_way: set[_Call] = set()
        self._over: SimpleQueue[_Call] = SimpleQueue()
        self._unused: list[Claim] = []
        self._untold: list[Settled] = []
        self._patience = retry_pauses()
        # By application, in a row.
        self._failures: Counter[int | None] = Counter()
        self.is_halted = False
        """Whether an answer keeps the threads from sending anything, until ``withdraw()``."""

    def __len__(self) -> int:
        return len(self._under_way)

    def __enter__(self) -> Self:
        return self

    def start(self, claim: Claim) -> None:
        """Let a thread present what is claimed, as soon as one is free."""
        call = _Call(claim)
        self._under_way.add(call)
        try:
            self._pool.submit(self._send, call)
        except RuntimeError:  # no more threads; one that lives may have begun with it all the same
            self._unused += self._withdraw([call])
            raise

    def settle(self, *, timeout_seconds: float | None = None) -> Iterator[Settled]:
        """Wait for answers, and settle them as they have arrived.

        :param timeout_seconds: how long to wait for the first one; ``None``: until it is there.
        """
        with suppress(Empty):
            yield from self._settle(self._over.get(timeout=timeout_seconds))
            while len(self._untold) < MOST_UNTOLD:
                yield from self._settle(self._over.get_nowait())
        # Not before those that have arrived meanwhile.
        if self._over.empty() or len(self._untold) >= MOST_UNTOLD:
            self.tell()

    def tell(self) -> None:
        """Tell what has been settled."""
        untold, self._untold = self._untold, []
        try:
            tell(untold)
        except BaseException:
            self._untold = untold + self._untold  # rather twice than not at all
            raise

    def unused(self) -> list[Claim]:
        """Take back what a thread has not sent, and nobody has taken back yet."""
        unused, self._unused = self._unused, []
        return unused

    def withdraw(self) -> list[Claim]:
        """Take back what has not been sent, and let threads send again what is started then."""
        unused = self.unused() + self._withdraw(self._under_way)
        self._failures.clear()
        self.is_halted = False
        return unused

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        troubles: list[BaseException] = [] if error is None else [error]
        steps = (self._finish, self.tell, self._pool.shutdown, lambda: release(self.unused()))
        for step in steps:
            while True:
                try:
                    step()
                except BaseException as trouble:  # noqa: BLE001
                    troubles.append(trouble)
                    if step == self._finish:
                        continue  # with the next one
                break
        worst = max(troubles, key=lambda each: not isinstance(each, Exception), default=None)
        if worst is not None and worst is not error:
            raise worst

    def _finish(self) -> None:
        """Settle all that is under way."""
        while self._under_way:
            # Past the queue, from which an interrupt may have taken one and left it.
            for call in [each for each in self._under_way if each.is_over]:
                for _ in self._settle(call):
                    pass
            for _ in self.settle(timeout_seconds=FINISH_PAUSE_SECONDS):
                pass

    def _withdraw(self, calls: Iterable[_Call]) -> list[Claim]:
        with self._lock:
            withdrawn = [call for call in calls if not call.has_begun]
            for call in withdrawn:
                call.is_withdrawn = True
        self._under_way.difference_update(withdrawn)
        return [call.claim for call in withdrawn]

    def _send(self, call: _Call) -> None:
        """Send, in a thread, and be the first to see what is to keep the others from it."""
        try:
            with self._lock:
                call.has_begun = not (call.is_withdrawn or self.is_halted)
            if call.has_begun:
                call.attempt = send(call.claim)
                self._look(call.claim, call.attempt.result)
        except BaseException as error:  # noqa: BLE001
            call.error = error
        finally:
            call.is_over = True
            self._over.put(call)

    def _look(self, claim: Claim, result: object) -> None:
        application_id = claim.credential.application_id
        is_failing = isinstance(result, TemporarilyUnavailable)
        failures = self._failures[application_id] + 1 if is_failing else 0
        self._failures[application_id] = failures
        if _concerns_all(result) or failures >= FAILURES_THAT_HALT:
            self.is_halted = True

    def _settle(self, call: _Call) -> Iterator[Settled]:
        if call not in self._under_way:
            return  # withdrawn
        if call.error is not None:
            self._under_way.discard(call)
            raise call.error
        if call.attempt is None:
            self._under_way.discard(call)
            self._unused.append(call.claim)
            return
        try:
            settled = settle(call.attempt, patience=self._patience)
        finally:
            self._under_way.discard(call)
        self._patience = retry_pauses()  # the database is there
        self._untold.append(settled)
        yield settled


def _concerns_all(result: object) -> bool:
    """Whether what came of one attempt may be in the way of the next one as well."""
    if isinstance(result, DecryptionError | SpoolError):
        return False
    return isinstance(result, ConfigurationError | OutcomeUnknown | RateLimited)
