"""Signals that ask a run to end are deferred until it has ended.

A run that is killed leaves leases, and perhaps answers that nothing has read. A run that is asked
to stop waits for its answers and stores them first.
"""

import signal
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def existing(*names: str) -> list[signal.Signals]:
    """Return the signals with these names that this system has: Windows lacks some."""
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


class Stop:
    """Whether a signal has asked for the end: call it."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        """The signals received so far, in order, each once."""

    def __call__(self) -> bool:
        return bool(self.signals)


@contextmanager
def deferred_signals(*signals: int, discarded: Collection[int] = ()) -> Iterator[Stop]:
    """Record the signals received in the block, and raise them again after it.

    They then act on the handlers from before the block: they end the process, raise an exception
    or call a function. A second SIGINT acts at once, for a user who does not want to wait.
    Ignored signals stay ignored. Only the main thread receives signals: in another thread this
    does nothing.

    :param signals: such as ``signal.SIGTERM``.
    :param discarded: those that only ask the block to end, and are not raised again.
    """
    stop = Stop()
    handlers: dict[int, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        if signum not in stop.signals:
            stop.signals.append(signum)
        elif signum == signal.SIGINT:
            signal.signal(signum, handlers[signum])
            del handlers[signum]
            signal.raise_signal(signum)

    try:
        for signum in signals if threading.current_thread() is threading.main_thread() else ():
            # None: a handler that was not set by Python, which could not restore it.
            if (handler := signal.getsignal(signum)) not in (signal.SIG_IGN, None):
                handlers[signum] = handler
                signal.signal(signum, note)
        yield stop
    finally:
        for signum in list(handlers):
            signal.signal(signum, handlers[signum])
        _raise(signum for signum in stop.signals if signum in handlers.keys() - discarded)


def _raise(signals: Iterable[int]) -> None:
    # SIGINT last: its exception would keep the others from being raised.
    for signum in sorted(signals, key=lambda each: each == signal.SIGINT):
        signal.raise_signal(signum)
