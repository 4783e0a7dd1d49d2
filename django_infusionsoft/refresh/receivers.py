"""Sends the signals once no lease is held and no reply waits to be stored.

A site's receiver may call a web service or wait for a lock. Meanwhile leases would expire.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.dispatch import Signal

from django_infusionsoft import elapsed


class _Waiting(threading.local):
    """A thread's signals that wait; ``None`` outside ``deferred()``."""

    signals: deque[tuple[float, Callable[[], object]]] | None = None


_waiting = _Waiting()


def send(signal: Signal, *, sender: type, **arguments: Any) -> None:
    """Send a signal, or let it wait for the end of the block."""
    if not signal.has_listeners(sender):
        return
    call = partial(signal.send_robust, sender=sender, **arguments)
    if _waiting.signals is None:
        call()
    else:
        _waiting.signals.append((elapsed.monotonic(), call))


@contextmanager
def deferred() -> Iterator[None]:
    """Let the signals that this thread sends in the block wait for its end."""
    if _waiting.signals is not None:  # for the end of the outer block
        yield
        return
    _waiting.signals = deque()
    try:
        yield
    finally:
        try:
            send_waiting()
        finally:  # after an interrupt
            send_waiting()
            _waiting.signals = None


def seconds_waiting() -> float:
    """Return how long the first signal has been waiting; 0 if none is."""
    waiting = _waiting.signals
    return elapsed.monotonic() - waiting[0][0] if waiting else 0.0


def send_waiting() -> None:
    """Send the signals that wait. Those that the receivers cause are sent at once."""
    waiting, _waiting.signals = _waiting.signals, None
    try:
        while waiting:
            waiting[0][1]()
            waiting.popleft()  # if interrupted, twice rather than never
    finally:
        _waiting.signals = waiting
