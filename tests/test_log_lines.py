"""The table of log lines in the documents tells all that is logged, at its level."""

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import django_infusionsoft
from django_infusionsoft.choices import EventKind, Outcome
from django_infusionsoft.history import LEVELS
from django_infusionsoft.plain import one_line, quoted

SOURCE = Path(django_infusionsoft.__file__).parent
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "monitoring.rst"
# Whose names and levels are not in the call: the history's, and what was not even tried.
KINDS = {kind.value: logging.getLevelName(LEVELS.get(kind, logging.INFO)) for kind in EventKind}
UNTRIED = {Outcome.MISCONFIGURED.value: "ERROR", Outcome.UNAVAILABLE.value: "WARNING"}


def calls() -> Iterator[tuple[str, str]]:
    """Yield how the logger is called, and the line's format."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "logger":
                text = next(
                    each.value
                    for each in node.args
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                )
                yield node.func.attr, text


def logged() -> dict[str, str]:
    """Return the level of each name."""
    levels = {**KINDS, **UNTRIED}
    for method, text in calls():
        if method != "log":
            levels[text.split()[0]] = "ERROR" if method == "exception" else method.upper()
    return levels


def told() -> dict[str, str]:
    """Return the level of each name in the table."""
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text[text.index("Lines in the log\n") :]
    return dict(re.findall(r"^   \* - ``(\w+)``\n     - ([A-Z]+)$", table, re.MULTILINE))


def test_table_tells_every_line_and_its_level() -> None:
    assert told() == logged()


def test_name_has_one_level() -> None:
    found = [
        (text.split()[0], "error" if method == "exception" else method)
        for method, text in calls()
        if method != "log"
    ]
    assert len(dict(found)) == len(set(found))


def test_names_are_single_words_and_never_put_together() -> None:
    assert [text for method, text in calls() if method != "log" and "%" in text.split()[0]] == []
    assert [text for method, text in calls() if method == "log"] == [
        "%s credential=%s error=%s",
        "%s %s",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ('he said "no"', "\"he said 'no'\""),
        ("a\nERROR forged line=1", '"a ERROR forged line=1"'),
        ("\x1b[31m", "[31m"),
        (7, "7"),
    ],
)
def test_value_stays_one_field_of_one_line(text: object, shown: str) -> None:
    assert quoted(text) == shown


def test_line_keeps_every_language() -> None:
    assert one_line(" Žižek \u2028 株式会社 ") == "Žižek 株式会社"
