"""What is shown of a run while it goes on."""

from contextlib import closing
from io import StringIO

import pytest
from django.core.management.base import OutputWrapper

from django_infusionsoft.management.progress import Bar, Lines
from django_infusionsoft.runs import Run


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """What a terminal of 60 columns gets."""
    monkeypatch.setenv("COLUMNS", "60")
    return StringIO()


def drawn(written: StringIO) -> list[str]:
    """Return what was on the line, one after the other."""
    return written.getvalue().split("\r")[1:]


def test_bar_begins_empty_and_ends_full(written: StringIO) -> None:
    bar = Bar(OutputWrapper(written), 4)
    bar.finish(Run(refreshed=3, rejected=1, stopped=1))
    first, last = drawn(written)
    assert first.startswith("[-----")
    assert " 0/4" in first
    assert "#]" in last
    assert " 4/4 " in last
    assert last.endswith(" failed=1")


def test_bar_ends_its_line_when_the_run_breaks_down(written: StringIO) -> None:
    with pytest.raises(LookupError), closing(Bar(OutputWrapper(written), 4)):
        raise LookupError
    assert written.getvalue().endswith("0/4\n")


def test_bar_fills_the_line_but_one_column(written: StringIO) -> None:
    bar = Bar(OutputWrapper(written), 100_000)
    bar.finish(Run(refreshed=77))
    first, last = drawn(written)
    assert len(first) == len(last) == 59


def test_facts_are_cut_where_there_is_no_room_for_a_bar(
    written: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    Bar(OutputWrapper(written), 100_000).finish(Run(refreshed=77))
    assert [len(line) for line in drawn(written)] == [11, 11]


def test_bar_is_not_drawn_more_often_than_it_can_be_seen(written: StringIO) -> None:
    bar = Bar(OutputWrapper(written), 4)
    bar.pause_seconds = 3600
    for _ in range(100):
        bar(Run(refreshed=1))
    assert len(drawn(written)) == 1


def test_bar_grows_when_more_become_due_meanwhile(written: StringIO) -> None:
    Bar(OutputWrapper(written), 1).finish(Run(refreshed=3))
    assert " 3/3 " in drawn(written)[-1]


def test_bar_is_full_when_nothing_was_due(written: StringIO) -> None:
    Bar(OutputWrapper(written), 0).finish(Run())
    assert "-" not in drawn(written)[-1]


def test_lines_are_plain(written: StringIO) -> None:
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


def test_run_goes_on_when_the_terminal_is_gone() -> None:
    class Gone(StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with closing(Bar(OutputWrapper(Gone()), 4)) as bar:
        bar.finish(Run())
