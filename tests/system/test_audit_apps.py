"""Audit apps, which store what the fields of all models return."""

import json
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from django.conf import settings

from tests.processes import ROOT, environment

NAMES = ["client_secret", "access_token", "refresh_token"]
MODELS = ["django_infusionsoft.Application", "django_infusionsoft.Credential"]
EXCLUDED = {
    "auditlog": {"AUDITLOG_EXCLUDE_TRACKING_FIELDS": NAMES},
    "easyaudit": {"DJANGO_EASY_AUDIT_UNREGISTERED_CLASSES_EXTRA": MODELS},
}


def audited(app: str, folder: Path, **changed: Any) -> tuple[int, int]:
    """Return how many problems the check finds, and how many secrets are stored as plain text."""
    apps = [*settings.INSTALLED_APPS, app]
    everything = {"INSTALLED_APPS": apps, "AUDITLOG_INCLUDE_ALL_MODELS": True, **changed}
    process = run(
        [sys.executable, "-m", "tests.system.audited"],
        cwd=ROOT,
        env=environment(f"sqlite:///{folder}/site.sqlite3", everything),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    problems, found = json.loads(process.stdout.splitlines()[-1])
    return problems, found


@pytest.mark.parametrize("app", EXCLUDED)
def test_check_finds_audit_app_that_records_secrets(app: str, tmp_path: Path) -> None:
    problems, found = audited(app, tmp_path)
    assert problems == 1
    assert found > 0


@pytest.mark.parametrize("app", EXCLUDED)
def test_no_secret_is_recorded_when_the_hint_is_followed(app: str, tmp_path: Path) -> None:
    assert audited(app, tmp_path, **EXCLUDED[app]) == (0, 0)
