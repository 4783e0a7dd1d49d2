"""Signals that ask a run to end are noted while it goes on, and passed on when it has ended.

A run that is killed leaves leases, and perhaps answers that nobody has read. One that is told to
stop awaits and stores them first.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stop:
    """Whether somebody has asked for an end: call it."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        """Which signals have come so far, in order, each once."""

    def __call__(self) -> bool:
        return bool(self.signals)


@contextmanager
def noted(*signals: int, swallowed: Collection[int] = ()) -> Iterator[Stop]:
    """Note the signals that come in the block instead of letting them act.

    After the block everything is as it was, and each signal that came acts as it would have
    without us: it ends the process, raises, or calls whoever handles it. So does a second SIGINT
    in the block, at once, of a person who does not want to wait. What was ignored stays so.

    In another thread than the main one, which alone gets signals, this does nothing.

    :param signals: such as ``signal.SIGTERM``.
    :param swallowed: those among them that ask for the end of the block and of nothing else.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers = _Handlers(stop)
    try:
        handlers.replace(signals)
        yield stop
    finally:
        handlers.restore()
        handlers.pass_on(but=swallowed)


class _Handlers:
    """What handled the signals before us, and what it has yet to be told."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._before: dict[int, Any] = {}
        self._left: list[int] = []

    def replace(self, signals: Collection[int]) -> None:
        for signum in signals:
            handler = signal.getsignal(signum)
            # None: not set by Python, which could not set it back.
            if handler not in (signal.SIG_IGN, None):
                self._before[signum] = handler
                signal.signal(signum, self._note)

    def restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def pass_on(self, *, but: Collection[int]) -> None:
        # SIGINT last: what it raises would keep the others from being passed on.
        for signum in sorted(self._left, key=lambda each: each == signal.SIGINT):
            if signum not in but:
                signal.raise_signal(signum)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum not in self._stop.signals:
            self._stop.signals.append(signum)
            self._left.append(signum)
        elif signum == signal.SIGINT:
            self._left.remove(signum)
            signal.signal(signum, self._before[signum])
            signal.raise_signal(signum)
