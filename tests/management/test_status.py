"""``manage.py infusionsoft_status``, as operators, cron and monitors call it."""

import json
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.models import Credential, WorkerState
from django_infusionsoft.sandbox import Sandbox, faults
from tests.mails import mailing_by

pytestmark = pytest.mark.django_db


def status(*arguments: str, **options: Any) -> tuple[str, int]:
    """Return what the command prints, and its exit code."""
    output, code = StringIO(), 0
    try:
        call_command(
            "infusionsoft_status", *arguments, stdout=output, stderr=StringIO(), **options
        )
    except SystemExit as end:
        code = int(end.code or 0)
    return output.getvalue(), code


@pytest.fixture
def healthy(connect: Callable[..., Credential]) -> Credential:
    """Two accounts of a site whose worker is running."""
    first = connect("ab123")
    connect("cd456")
    Credential.objects.refresh_due()
    return first


def mark_revoked(credential: Credential, **columns: Any) -> None:
    Credential.objects.filter(pk=credential.pk).update(
        status="reauthorization_required", reason="revoked", refresh_at=None, **columns
    )


def backdate_last_run() -> None:
    WorkerState.objects.update(run_seen_at=timezone.now() - timedelta(hours=1))


def test_every_account_is_listed_on_a_line(healthy: Credential) -> None:
    output, code = status()
    header, first, second, _, *summary = output.splitlines()
    assert header.split("  ")[0] == "account"
    assert first.startswith("ab123            connected        ")
    assert second.startswith("cd456            connected        ")
    tomorrow = timezone.localtime() + timedelta(days=1)
    assert f"{tomorrow:%Y-%m-%d}" in first
    assert "(in 24 h)" in first
    assert summary[0] == (
        "connected: 2, refreshing: 0, retrying: 0, failing: 0, needs attention: 0, disconnected: 0"
    )
    assert summary[1] == "due now: 0"
    assert summary[2].startswith("last run recorded: ")
    assert summary[-1] == "status: ok"
    assert code == 0


def test_exit_code_is_1_when_an_account_must_be_reconnected(healthy: Credential) -> None:
    mark_revoked(healthy)
    output, code = status()
    assert "needs attention" in output.splitlines()[1]
    assert "Keap reports that the grant is no longer valid" in output.splitlines()[1]
    assert output.splitlines()[-1] == "status: action_required"
    assert code == 1


def test_exit_code_is_2_when_the_worker_is_behind_and_an_account_must_be_reconnected(
    healthy: Credential,
) -> None:
    mark_revoked(healthy)
    backdate_last_run()
    output, code = status()
    assert output.splitlines()[-1] == "status: behind"
    assert code == 2


def test_exit_code_is_2_when_no_worker_run_was_ever_recorded(credential: Credential) -> None:
    output, code = status()
    assert "last run recorded: -" in output
    assert code == 2


def test_overdue_refresh_is_shown_in_seconds(healthy: Credential) -> None:
    hour_ago = timezone.now() - timedelta(hours=1)
    Credential.objects.filter(pk=healthy.pk).update(refresh_at=hour_ago)
    output, code = status()
    assert "due now: 1, the oldest for 36" in output
    assert code == 2


def test_exit_code_is_3_when_the_database_is_unavailable() -> None:
    def fail(*args: Any) -> None:
        raise OperationalError("the database is gone")

    with connection.execute_wrapper(fail), pytest.raises(CommandError) as caught:
        status()
    assert caught.value.returncode == 3
    assert "the database is gone" in str(caught.value)


def test_line_shows_why_an_account_is_retried(healthy: Credential, sandbox: Sandbox) -> None:
    sandbox.plan(faults.error_503())
    with pytest.raises(CommandError):
        call_command("infusionsoft_refresh", "--account", "ab123", stderr=StringIO())
    output, code = status()
    assert output.splitlines()[1].startswith("ab123            retrying         ")
    assert "HTTP 503" in output.splitlines()[1]
    assert code == 0


def test_exit_code_is_1_when_keap_rejects_the_client(healthy: Credential) -> None:
    Credential.objects.update(refresh_at=timezone.now() - timedelta(minutes=1))
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        Credential.objects.refresh_due()
    output, code = status()
    assert "application client in the settings: Keap rejects the client since " in output
    assert code == 1


def test_output_says_that_no_account_is_connected() -> None:
    output, code = status()
    assert output.startswith("No account is connected yet.\n")
    assert code == 0


def test_json_output_is_one_object(healthy: Credential) -> None:
    mark_revoked(healthy, account_name="Žižek")
    output, code = status("--json")
    assert output.count("\n") == 1
    assert output.isascii()  # independent of cron's locale
    facts = json.loads(output)
    assert (facts["status"], code) == ("action_required", 1)
    assert facts["credentials"]["needs_attention"] == 1
    assert [each["account"] for each in facts["accounts"]] == ["ab123", "cd456"]
    first = facts["accounts"][0]
    assert first.pop("expires_at").endswith("+00:00")
    assert first == {
        "account": "ab123",
        "id": healthy.pk,
        "name": "Žižek",
        "kind": "grant",
        "application": None,
        "condition": "needs_attention",
        "reason": "revoked",
        "refresh_at": None,
        "failures": 0,
        "last_error": "",
    }


def test_control_characters_in_names_are_removed(healthy: Credential) -> None:
    Credential.objects.filter(pk=healthy.pk).update(
        account_name="\x1b[2JAcme\r\nLtd", last_error="a\nb"
    )
    output, _ = status()
    assert output.splitlines()[1].endswith("[2JAcme Ltd a b")
    assert "\x1b" not in output


def test_nothing_is_decrypted(healthy: Credential) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[]):
        assert status()[1] == 0


def test_mail_is_sent_once_when_no_worker_is_running(
    healthy: Credential, mailoutbox: list[EmailMessage]
) -> None:
    backdate_last_run()
    with mailing_by(), override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"]):
        assert status()[1] == 2
        assert status()[1] == 2
    assert [mail.subject for mail in mailoutbox] == ["[Keap] Refreshes are overdue"]
