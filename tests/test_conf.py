"""Settings: read and validated when used."""

from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from django_infusionsoft.conf import SETTINGS, conf
from django_infusionsoft.exceptions import ConfigurationError


def test_value_is_read_when_used() -> None:
    with override_settings(INFUSIONSOFT_WAIT_SECONDS=7):
        assert conf.WAIT_SECONDS == 7
    assert conf.WAIT_SECONDS == 10


def test_every_setting_has_a_valid_default_and_a_description() -> None:
    for name, setting in SETTINGS.items():
        assert name.startswith("INFUSIONSOFT_")
        assert setting.description
        with override_settings(**{name: setting.default}):
            assert getattr(conf, name.removeprefix("INFUSIONSOFT_")) == setting.default


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLIENT_ID", 5),
        ("ENCRYPTION_KEYS", "one"),
        ("WAIT_SECONDS", "120"),
        ("WAIT_SECONDS", True),
        ("WAIT_SECONDS", 0),
        ("REFRESH_CONCURRENCY", -1),
        ("REFRESH_CONCURRENCY", 1.5),
        ("REFRESH_FRACTION", 1.0),
    ],
)
def test_error_names_the_setting_when_the_value_is_invalid(name: str, value: Any) -> None:
    with (
        override_settings(**{f"INFUSIONSOFT_{name}": value}),
        pytest.raises(ConfigurationError, match=f"INFUSIONSOFT_{name} must be"),
    ):
        getattr(conf, name)


@pytest.mark.parametrize("name", ["AUTHORIZE_URL", "TOKEN_URL", "API_URL", "REDIRECT_URI"])
@pytest.mark.parametrize(
    "url",
    [
        "http://keap.example/x",
        "ftp://127.0.0.1/",
        "/token",
        "https://",
        "http://127.0.0.1.example",
    ],
)
def test_url_is_rejected_when_tokens_would_be_sent_unencrypted(name: str, url: str) -> None:
    with (
        override_settings(**{f"INFUSIONSOFT_{name}": url}),
        pytest.raises(ConfigurationError, match="loopback"),
    ):
        getattr(conf, name)


@pytest.mark.parametrize(
    "url",
    ["https://keap.example/x", "http://127.0.0.1:8001/x", "http://localhost/", "http://[::1]:80/"],
)
def test_url_is_accepted_when_it_is_https_or_loopback(url: str) -> None:
    with override_settings(INFUSIONSOFT_TOKEN_URL=url):
        assert url == conf.TOKEN_URL


@pytest.mark.parametrize("url", ["http://[::1", "https://ann:secret@keap.example/token"])
def test_url_is_rejected_when_it_is_malformed_or_contains_a_password(url: str) -> None:
    with (
        override_settings(INFUSIONSOFT_TOKEN_URL=url),
        pytest.raises(ConfigurationError, match="INFUSIONSOFT_TOKEN_URL"),
    ):
        conf.TOKEN_URL  # noqa: B018


@override_settings(INFUSIONSOFT_WAIT_SECONDS=None)
def test_none_is_rejected() -> None:
    with pytest.raises(ConfigurationError, match="WAIT_SECONDS"):
        _ = conf.WAIT_SECONDS


def test_spool_is_rejected_when_directories_have_no_owner(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("django_infusionsoft.conf.HAS_OWNERS", False)
    with (
        override_settings(INFUSIONSOFT_SPOOL_DIR=tmp_path / "other"),
        pytest.raises(ConfigurationError, match="must be empty"),
    ):
        _ = conf.SPOOL_DIR
