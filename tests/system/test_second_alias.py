"""A second alias of the database for the app, as the hint of check E006 says."""

import sys
from pathlib import Path
from subprocess import run

from tests.processes import ROOT, environment


def test_app_works_over_a_second_alias_of_a_database_with_a_time_zone(tmp_path: Path) -> None:
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "site.sqlite3")}
    changed = {
        "DATABASES": {"default": {**database, "TIME_ZONE": "America/New_York"}, "keap": database},
        "DATABASE_ROUTERS": ["tests.system.second_alias.KeapRouter"],
    }
    process = run(
        [sys.executable, "-m", "tests.system.second_alias"],
        cwd=ROOT,
        env=environment("sqlite://:memory:", changed),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
