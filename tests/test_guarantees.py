"""The page of guarantees names the tests of each statement, and these exist."""

import re

from tests.processes import ROOT

PAGE = (ROOT / "docs" / "guarantees.rst").read_text(encoding="utf-8")
NAME = r"``(test_\w+)``"
# A row of the table: its first and its third cell.
ROW = r"^   \* - (.*?)\n     - .*?\n     - (.*?)(?=\n   \* - |\n\n)"


def test_each_situation_names_its_tests() -> None:
    head, *rows = re.findall(ROW, PAGE, re.MULTILINE | re.DOTALL)
    assert head == ("situation", "test")
    assert len(rows) == PAGE.count("\n   * - ") - 1
    assert [name for name, tests in rows if not re.search(NAME, tests)] == []


def test_named_tests_exist() -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert set(re.findall(NAME, PAGE)) - set(re.findall(r"def (test_\w+)", code)) == set()
