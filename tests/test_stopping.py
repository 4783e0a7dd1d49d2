"""Signals that come during a run, in this very process."""

import signal
from collections.abc import Iterator
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1, raise_signal
from types import FrameType

import pytest

from django_infusionsoft import stopping
from tests.support import threads

SIGNALS = (SIGTERM, SIGINT, SIGHUP, SIGUSR1)


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Which signals the handlers before us have been given."""
    came: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        came.append(signum)

    before = {signum: signal.signal(signum, handle) for signum in SIGNALS}
    yield came
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", SIGNALS)
def test_signal_is_noted_in_the_block_and_passed_on_after_it(
    signum: int, handled: list[int]
) -> None:
    with stopping.noted(*SIGNALS) as stop:
        assert not stop()
        raise_signal(signum)
        assert stop()
        assert (stop.signals, handled) == ([signum], [])
    assert handled == [signum]


def test_handlers_are_those_of_before_after_the_block(handled: list[int]) -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with pytest.raises(LookupError), stopping.noted(*SIGNALS):
        raise LookupError
    assert [signal.getsignal(signum) for signum in SIGNALS] == before
    assert handled == []


def test_swallowed_signal_is_noted_and_not_passed_on(handled: list[int]) -> None:
    with stopping.noted(*SIGNALS, swallowed=[SIGUSR1]) as stop:
        raise_signal(SIGUSR1)
        raise_signal(SIGTERM)
    assert stop.signals == [SIGUSR1, SIGTERM]
    assert handled == [SIGTERM]


def test_signal_is_passed_on_when_the_block_fails(handled: list[int]) -> None:
    with pytest.raises(LookupError), stopping.noted(*SIGNALS):
        raise_signal(SIGTERM)
        raise LookupError
    assert handled == [SIGTERM]


def test_second_sigint_acts_at_once_and_none_afterwards(handled: list[int]) -> None:
    with stopping.noted(*SIGNALS):
        raise_signal(SIGINT)
        raise_signal(SIGINT)
        assert handled == [SIGINT]
    assert handled == [SIGINT]


def test_second_sigterm_is_as_patient_as_the_first(handled: list[int]) -> None:
    with stopping.noted(*SIGNALS):
        raise_signal(SIGTERM)
        raise_signal(SIGTERM)
        assert handled == []
    assert handled == [SIGTERM]


def test_ctrl_c_raises_when_the_block_has_ended_after_all_else(handled: list[int]) -> None:
    signal.signal(SIGINT, signal.default_int_handler)
    ended = False
    with pytest.raises(KeyboardInterrupt), stopping.noted(*SIGNALS):
        raise_signal(SIGINT)
        raise_signal(SIGHUP)
        ended = True
    assert ended
    assert handled == [SIGHUP]


def test_signal_that_was_ignored_stays_so(handled: list[int]) -> None:
    signal.signal(SIGHUP, signal.SIG_IGN)
    with stopping.noted(*SIGNALS) as stop:
        raise_signal(SIGHUP)
    assert not stop()


def test_nothing_is_done_in_another_thread(handled: list[int]) -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]

    def block() -> bool:
        with stopping.noted(*SIGNALS) as stop:
            return stop() or [signal.getsignal(signum) for signum in SIGNALS] != before

    with threads(1) as start:
        assert not start(block).result(timeout=10)
