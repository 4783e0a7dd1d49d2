"""A short run of the benchmarks, and the limits in their table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from django.db import connection

from benchmarks.measures import MEASURES, Bar, Row
from benchmarks.sweep import NAMES
from tests.processes import ROOT

SHORT_MEASURES = (
    "sandbox",
    "sweep",
    "claim",
    "connections",
    "session",
    "threads",
    "tasks",
    "items",
    "growth",
    "history",
)


@pytest.mark.every_database
def test_measures_have_results_in_a_short_run(database_url: str, tmp_path: Path) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("the benchmarks read PostgreSQL's own views")
    file = tmp_path / "report.json"
    options = [word for name in SHORT_MEASURES for word in ("--only", name)]
    options += ["--database", database_url, "--json", str(file)]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.sweep", "--scale", "small", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert file.exists(), run.stdout + run.stderr
    report = json.loads(file.read_text())
    rows = {row["measure"]: row for row in report["rows"]}
    assert all(row["ours"] > 0 for name, row in rows.items() if "queries" not in name)
    assert rows["  its queries"]["ours"] == 0
    assert rows["database connections of a run"]["ours"] == 1
    assert all(name in run.stdout for name in rows)
    assert (run.returncode == 1) == any(row["met"] is False for row in rows.values())
    assert report["machine"]["cores"] >= 1


def test_every_measure_can_be_selected() -> None:
    assert tuple(MEASURES) == NAMES


@pytest.mark.parametrize(
    ("bar", "ratio", "is_met"),
    [
        (Bar(0.8, at_least=True), 0.8, True),
        (Bar(0.8, at_least=True), 0.79, False),
        (Bar(1.1), 1.1, True),
        (Bar(1.1), 1.11, False),
        (None, 7.0, None),
    ],
)
def test_ratio_is_compared_with_its_limit(
    bar: Bar | None, ratio: float, is_met: bool | None
) -> None:
    row = Row("sweep", "per second", 70.0, 10.0, ratio, bar)
    assert row.is_met is is_met
    assert row.as_dict()["met"] is is_met


def test_result_is_compared_with_its_limit_when_there_is_no_ratio() -> None:
    assert Row("memory", "MB", 140.0, bar=Bar(150.0)).is_met
    assert not Row("memory", "MB", 160.0, bar=Bar(150.0)).is_met


def test_chart_is_the_same_file_when_the_results_are_the_same(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plot import draw

    rows = [
        Row("", "seconds", seconds, facts=facts).as_dict()
        for seconds, facts in [
            (1.0, {"stored": 100, "due": 50}),
            (1.1, {"stored": 1000, "due": 50}),
            (1.0, {"due": 50}),
            (2.0, {"due": 100}),
        ]
    ]
    first, second = draw(rows, tmp_path / "a"), draw(rows, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert b"<svg" in first.read_bytes()
