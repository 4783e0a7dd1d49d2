"""The progress display of a run."""

from contextlib import closing
from io import StringIO

import pytest
from django.core.management.base import OutputWrapper

from django_infusionsoft.management.progress import Bar, Lines
from django_infusionsoft.refresh.run_result import Run


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """The output of a terminal of 60 columns."""
    monkeypatch.setenv("COLUMNS", "60")
    return StringIO()


def states_of(written: StringIO) -> list[str]:
    """Return the successive contents of the line."""
    return written.getvalue().split("\r")[1:]


def test_bar_begins_empty_and_ends_full(written: StringIO) -> None:
    bar = Bar(OutputWrapper(written), 4)
    bar.finish(Run(refreshed=3, rejected=1, stopped=1))
    first, last = states_of(written)
    assert first.startswith("[-----")
    assert " 0/4" in first
    assert "#]" in last
    assert " 4/4 " in last
    assert last.endswith(" failed=1")


def test_bar_ends_its_line_when_the_run_raises(written: StringIO) -> None:
    with pytest.raises(LookupError), closing(Bar(OutputWrapper(written), 4)):
        raise LookupError
    assert written.getvalue().endswith("0/4\n")


def test_bar_fills_the_line_except_one_column(written: StringIO) -> None:
    bar = Bar(OutputWrapper(written), 100_000)
    bar.finish(Run(refreshed=77))
    first, last = states_of(written)
    assert len(first) == len(last) == 59


def test_text_is_truncated_when_there_is_no_room_for_the_bar(
    written: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    Bar(OutputWrapper(written), 100_000).finish(Run(refreshed=77))
    assert [len(line) for line in states_of(written)] == [11, 11]


def test_bar_is_redrawn_only_after_a_pause(written: StringIO) -> None:
    bar = Bar(OutputWrapper(written), 4)
    bar.pause_seconds = 3600
    for _ in range(100):
        bar(Run(refreshed=1))
    assert len(states_of(written)) == 1


def test_total_grows_when_more_accounts_become_due_meanwhile(written: StringIO) -> None:
    Bar(OutputWrapper(written), 1).finish(Run(refreshed=3))
    assert " 3/3 " in states_of(written)[-1]


def test_bar_is_full_when_nothing_was_due(written: StringIO) -> None:
    Bar(OutputWrapper(written), 0).finish(Run())
    assert "-" not in states_of(written)[-1]


def test_lines_are_plain_text(written: StringIO) -> None:
    lines = Lines(OutputWrapper(written))
    lines.pause_seconds = 0
    lines(Run(refreshed=2, unavailable=1))
    lines.finish(Run())
    assert written.getvalue().startswith("3 ")
    assert written.getvalue().endswith("/s failed=1\n")


def test_short_run_has_no_lines(written: StringIO) -> None:
    lines = Lines(OutputWrapper(written))
    lines(Run(refreshed=2))
    lines.finish(Run(refreshed=2))
    assert written.getvalue() == ""


def test_run_continues_when_the_terminal_is_gone() -> None:
    class Gone(StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with closing(Bar(OutputWrapper(Gone()), 4)) as bar:
        bar.finish(Run())
