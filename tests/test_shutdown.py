"""Signals that arrive during a run, in this process."""

import signal
from collections.abc import Iterator
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1, raise_signal
from types import FrameType

import pytest

from django_infusionsoft import shutdown
from tests.support import threads

SIGNALS = (SIGTERM, SIGINT, SIGHUP, SIGUSR1)


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """The signals that the original handlers have received."""
    received: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)

    before = {signum: signal.signal(signum, handle) for signum in SIGNALS}
    yield received
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", SIGNALS)
def test_signal_is_recorded_in_the_block_and_handled_after_it(
    signum: int, handled: list[int]
) -> None:
    with shutdown.deferred_signals(*SIGNALS) as stop:
        assert not stop()
        raise_signal(signum)
        assert stop()
        assert (stop.signals, handled) == ([signum], [])
    assert handled == [signum]


def test_handlers_are_restored_after_the_block(handled: list[int]) -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with pytest.raises(LookupError), shutdown.deferred_signals(*SIGNALS):
        raise LookupError
    assert [signal.getsignal(signum) for signum in SIGNALS] == before
    assert handled == []


def test_discarded_signal_is_recorded_and_not_handled(handled: list[int]) -> None:
    with shutdown.deferred_signals(*SIGNALS, discarded=[SIGUSR1]) as stop:
        raise_signal(SIGUSR1)
        raise_signal(SIGTERM)
    assert stop.signals == [SIGUSR1, SIGTERM]
    assert handled == [SIGTERM]


def test_signal_is_handled_when_the_block_raises(handled: list[int]) -> None:
    with pytest.raises(LookupError), shutdown.deferred_signals(*SIGNALS):
        raise_signal(SIGTERM)
        raise LookupError
    assert handled == [SIGTERM]


def test_second_sigint_is_handled_at_once_and_not_again_afterwards(handled: list[int]) -> None:
    with shutdown.deferred_signals(*SIGNALS):
        raise_signal(SIGINT)
        raise_signal(SIGINT)
        assert handled == [SIGINT]
    assert handled == [SIGINT]


def test_second_sigterm_is_handled_after_the_block(handled: list[int]) -> None:
    with shutdown.deferred_signals(*SIGNALS):
        raise_signal(SIGTERM)
        raise_signal(SIGTERM)
        assert handled == []
    assert handled == [SIGTERM]


def test_keyboard_interrupt_is_raised_last_after_the_block(handled: list[int]) -> None:
    signal.signal(SIGINT, signal.default_int_handler)
    ended = False
    with pytest.raises(KeyboardInterrupt), shutdown.deferred_signals(*SIGNALS):
        raise_signal(SIGINT)
        raise_signal(SIGHUP)
        ended = True
    assert ended
    assert handled == [SIGHUP]


def test_ignored_signal_stays_ignored(handled: list[int]) -> None:
    signal.signal(SIGHUP, signal.SIG_IGN)
    with shutdown.deferred_signals(*SIGNALS) as stop:
        raise_signal(SIGHUP)
    assert not stop()


def test_signals_are_not_deferred_in_another_thread(handled: list[int]) -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]

    def block() -> bool:
        with shutdown.deferred_signals(*SIGNALS) as stop:
            return stop() or [signal.getsignal(signum) for signum in SIGNALS] != before

    with threads(1) as start:
        assert not start(block).result(timeout=10)
