"""A site can be developed on Windows, whose Python lacks some names."""

import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT, environment


def test_site_works_without_the_names_that_windows_lacks(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'windows.sqlite3'}"
    process = subprocess.run(
        [sys.executable, "-m", "tests.system.windows_process"],
        cwd=ROOT,
        env=environment(url, {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.stdout == "ok\n", process.stderr
