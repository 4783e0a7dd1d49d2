"""Tools that patch ``requests`` for the whole process, before the app is imported."""

import sys
from pathlib import Path
from subprocess import run

import pytest

from tests.processes import ROOT, environment


@pytest.mark.parametrize("tool", ["requests-cache", "adapter"])
def test_no_request_is_answered_by_a_cache_of_the_process(tool: str, tmp_path: Path) -> None:
    process = run(
        [sys.executable, "-m", "tests.system.patched_requests", tool],
        cwd=ROOT,
        env=environment(f"sqlite:///{tmp_path}/site.sqlite3", {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
