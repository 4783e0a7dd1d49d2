"""``manage.py infusionsoft_status``: for a person, for cron, and for a monitor."""

import json
import subprocess
import sys
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

from django_infusionsoft.models import Credential, Upkeep
from django_infusionsoft.sandbox import Sandbox, faults
from tests.mails import mailing_by
from tests.processes import ROOT, environment

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
def well(connect: Callable[..., Credential]) -> Credential:
    """Two accounts of a site whose worker runs."""
    first = connect("ab123")
    connect("cd456")
    Credential.objects.refresh_due()
    return first


def lose(credential: Credential, **columns: Any) -> None:
    Credential.objects.filter(pk=credential.pk).update(
        status="reauthorization_required", reason="revoked", refresh_at=None, **columns
    )


def forget_runs() -> None:
    Upkeep.objects.update(run_seen_at=timezone.now() - timedelta(hours=1))


def test_every_account_has_a_line(well: Credential) -> None:
    output, code = status()
    header, first, second, _, *summary = output.splitlines()
    assert header.split("  ")[0] == "account"
    assert first.startswith("ab123            connected        ")
    assert second.startswith("cd456            connected        ")
    tomorrow = timezone.localtime() + timedelta(days=1)
    assert f"{tomorrow:%Y-%m-%d}" in first
    assert "(in 24 h)" in first
    assert summary[0] == (
        "connected: 2, refreshing: 0, retrying: 0, needs attention: 0, disconnected: 0"
    )
    assert summary[1] == "due now: 0"
    assert summary[2].startswith("last run seen: ")
    assert summary[-1] == "status: ok"
    assert code == 0


def test_account_that_needs_a_person_is_code_1(well: Credential) -> None:
    lose(well)
    output, code = status()
    assert "needs attention" in output.splitlines()[1]
    assert "Keap says that the grant has ended" in output.splitlines()[1]
    assert output.splitlines()[-1] == "status: needs_person"
    assert code == 1


def test_worker_that_is_behind_is_code_2_whatever_else_there_is(well: Credential) -> None:
    lose(well)
    forget_runs()
    output, code = status()
    assert output.splitlines()[-1] == "status: behind"
    assert code == 2


def test_worker_that_was_never_seen_is_code_2(credential: Credential) -> None:
    output, code = status()
    assert "last run seen: -" in output
    assert code == 2


def test_overdue_is_told_in_seconds(well: Credential) -> None:
    hour_ago = timezone.now() - timedelta(hours=1)
    Credential.objects.filter(pk=well.pk).update(refresh_at=hour_ago)
    output, code = status()
    assert "due now: 1, the first for 36" in output
    assert code == 2


def test_database_that_is_gone_is_code_3() -> None:
    def refuse(*args: Any) -> None:
        raise OperationalError("the database is gone")

    with connection.execute_wrapper(refuse), pytest.raises(CommandError) as caught:
        status()
    assert caught.value.returncode == 3
    assert "the database is gone" in str(caught.value)


def test_line_tells_why_an_account_is_tried_again(well: Credential, sandbox: Sandbox) -> None:
    sandbox.plan(faults.error_503())
    with pytest.raises(CommandError):
        call_command("infusionsoft_refresh", "--account", "ab123", stderr=StringIO())
    output, code = status()
    assert output.splitlines()[1].startswith("ab123            retrying         ")
    assert "HTTP 503" in output.splitlines()[1]
    assert code == 0


def test_client_that_is_refused_is_shown_and_code_1(well: Credential) -> None:
    Credential.objects.update(refresh_at=timezone.now() - timedelta(minutes=1))
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        Credential.objects.refresh_due()
    output, code = status()
    assert "application client in the settings: Keap refuses the client since " in output
    assert code == 1


def test_nothing_connected_is_said() -> None:
    output, code = status()
    assert output.startswith("No account is connected yet.\n")
    assert code == 0


def test_json_is_one_object_and_nothing_else(well: Credential) -> None:
    lose(well, account_name="Žižek")
    output, code = status("--json")
    assert output.count("\n") == 1
    assert output.isascii()  # whatever cron's locale is
    facts = json.loads(output)
    assert (facts["status"], code) == ("needs_person", 1)
    assert facts["credentials"]["needs_attention"] == 1
    assert [each["account"] for each in facts["accounts"]] == ["ab123", "cd456"]
    first = facts["accounts"][0]
    assert first.pop("expires_at").endswith("+00:00")
    assert first == {
        "account": "ab123",
        "id": well.pk,
        "name": "Žižek",
        "application": None,
        "condition": "needs_attention",
        "reason": "revoked",
        "refresh_at": None,
        "failures": 0,
        "last_error": "",
    }


def test_names_of_strangers_do_nothing_to_a_terminal(well: Credential) -> None:
    Credential.objects.filter(pk=well.pk).update(
        account_name="\x1b[2JAcme\r\nLtd", last_error="a\nb"
    )
    output, _ = status()
    assert output.splitlines()[1].endswith("[2JAcme Ltd a b")
    assert "\x1b" not in output


def test_nothing_is_decrypted(well: Credential) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[]):
        assert status()[1] == 0


def test_mail_is_sent_where_no_worker_runs(
    well: Credential, mailoutbox: list[EmailMessage]
) -> None:
    forget_runs()
    with mailing_by(), override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"]):
        assert status()[1] == 2
        assert status()[1] == 2
    assert [mail.subject for mail in mailoutbox] == ["[Keap] Refreshes are overdue"]


@pytest.mark.parametrize(("is_lost", "expected"), [(False, 0), (True, 1)])
def test_process_ends_with_the_code(
    database_url: str, well: Credential, sandbox: Sandbox, is_lost: bool, expected: int
) -> None:
    if is_lost:
        lose(well)
    process = subprocess.run(
        [sys.executable, "-m", "django", "infusionsoft_status", "--json"],
        env=environment(database_url, sandbox.settings),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert json.loads(process.stdout)["credentials"]["needs_attention"] == expected
    assert process.returncode == expected
