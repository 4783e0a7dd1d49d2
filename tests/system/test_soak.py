"""A short soak, and the analysis of a long one."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from django_infusionsoft.sandbox import TokenRequest
from django_infusionsoft.sandbox.journal import fingerprint
from tests.processes import ROOT
from tests.system.soak.accounts import Grant
from tests.system.soak.analysis import Event, Observations, analyze
from tests.system.soak.process_log import PRESENTING, REPLY_READ, SPOOLED, Entry, ProcessLogs

pytestmark = pytest.mark.every_database

WORKER = 4242
SPENT = fingerprint("spent")


def test_app_loses_no_grant_in_a_short_soak(database_url: str, tmp_path: Path) -> None:
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
        [sys.executable, "-m", "tests.system.soak", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert soak.returncode == 0, soak.stdout + soak.stderr
    counts = json.loads(report.read_text())
    assert counts["rotated"] > 0
    assert (counts["unexplained"], counts["violations"]) == ([], [])


# The analysis


def lost(*actions: str, killed: bool = False, **overrides: Any) -> Observations:
    """A lost grant whose refresh token was presented once."""
    facts = {"outcome": "rotated", "is_delivered": True, "status": 200, **overrides}
    request = TokenRequest(1, 0.0, account="ab123", refresh_token="spent", **facts)
    return Observations(
        requests=[request],
        logs=ProcessLogs(
            [Entry(WORKER, at, action, SPENT) for at, action in enumerate((PRESENTING, *actions))]
        ),
        events=[Event("refresh_failed", "unknown", SPENT, f"web-1:{WORKER}")],
        lost=[Grant("ab123", 1, SPENT, "reauthorization_required", "rotation_lost", False)],
        killed={WORKER} if killed else set(),
        forced=Counter(),
        stored=0,
    )


def test_loss_is_explained_when_the_reply_was_dropped() -> None:
    observed = lost(fault="reply dropped", is_delivered=False, status=0)
    findings = analyze(observed)
    assert findings.explained == {"planned: reply dropped": 1}
    assert (findings.unexplained, findings.violations) == ([], [])


def test_loss_is_explained_when_the_process_was_killed_before_it_read_the_reply() -> None:
    findings = analyze(lost(killed=True))
    assert findings.explained == {"killed before the reply was read": 1}


@pytest.mark.parametrize("killed", [True, False])
def test_loss_is_a_defect_when_the_reply_was_in_the_spool(killed: bool) -> None:
    findings = analyze(lost(REPLY_READ, SPOOLED, killed=killed))
    assert [each.cause for each in findings.unexplained] == [
        "a process had the reply in the spool"
    ]


def test_loss_is_a_defect_when_the_reply_was_delivered_to_a_running_process() -> None:
    findings = analyze(lost())
    assert len(findings.unexplained) == 1


def test_loss_is_a_defect_when_the_killed_process_had_given_up_before() -> None:
    findings = analyze(lost("OutcomeUnknown", killed=True))
    assert len(findings.unexplained) == 1


def test_loss_is_a_defect_when_keap_did_not_rotate_the_token() -> None:
    findings = analyze(lost(outcome="not_processed", fault="503", status=503))
    assert [each.cause for each in findings.unexplained] == ["Keap did not rotate it"]


def test_third_presentation_is_a_violation_unless_forced() -> None:
    observed = lost(PRESENTING, PRESENTING, fault="reply dropped", is_delivered=False, status=0)
    observed.requests.extend(observed.requests * 2)
    observed.events.extend(observed.events * 2)
    assert analyze(observed).violations == [f"Refresh token {SPENT} was presented 3 times."]
    observed.forced[SPENT] = 1
    assert analyze(observed).violations == []


def test_presentation_without_an_event_is_a_violation() -> None:
    observed = lost(fault="reply dropped", is_delivered=False, status=0)
    observed.events.clear()
    assert "has no event" in analyze(observed).violations[0]
