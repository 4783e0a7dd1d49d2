"""The commands, as cron and a person at a terminal call them."""

import json
import os
import signal
import termios
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from io import StringIO
from subprocess import PIPE, Popen
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.management.progress import Lines
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults
from tests.processes import started

Start = Callable[..., AbstractContextManager["Popen[str]"]]

# More than a run gets done before it is interrupted.
MANY = tuple(f"ef{number}" for number in range(100, 124))


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Keap with two accounts, and many more for a run that takes its time."""
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


def test_refresh_exits_with_1_when_an_application_is_stopped(
    expired: Credential, sandbox: Sandbox
) -> None:
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        run("infusionsoft_refresh", "--time-limit", "0.5")
        output, code = run("infusionsoft_refresh", "--time-limit", "0.5")
    assert output.startswith("refreshed=0 ")
    assert " stopped=1 " in output
    assert code == 1


def test_refresh_is_silent_when_it_is_asked_to_be(
    connect: Callable[..., Credential], capfd: pytest.CaptureFixture[str]
) -> None:
    connect("ab123", seconds_left=-1)
    call_command("infusionsoft_refresh", verbosity=0)
    call_command("infusionsoft_refresh", account="ab123", verbosity=0)
    assert capfd.readouterr() == ("", "")
    assert Credential.objects.get().generation == 3


def test_refresh_ends_when_its_time_is_over(
    connect: Callable[..., Credential], sandbox: Sandbox
) -> None:
    for account in MANY:
        connect(account, seconds_left=-1)
    sandbox.plan(faults.latency(0.1), times=None)
    output, code = run("infusionsoft_refresh", "--time-limit", "0.2")
    assert " ended=time_limit\n" in output
    assert code == 0
    assert Credential.objects.due().exists()
    assert not Credential.objects.filter(lease_until__isnull=False).exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_refresh_says_what_is_wrong_with_a_time_limit(seconds: str) -> None:
    with pytest.raises(CommandError, match=f"'{seconds}' is not a number of seconds above 0"):
        call_command("infusionsoft_refresh", f"--time-limit={seconds}")


@pytest.mark.parametrize("other", ["--dry-run", "--account=ab123"])
def test_refresh_takes_no_time_limit_where_it_means_nothing(other: str) -> None:
    with pytest.raises(CommandError, match="leave out") as error:
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


def test_refresh_of_an_account_prints_one_json_object(credential: Credential) -> None:
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
    """Three that are due, the second of which is the most urgent; and one that is not."""
    for minutes, account in ((2, MANY[0]), (3, MANY[1]), (1, MANY[2])):
        connect(account, seconds_left=-1)
        due_at = timezone.now() - timedelta(minutes=minutes)
        Credential.objects.filter(account=account).update(refresh_at=due_at)
    connect("ab123")


def test_dry_run_shows_what_is_due_with_the_most_urgent_first(
    three_due: None, sandbox: Sandbox
) -> None:
    before = list(Credential.objects.order_by("pk").values())
    output, code = run("infusionsoft_refresh", "--dry-run")
    *lines, last = output.splitlines()
    assert [line.split()[0] for line in lines] == [MANY[1], MANY[0], MANY[2]]
    assert f"due since {timezone.localtime():%Y-%m}" in lines[0]
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


def test_dry_run_says_that_an_account_which_needs_a_person_is_not_due(
    credential: Credential,
) -> None:
    Credential.objects.update(status="reauthorization_required", reason="revoked", refresh_at=None)
    output, _ = run("infusionsoft_refresh", "--dry-run", "--account", "ab123")
    assert output == "ab123: needs attention, not due\n"


@pytest.mark.parametrize(("account", "is_due"), [(MANY[0], True), ("ab123", False)])
def test_dry_run_of_an_account_prints_one_json_object(
    three_due: None, account: str, is_due: bool
) -> None:
    facts = json.loads(
        run("infusionsoft_refresh", "--dry-run", f"--account={account}", "--json")[0]
    )
    assert (facts["account"], facts["due"]) == (account, is_due)


def test_dry_run_says_what_is_wrong_when_the_account_is_unknown(db: None) -> None:
    with pytest.raises(CommandError, match="'xy999'"):
        run("infusionsoft_refresh", "--dry-run", "--account", "xy999")


# Real processes


@pytest.fixture
def command(sandbox: Sandbox, database_url: str) -> Start:
    """Start ``infusionsoft_refresh`` with its arguments, as cron or a person does."""

    def start(*arguments: str, **options: Any) -> AbstractContextManager["Popen[str]"]:
        return started(
            "-m",
            "django",
            "infusionsoft_refresh",
            *arguments,
            database_url=database_url,
            settings={**sandbox.settings, "INFUSIONSOFT_REFRESH_CONCURRENCY": 2},
            stdout=PIPE,
            **options,
        )

    return start


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let the processes of a test get these signals, also where this one ignores them."""
    handlers: dict[int, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {signum: signal.signal(signum, each) for signum, each in handlers.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def many_due(connect: Callable[..., Credential], database_url: str) -> None:
    for account in MANY:
        connect(account, seconds_left=-1)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_run_ends_cleanly_when_it_is_interrupted(
    signum: signal.Signals,
    sandbox: Sandbox,
    many_due: None,
    command: Start,
    interruptible: None,
) -> None:
    gate = sandbox.hold("after")
    sandbox.plan(faults.latency(0.3), times=None)
    with command("--json", stderr=PIPE) as process:
        gate.wait_until_processed(timeout=20)
        process.send_signal(signum)
        gate.release()
        assert process.stdout
        assert process.stderr
        facts = json.loads(process.stdout.read())
        assert process.stderr.read() == ""
        state = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert state is not None
        # To a shell this is 128 + the number.
        assert (state.si_code, state.si_status) == (os.CLD_KILLED, signum)
    assert facts["ended"] == "stop"
    assert 0 < facts["refreshed"] < len(MANY)
    assert not Credential.objects.filter(lease_until__isnull=False).exists()
    assert Credential.objects.filter(generation=2).count() == facts["refreshed"]
    assert Credential.objects.due().count() == len(MANY) - facts["refreshed"]
    assert len(sandbox.token_requests) == facts["refreshed"]


def test_answer_is_stored_when_the_refresh_of_an_account_is_terminated(
    sandbox: Sandbox, expired: Credential, command: Start
) -> None:
    gate = sandbox.hold("after")
    with command("--account", "ab123") as process:
        gate.wait_until_processed(timeout=20)
        process.terminate()
        gate.release()
        assert process.stdout
        assert process.stdout.read().startswith("ab123: refreshed, ")
    assert Credential.objects.get().generation == 2


def test_wrong_usage_exits_with_2(command: Start, database_url: str) -> None:
    with command("--time-limit", "soon", stderr=PIPE) as process:
        assert process.stderr
        assert "'soon' is not a number of seconds above 0" in process.stderr.read()
        state = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert state is not None
        assert (state.si_code, state.si_status) == (os.CLD_EXITED, 2)


def read_all(terminal: int) -> str:
    """Return what was written to a terminal until its last user left it."""
    parts = []
    with suppress(OSError):  # which is how Linux says so
        while part := os.read(terminal, 4096):
            parts.append(part)
    return b"".join(parts).decode()


def test_bar_is_drawn_on_a_terminal_of_its_width(
    many_due: None, command: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # which would be believed first
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 50))
    with command(stderr=theirs) as process:
        os.close(theirs)
        shown = read_all(ours)
        assert process.stdout
        counts = process.stdout.read()
    os.close(ours)
    first, *_, last = drawn = shown.split("\r")[1:-1]  # the terminal itself adds one to the end
    assert {len(line) for line in drawn} == {49}
    assert f" 0/{len(MANY)}" in first
    assert f"#] {len(MANY)}/{len(MANY)} " in last
    assert last.endswith("/s failed=0")
    assert counts.startswith(f"refreshed={len(MANY)} ")


def test_plain_lines_are_written_where_there_is_no_terminal(
    many_due: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lines, "pause_seconds", 0)
    errors = StringIO()
    call_command("infusionsoft_refresh", stdout=StringIO(), stderr=errors)
    *_, last = errors.getvalue().splitlines()
    assert last.startswith(f"{len(MANY)} ")
    assert last.endswith("/s failed=0")
    assert "\r" not in errors.getvalue()


# infusionsoft_status


@pytest.mark.parametrize("command", ["infusionsoft_status", "infusionsoft_refresh"])
def test_no_secret_is_printed(command: str, expired: Credential) -> None:
    output, _ = run(command)
    expired.refresh_from_db()
    assert expired.access_token not in output
    assert expired.refresh_token not in output
