"""A site with a custom user model."""

import sys
from pathlib import Path
from subprocess import run

from tests.processes import ROOT, environment


def test_admin_works_with_a_custom_user_model(tmp_path: Path) -> None:
    from django.conf import settings

    replaced = {
        "AUTH_USER_MODEL": "people.Person",
        "INSTALLED_APPS": ["tests.system.people", *settings.INSTALLED_APPS],
    }
    process = run(
        [sys.executable, "-m", "tests.system.other_users"],
        cwd=ROOT,
        env=environment(f"sqlite:///{tmp_path / 'site.sqlite3'}", replaced),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
