"""The commands, as cron and operators call them."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.management.progress import Lines
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults

# More accounts than a run can refresh before it is interrupted.
MANY = tuple(f"ef{number}" for number in range(100, 124))


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Keap with two accounts, and many more for a run that takes longer."""
    with (
        Sandbox(accounts=("ab123", "cd456", *MANY)) as running,
        override_settings(**running.settings),
    ):
        yield running


def run(*arguments: str) -> tuple[str, int]:
    """Return what a command prints, and its exit code."""
    output, code = StringIO(), 0
    try:
        call_command(*arguments, stdout=output, stderr=StringIO())
    except SystemExit as end:
        code = int(end.code or 0)
    return output.getvalue(), code


def test_key_is_generated_without_an_encryption_key() -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[]):
        output, _ = run("infusionsoft_key")
    Fernet(output.strip())  # raises if the key is invalid


def test_refresh_refreshes_the_due_accounts(
    connect: Callable[..., Credential], sandbox: Sandbox
) -> None:
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


def test_refresh_of_one_account_ignores_whether_it_is_due(credential: Credential) -> None:
    output, code = run("infusionsoft_refresh", "--account", "AB123.infusionsoft.com")
    credential.refresh_from_db()
    assert (credential.generation, code) == (2, 0)
    assert output.startswith("ab123: refreshed, expires at ")


def test_refresh_reports_an_unknown_account(db: None) -> None:
    with pytest.raises(CommandError, match="'xy999'"):
        run("infusionsoft_refresh", "--account", "xy999")


def test_refresh_reports_that_keap_is_down(credential: Credential, sandbox: Sandbox) -> None:
    sandbox.plan(faults.error_503())
    with pytest.raises(CommandError, match="HTTP 503"):
        run("infusionsoft_refresh", "--account", "ab123")


def test_refresh_exits_with_1_when_an_application_is_blocked(
    expired: Credential, sandbox: Sandbox
) -> None:
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        run("infusionsoft_refresh", "--time-limit", "0.5")
        output, code = run("infusionsoft_refresh", "--time-limit", "0.5")
    assert output.startswith("refreshed=0 ")
    assert " stopped=1 " in output
    assert code == 1


def test_refresh_prints_nothing_at_verbosity_0(
    connect: Callable[..., Credential], capfd: pytest.CaptureFixture[str]
) -> None:
    connect("ab123", seconds_left=-1)
    call_command("infusionsoft_refresh", verbosity=0)
    call_command("infusionsoft_refresh", account="ab123", verbosity=0)
    assert capfd.readouterr() == ("", "")
    assert Credential.objects.get().generation == 3


def test_refresh_ends_at_its_time_limit(
    connect: Callable[..., Credential], sandbox: Sandbox
) -> None:
    for account in MANY:
        connect(account, seconds_left=-1)
    sandbox.plan(faults.latency(0.1), times=None)
    with override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=2):
        output, code = run("infusionsoft_refresh", "--time-limit", "0.2")
    assert " ended=time_limit\n" in output
    assert code == 0
    assert Credential.objects.due().exists()
    assert not Credential.objects.filter(lease_until__isnull=False).exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_refresh_rejects_an_invalid_time_limit(seconds: str) -> None:
    with pytest.raises(CommandError, match=f"'{seconds}' is not a positive number of seconds"):
        call_command("infusionsoft_refresh", f"--time-limit={seconds}")


@pytest.mark.parametrize("other", ["--dry-run", "--account=ab123"])
def test_refresh_rejects_a_time_limit_with_an_option_that_ignores_it(other: str) -> None:
    with pytest.raises(CommandError, match="omit") as error:
        call_command("infusionsoft_refresh", "--time-limit=5", other)
    assert error.value.returncode == 2


# --json


def test_refresh_prints_one_json_object(expired: Credential) -> None:
    output, code = run("infusionsoft_refresh", "--json")
    facts = json.loads(output)
    assert 0 <= facts.pop("seconds") < 30
    assert facts == {
        "refreshed": 1,
        "rejected": 0,
        "misconfigured": 0,
        "unavailable": 0,
        "unknown": 0,
        "unreadable": 0,
        "stopped": 0,
        "ended": "done",
    }
    assert code == 0


def test_refresh_of_one_account_prints_one_json_object(credential: Credential) -> None:
    output, code = run("infusionsoft_refresh", "--account", "ab123", "--json")
    credential.refresh_from_db()
    assert credential.expires_at is not None
    expires_at = credential.expires_at.isoformat(timespec="seconds")
    assert json.loads(output) == {"account": "ab123", "expires_at": expires_at}
    assert code == 0


def test_refresh_prints_the_error_as_json_when_an_account_fails(
    credential: Credential, sandbox: Sandbox
) -> None:
    sandbox.plan(faults.error_503())
    output, code = run("infusionsoft_refresh", "--account", "ab123", "--json")
    facts = json.loads(output)
    assert facts["account"] == "ab123"
    assert "HTTP 503" in facts["error"]
    assert code == 1


# --dry-run


@pytest.fixture
def three_due(connect: Callable[..., Credential]) -> None:
    """Three accounts that are due, the second being the most urgent; and one that is not due."""
    for minutes, account in ((2, MANY[0]), (3, MANY[1]), (1, MANY[2])):
        connect(account, seconds_left=-1)
        due_at = timezone.now() - timedelta(minutes=minutes)
        Credential.objects.filter(account=account).update(refresh_at=due_at)
    connect("ab123")


def test_dry_run_lists_the_due_accounts_with_the_most_urgent_first(
    three_due: None, sandbox: Sandbox
) -> None:
    before = list(Credential.objects.order_by("pk").values())
    output, code = run("infusionsoft_refresh", "--dry-run")
    *lines, last = output.splitlines()
    assert [line.split()[0] for line in lines] == [MANY[1], MANY[0], MANY[2]]
    most_urgent = timezone.localtime(Credential.objects.get(account=MANY[1]).refresh_at)
    assert f"due since {most_urgent:%Y-%m-%d}" in lines[0]
    assert (last, code) == ("due=3", 0)
    assert sandbox.token_requests == []
    assert list(Credential.objects.order_by("pk").values()) == before


def test_dry_run_prints_one_json_object(three_due: None) -> None:
    output, code = run("infusionsoft_refresh", "--dry-run", "--json")
    facts = json.loads(output)
    assert facts["due"] == 3
    assert [each["account"] for each in facts["credentials"]] == [MANY[1], MANY[0], MANY[2]]
    assert set(facts["credentials"][0]) == {
        "account",
        "status",
        "failures",
        "due_at",
        "expires_at",
    }
    assert code == 0


def test_dry_run_says_whether_an_account_is_due(three_due: None, sandbox: Sandbox) -> None:
    due, _ = run("infusionsoft_refresh", "--dry-run", "--account", MANY[0])
    fresh, code = run("infusionsoft_refresh", "--dry-run", "--account", "ab123")
    assert due.startswith(f"{MANY[0]}: connected, due since 20")
    assert fresh.startswith("ab123: connected, not due before 20")
    assert code == 0
    assert sandbox.token_requests == []


def test_dry_run_says_that_an_account_is_not_due_when_it_must_be_reconnected(
    credential: Credential,
) -> None:
    Credential.objects.update(status="reauthorization_required", reason="revoked", refresh_at=None)
    output, _ = run("infusionsoft_refresh", "--dry-run", "--account", "ab123")
    assert output == "ab123: needs attention, not due\n"


@pytest.mark.parametrize(("account", "is_due"), [(MANY[0], True), ("ab123", False)])
def test_dry_run_of_one_account_prints_one_json_object(
    three_due: None, account: str, is_due: bool
) -> None:
    facts = json.loads(
        run("infusionsoft_refresh", "--dry-run", f"--account={account}", "--json")[0]
    )
    assert (facts["account"], facts["due"]) == (account, is_due)


def test_dry_run_reports_an_unknown_account(db: None) -> None:
    with pytest.raises(CommandError, match="'xy999'"):
        run("infusionsoft_refresh", "--dry-run", "--account", "xy999")


def test_progress_is_plain_lines_without_a_terminal(
    connect: Callable[..., Credential], monkeypatch: pytest.MonkeyPatch
) -> None:
    for account in MANY:
        connect(account, seconds_left=-1)
    monkeypatch.setattr(Lines, "pause_seconds", 0)
    errors = StringIO()
    call_command("infusionsoft_refresh", stdout=StringIO(), stderr=errors)
    *_, last = errors.getvalue().splitlines()
    assert last.startswith(f"{len(MANY)} ")
    assert last.endswith("/s failed=0")
    assert "\r" not in errors.getvalue()


# Secrets


@pytest.mark.parametrize("command", ["infusionsoft_status", "infusionsoft_refresh"])
def test_no_secret_is_printed(command: str, expired: Credential) -> None:
    output, _ = run(command)
    expired.refresh_from_db()
    assert expired.access_token not in output
    assert expired.refresh_token not in output
