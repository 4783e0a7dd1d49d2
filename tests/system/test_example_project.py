"""The example site reads its settings from the environment; each test starts a process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from django_infusionsoft.conf import SETTINGS
from tests.processes import ROOT

PRINT_SETTINGS = """
import json, sys
from example_project import settings
print(json.dumps({name: getattr(settings, name, None) for name in sys.argv[1:]}, default=str))
"""


def python(
    folder: Path, *arguments: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    defaults = {
        "CELERY_BROKER_FOLDER": str(folder / "broker"),
        "DATABASE_URL": f"sqlite:///{folder / 'db.sqlite3'}",
        "DJANGO_DEBUG": "true",
        "PATH": os.environ["PATH"],
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env=defaults | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def read_settings(folder: Path, *names: str, **environment: str) -> dict[str, Any]:
    process = python(folder, "-c", PRINT_SETTINGS, *names, **environment)
    assert process.returncode == 0, process.stderr
    settings: dict[str, Any] = json.loads(process.stdout)
    return settings


def test_every_setting_of_the_app_is_read_with_its_type(tmp_path: Path) -> None:
    examples = {str: "text", int: "7", float: "2.5", bool: "true", list: "one, two"}
    expected = {str: "text", int: 7, float: 2.5, bool: True, list: ["one", "two"]}

    settings = read_settings(
        tmp_path, *SETTINGS, **{name: examples[each.type] for name, each in SETTINGS.items()}
    )

    assert settings == {name: expected[each.type] for name, each in SETTINGS.items()}


def test_setting_has_the_default_of_the_app_when_it_is_not_in_the_environment(
    tmp_path: Path,
) -> None:
    code = "from example_project import settings; print(hasattr(settings, 'INFUSIONSOFT_SCOPE'))"
    assert python(tmp_path, "-c", code).stdout.strip() == "False"


def test_secret_can_start_with_a_dollar_sign(tmp_path: Path) -> None:
    secrets = {"INFUSIONSOFT_CLIENT_SECRET": "$ecret", "DJANGO_SECRET_KEY": "$ecret too"}
    settings = read_settings(tmp_path, "INFUSIONSOFT_CLIENT_SECRET", "SECRET_KEY", **secrets)
    assert list(settings.values()) == ["$ecret", "$ecret too"]


def test_error_names_the_setting_when_its_value_is_not_a_number(tmp_path: Path) -> None:
    process = python(tmp_path, "manage.py", "check", INFUSIONSOFT_WAIT_SECONDS="soon")
    assert "INFUSIONSOFT_WAIT_SECONDS=soon is not of type float." in process.stderr


@pytest.mark.parametrize("environment", [{}, {"DJANGO_SECRET_KEY": ""}], ids=["missing", "empty"])
def test_site_does_not_start_without_a_secret_key(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    process = python(tmp_path, "manage.py", "check", DJANGO_DEBUG="false", **environment)
    assert process.returncode != 0
    assert "DJANGO_SECRET_KEY is not set." in process.stderr


def test_default_broker_has_its_folders(tmp_path: Path) -> None:
    settings = read_settings(tmp_path, "CELERY_BROKER_URL", "CELERY_BROKER_TRANSPORT_OPTIONS")
    assert settings["CELERY_BROKER_URL"] == "filesystem://"
    for folder in settings["CELERY_BROKER_TRANSPORT_OPTIONS"].values():
        assert Path(folder).is_dir()


def test_other_broker_gets_no_folders(tmp_path: Path) -> None:
    url = "redis://127.0.0.1:6379/0"
    settings = read_settings(tmp_path, "CELERY_BROKER_TRANSPORT_OPTIONS", CELERY_BROKER_URL=url)
    assert settings == {"CELERY_BROKER_TRANSPORT_OPTIONS": None}
    assert not (tmp_path / "broker").exists()


def test_beat_schedule_has_the_entry_of_the_app(tmp_path: Path) -> None:
    settings = read_settings(tmp_path, "CELERY_BEAT_SCHEDULE", CELERY_BEAT_SECONDS="5")
    (entry,) = settings["CELERY_BEAT_SCHEDULE"].values()
    assert entry["schedule"] == 5
