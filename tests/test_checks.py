"""System checks, by their ids."""

from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings

PREFIX = "django_infusionsoft."


def ids(**settings: Any) -> list[str]:
    with override_settings(**settings):
        found = [message.id for message in run_checks() if message.id]
    return [each.removeprefix(PREFIX) for each in found if each.startswith(PREFIX)]


def test_nothing_is_found_when_all_is_well() -> None:
    assert ids() == []


@pytest.mark.parametrize("keys", [[], [""], ["short"], "a string"])
def test_site_stops_and_names_the_command_when_there_is_no_usable_key(keys: Any) -> None:
    assert "E001" in ids(INFUSIONSOFT_ENCRYPTION_KEYS=keys)
    with (
        override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=keys),
        pytest.raises(SystemCheckError, match="infusionsoft_key"),
    ):
        call_command("check")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKEN_URL", "http://keap.example/token"),
        ("LEASE_SECONDS", "long"),
        ("REFRESH_FRACTION", 2.0),
        ("REDIRECT_URI", "http://site.example/callback/"),
    ],
)
def test_wrong_setting_is_an_error(name: str, value: Any) -> None:
    assert ids(**{f"INFUSIONSOFT_{name}": value}) == ["E002"]


def test_half_a_client_is_an_error() -> None:
    assert ids(INFUSIONSOFT_CLIENT_SECRET="") == ["E003"]
    assert ids(INFUSIONSOFT_CLIENT_ID="") == ["E003"]


def test_no_client_in_the_settings_is_fine() -> None:
    assert ids(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="") == []


def test_lease_that_a_call_can_outlast_is_an_error() -> None:
    assert ids(INFUSIONSOFT_LEASE_SECONDS=66) == ["E004"]
    assert ids(INFUSIONSOFT_LEASE_SECONDS=67) == []


def test_naive_datetimes_are_an_error() -> None:
    assert ids(USE_TZ=False) == ["E005"]


def test_missing_include_is_a_warning() -> None:
    assert ids(ROOT_URLCONF="django.contrib.auth.urls") == ["W002"]


def test_session_cookie_that_stays_behind_is_a_warning() -> None:
    assert ids(SESSION_COOKIE_SAMESITE="Strict") == ["W003"]


@pytest.mark.parametrize("tail", ["?a=b", "#c"])
def test_redirect_uri_with_more_than_a_path_is_a_warning(tail: str) -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI=f"https://site.example/cb/{tail}") == ["W001"]
