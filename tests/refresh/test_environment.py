"""A setting or an environment with which nothing can be sent to Keap."""

import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from django.core import mail
from django.core.management import call_command
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.models import ApplicationState, Credential
from django_infusionsoft.monitoring.health import HealthStatus, health_of
from django_infusionsoft.sandbox import Sandbox
from tests.keap.endpoints import without_proxies
from tests.mails import mailing_by
from tests.support import ask, keap_with, row, run

pytestmark = pytest.mark.django_db

ACCOUNTS = [f"acc{number:02}" for number in range(7)]
MALFORMED = "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with mailing_by(), override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@example.com"]):
        yield without_proxies(monkeypatch)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with keap_with(["ab123", *ACCOUNTS]) as running:
        yield running


@pytest.fixture
def https(sandbox: Sandbox) -> Any:
    """Address Keap by HTTPS, so that certificates are needed."""
    return override_settings(INFUSIONSOFT_TOKEN_URL=f"https://127.0.0.1:{sandbox.port}/token")


Break = Callable[[pytest.MonkeyPatch, Path], None]


def bundle(content: str | None) -> Break:
    def break_it(environment: pytest.MonkeyPatch, folder: Path) -> None:
        path = folder / "bundle.pem"
        if content is not None:
            path.write_text(content)
        environment.setenv("REQUESTS_CA_BUNDLE", str(path))

    return break_it


def proxy(url: str) -> Break:
    return lambda environment, _: environment.setenv("all_proxy", url)


def without_pysocks(environment: pytest.MonkeyPatch, folder: Path) -> None:
    def raise_error(*args: Any, **kwargs: Any) -> None:  # as requests does
        raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")

    environment.setattr(requests.adapters, "SOCKSProxyManager", raise_error)
    environment.setenv("all_proxy", "socks5h://127.0.0.1:9")


def broken_session(environment: pytest.MonkeyPatch, folder: Path) -> None:
    def raise_error(*args: Any, **kwargs: Any) -> None:
        raise TypeError

    environment.setattr(requests.Session, "merge_environment_settings", raise_error)


BROKEN = {
    "missing bundle": bundle(None),
    "empty bundle": bundle(""),
    "malformed bundle": bundle(MALFORMED),
    "proxy without a host": proxy("http://"),
    "proxy with a wrong port": proxy("http://proxy.example:port"),
    "proxy of an unknown kind": proxy("socks9://127.0.0.1:9"),
    "no PySocks": without_pysocks,
    "session cannot be built": broken_session,
}


@pytest.mark.parametrize("name", BROKEN)
def test_no_account_is_harmed_when_nothing_can_be_sent(
    sandbox: Sandbox,
    due: Callable[..., Credential],
    https: Any,
    environment: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    """One credential finds out; an administrator gets one mail, and one when it is fixed."""
    for number, account in enumerate(ACCOUNTS):
        due(account, number)
    with environment.context() as broken, https:
        BROKEN[name](broken, tmp_path)
        assert run() == {"misconfigured": 1, "stopped": 1}
        assert run() == run() == {"stopped": 1}
        health = health_of("default")
    assert sandbox.token_requests == []
    harmless = Credential.objects.filter(
        status="connected", failures=0, unanswered_attempts=0, lease_until=None
    )
    assert Credential.objects.due().filter(pk__in=harmless).count() == len(ACCOUNTS)
    assert (health.status, len(health.rejected)) == (HealthStatus.ACTION_REQUIRED, 1)
    (alert,) = mail.outbox
    assert alert.subject == "[Keap] No request to Keap can be made"
    assert "REQUESTS_CA_BUNDLE" in str(alert.body)

    ApplicationState.objects.update(probe_at=timezone.now() - timedelta(seconds=1))
    assert run() == {"refreshed": len(ACCOUNTS)}
    assert health_of("default").status == HealthStatus.OK


def test_error_names_pysocks_when_it_is_missing(
    expired: Credential, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_pysocks(environment, tmp_path)
    with pytest.raises(ConfigurationError, match="PySocks"):
        expired.get_access_token()


def test_mail_is_sent_at_once_when_a_caller_finds_out(
    sandbox: Sandbox, connect: Callable[..., Credential], environment: pytest.MonkeyPatch
) -> None:
    first, second, fresh = connect("ab123", seconds_left=-1), connect("acc01"), connect("acc02")
    Credential.objects.filter(pk=second.pk).update(expires_at=timezone.now())
    environment.setenv("all_proxy", "http://")
    for credential in (first, second, first):
        with pytest.raises(ConfigurationError, match="ALL_PROXY"):
            row(credential).get_access_token()
    assert ask(fresh) == fresh.access_token
    assert [alert.subject for alert in mail.outbox] == ["[Keap] No request to Keap can be made"]
    events = Credential.objects.get(pk=first.pk).events
    assert not events.exclude(kind="imported").exists()


def test_status_shows_the_error(
    expired: Credential, environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("all_proxy", "http://user:secret@[::1")
    run()
    ask(expired)
    with pytest.raises(SystemExit) as caught:
        call_command("infusionsoft_status")
    assert caught.value.code == 1
    output = capsys.readouterr().out
    assert "no request to Keap can be made from this site since" in output
    assert "Check the environment variables for proxies" in output
    assert "secret" not in output


def test_other_machine_resumes_at_once(
    sandbox: Sandbox, due: Callable[..., Credential], environment: pytest.MonkeyPatch
) -> None:
    due("acc00")
    with environment.context() as broken:
        broken.setenv("all_proxy", "http://")
        assert run() == {"misconfigured": 1, "stopped": 1}
        assert run() == {"stopped": 1}
    environment.setattr(socket, "gethostname", lambda: "other")
    assert run() == {"refreshed": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {"INFUSIONSOFT_CLIENT_ID": ""},
        {"INFUSIONSOFT_CLIENT_SECRET": "\ud800"},
        {"INFUSIONSOFT_CLIENT_ID": "\ud800"},
    ],
)
def test_run_goes_on_at_once_when_an_unusable_client_is_corrected(
    sandbox: Sandbox, due: Callable[..., Credential], settings: dict[str, str]
) -> None:
    for account in ACCOUNTS[:3]:
        due(account)
    with override_settings(**settings):
        assert run() == {"misconfigured": 1, "stopped": 1}
        assert run() == {"stopped": 1}
        assert health_of("default").status == HealthStatus.ACTION_REQUIRED
    assert (sandbox.token_requests, Credential.objects.filter(lease_id="").count()) == ([], 3)
    assert run() == {"refreshed": 3}


def test_connection_errors_are_reported_once_refreshes_are_overdue(
    sandbox: Sandbox, due: Callable[..., Credential], environment: pytest.MonkeyPatch
) -> None:
    for account in ACCOUNTS:
        due(account)
    environment.setenv("all_proxy", "http://127.0.0.1:9")
    assert run() == {"unavailable": 5, "stopped": 1}
    assert run() == {"stopped": 1}
    assert (sandbox.token_requests, mail.outbox) == ([], [])
    assert not Credential.objects.filter(unanswered_attempts__gt=0).exists()
    Credential.objects.update(refresh_at=timezone.now() - timedelta(hours=2))
    run()
    assert [alert.subject for alert in mail.outbox] == ["[Keap] Refreshes are overdue"]
