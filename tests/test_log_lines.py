"""The table of log messages in the docs lists every message with its level."""

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import django_infusionsoft
from django_infusionsoft.choices import EventKind, Outcome
from django_infusionsoft.monitoring.history import LEVELS
from django_infusionsoft.text import one_line, quoted
from tests.processes import ROOT

SOURCE = Path(django_infusionsoft.__file__).parent
DOCUMENT = ROOT / "docs" / "monitoring.rst"
# Messages whose name and level are not in the call: events, and attempts that were not made.
KINDS = {kind.value: logging.getLevelName(LEVELS.get(kind, logging.INFO)) for kind in EventKind}
UNTRIED = {Outcome.MISCONFIGURED.value: "ERROR", Outcome.UNAVAILABLE.value: "WARNING"}


def calls() -> Iterator[tuple[str, str]]:
    """Yield the logger's method and the format of every call."""
    for path in set(SOURCE.rglob("*.py")) - set((SOURCE / "sandbox").rglob("*.py")):
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
    """Return the level of each message in the code."""
    levels = {**KINDS, **UNTRIED}
    for method, text in calls():
        if method != "log":
            levels[text.split()[0]] = "ERROR" if method == "exception" else method.upper()
    return levels


def documented() -> dict[str, str]:
    """Return the level of each message in the docs."""
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text[text.index("Log messages\n") :]
    return dict(re.findall(r"^   \* - ``(\w+)``\n     - ([A-Z]+)$", table, re.MULTILINE))


def test_docs_list_every_message_and_its_level() -> None:
    assert documented() == logged()


def test_every_message_has_one_level() -> None:
    found = [
        (text.split()[0], "error" if method == "exception" else method)
        for method, text in calls()
        if method != "log"
    ]
    assert len(dict(found)) == len(set(found))


def test_names_are_single_words_and_never_formatted() -> None:
    assert [text for method, text in calls() if method != "log" and "%" in text.split()[0]] == []
    assert {text for method, text in calls() if method == "log"} == {
        "%s credential=%s error=%s",
        "%s %s",
    }


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
def test_quoted_value_is_one_field_on_one_line(text: object, shown: str) -> None:
    assert quoted(text) == shown


def test_one_line_keeps_non_ascii_text() -> None:
    assert one_line(" Žižek \u2028 株式会社 ") == "Žižek 株式会社"
