"""A short soak, and what a long one is judged by."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evidence import KEPT, PRESENTS, READ, Evidence, Line
from benchmarks.people import Loss
from benchmarks.verdict import Case, Event, judge
from django_infusionsoft.sandbox import TokenRequest
from django_infusionsoft.sandbox.journal import fingerprint
from tests.processes import ROOT

WORKER = 4242
SPENT = fingerprint("spent")


def test_no_grant_is_lost_through_our_fault_in_a_short_soak(
    database_url: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    arguments = {
        "--seconds": 5,
        "--accounts": 16,
        "--workers": 2,
        "--readers": 1,
        "--kills-per-minute": 40,
        "--stops-per-minute": 12,
        "--seed": 1,
        "--database": database_url,
        "--json": report,
    }
    command = [str(word) for pair in arguments.items() for word in pair]
    soak = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert soak.returncode == 0, soak.stdout + soak.stderr
    count = json.loads(report.read_text())
    assert count["rotated"] > 0
    assert (count["unexplained"], count["violations"]) == ([], [])


# The judgement


def lost(*lines: str, killed: bool = False, **request: Any) -> Case:
    """A grant whose refresh token was presented once, and is of no use any more."""
    facts = {"outcome": "rotated", "is_delivered": True, "status": 200, **request}
    asked = TokenRequest(1, 0.0, account="ab123", refresh_token="spent", **facts)
    return Case(
        requests=[asked],
        evidence=Evidence(
            [Line(WORKER, at, what, SPENT) for at, what in enumerate((PRESENTS, *lines))]
        ),
        events=[Event("refresh_failed", "unknown", SPENT, f"web-1:{WORKER}")],
        losses=[Loss("ab123", 1, SPENT, "reauthorization_required", "rotation_lost", False)],
        killed={WORKER} if killed else set(),
        asked_for=Counter(),
        stored=0,
    )


def test_loss_is_explained_when_the_reply_was_dropped() -> None:
    case = lost(fault="reply dropped", is_delivered=False, status=0)
    verdict = judge(case)
    assert verdict.explained == {"planned: reply dropped": 1}
    assert (verdict.unexplained, verdict.violations) == ([], [])


def test_loss_is_explained_when_the_process_was_killed_before_it_read_the_reply() -> None:
    verdict = judge(lost(killed=True))
    assert verdict.explained == {"killed before the reply was read": 1}


@pytest.mark.parametrize("killed", [True, False])
def test_loss_is_a_defect_when_the_reply_was_in_the_spool(killed: bool) -> None:
    verdict = judge(lost(READ, KEPT, killed=killed))
    assert [each.how for each in verdict.unexplained] == ["a process had the reply in the spool"]


def test_loss_is_a_defect_when_a_process_that_lives_was_given_the_reply() -> None:
    verdict = judge(lost())
    assert len(verdict.unexplained) == 1


def test_loss_is_a_defect_when_who_was_killed_had_given_up_before() -> None:
    verdict = judge(lost("OutcomeUnknown", killed=True))
    assert len(verdict.unexplained) == 1


def test_loss_is_a_defect_when_keap_has_rotated_nothing() -> None:
    verdict = judge(lost(outcome="not_processed", fault="503", status=503))
    assert [each.how for each in verdict.unexplained] == ["Keap has not rotated it"]


def test_third_presentation_is_a_violation_unless_a_person_wanted_it() -> None:
    case = lost(PRESENTS, PRESENTS, fault="reply dropped", is_delivered=False, status=0)
    case.requests.extend(case.requests * 2)
    case.events.extend(case.events * 2)
    assert judge(case).violations == [f"Refresh token {SPENT} was presented 3 times."]
    case.asked_for[SPENT] = 1
    assert judge(case).violations == []


def test_presentation_that_the_history_does_not_tell_is_a_violation() -> None:
    case = lost(fault="reply dropped", is_delivered=False, status=0)
    case.events.clear()
    assert "does not tell" in judge(case).violations[0]
