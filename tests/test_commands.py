"""The commands, as cron and a person at a terminal call them."""

from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults


def run(*arguments: str) -> tuple[str, int]:
    """Return what a command prints, and its exit code."""
    output, code = StringIO(), 0
    try:
        call_command(*arguments, stdout=output)
    except SystemExit as end:
        code = int(end.code or 0)
    return output.getvalue(), code


def test_key_is_made_without_any_key() -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[]):
        output, _ = run("infusionsoft_key")
    Fernet(output.strip())  # raises, were it none


def test_refresh_takes_what_is_due(connect: Callable[..., Credential], sandbox: Sandbox) -> None:
    connect("ab123", seconds_left=-1)
    connect("cd456")
    output, code = run("infusionsoft_refresh")
    assert output.startswith("refreshed=1 rejected=0 ")
    assert code == 0
    assert [request.account for request in sandbox.token_requests] == ["ab123"]


def test_refresh_exits_with_1_when_an_account_failed(
    expired: Credential, sandbox: Sandbox
) -> None:
    sandbox.revoke("ab123")
    assert run("infusionsoft_refresh")[1] == 1


def test_refresh_takes_one_account_due_or_not(credential: Credential) -> None:
    output, code = run("infusionsoft_refresh", "--account", "AB123.infusionsoft.com")
    credential.refresh_from_db()
    assert (credential.generation, code) == (2, 0)
    assert output.startswith("ab123: refreshed, expires at ")


def test_refresh_says_what_is_wrong_when_the_account_is_unknown(db: None) -> None:
    with pytest.raises(CommandError, match="'xy999'"):
        run("infusionsoft_refresh", "--account", "xy999")


def test_refresh_says_what_is_wrong_when_keap_is_down(
    credential: Credential, sandbox: Sandbox
) -> None:
    sandbox.plan(faults.error_503())
    with pytest.raises(CommandError, match="HTTP 503"):
        run("infusionsoft_refresh", "--account", "ab123")


def test_status_shows_every_account(connect: Callable[..., Credential]) -> None:
    connect("ab123")
    connect("cd456")
    output, code = run("infusionsoft_status")
    first, second = output.splitlines()
    assert first.startswith("ab123 ")
    assert second.startswith("cd456 ")
    tomorrow = timezone.localtime() + timedelta(days=1)
    assert f"expires {tomorrow:%Y-%m-%d}" in first
    assert code == 0


def test_status_exits_with_1_when_an_account_needs_a_person(credential: Credential) -> None:
    Credential.objects.update(status="reauthorization_required", reason="revoked", refresh_at=None)
    output, code = run("infusionsoft_status")
    assert "needs attention" in output
    assert code == 1


def test_status_tells_why_an_account_is_not_refreshed(
    credential: Credential, sandbox: Sandbox
) -> None:
    sandbox.plan(faults.error_503())
    with pytest.raises(CommandError):
        run("infusionsoft_refresh", "--account", "ab123")
    output, code = run("infusionsoft_status")
    assert "retrying" in output
    assert "HTTP 503" in output
    assert code == 0


def test_status_says_so_when_nothing_is_connected(db: Any) -> None:
    assert run("infusionsoft_status") == ("No account is connected yet.\n", 0)


@pytest.mark.parametrize("command", ["infusionsoft_status", "infusionsoft_refresh"])
def test_no_secret_is_printed(command: str, expired: Credential) -> None:
    output, _ = run(command)
    expired.refresh_from_db()
    assert expired.access_token not in output
    assert expired.refresh_token not in output
