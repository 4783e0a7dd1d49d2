"""The commands in separate processes: signals, exit codes and terminals."""

import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from subprocess import PIPE, Popen
from typing import Any

import pytest
from django.test import override_settings

from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults
from tests.connect.test_importer import CANARY, LINE, grant, raw, stored
from tests.processes import ROOT, environment, started

StartProcess = Callable[..., AbstractContextManager["Popen[str]"]]

# More accounts than a run can refresh before it is interrupted.
MANY = tuple(f"ef{number}" for number in range(100, 124))
IMPORT = ("manage.py", "infusionsoft_import")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Run Keap with an account, and many more for a long run."""
    with Sandbox(accounts=("ab123", *MANY)) as running, override_settings(**running.settings):
        yield running


# The refresh


@pytest.fixture
def command(sandbox: Sandbox, database_url: str) -> StartProcess:
    """Start ``infusionsoft_refresh`` with its arguments, as cron or an operator does."""

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
    """Let child processes receive these signals, even if this process ignores them."""
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
    command: StartProcess,
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
        # A shell shows this as 128 + the number.
        assert (state.si_code, state.si_status) == (os.CLD_KILLED, signum)
    assert facts["ended"] == "stop"
    assert 0 < facts["refreshed"] < len(MANY)
    assert not Credential.objects.filter(lease_until__isnull=False).exists()
    assert Credential.objects.filter(generation=2).count() == facts["refreshed"]
    assert Credential.objects.due().count() == len(MANY) - facts["refreshed"]
    assert len(sandbox.token_requests) == facts["refreshed"]


def test_answer_is_stored_when_the_refresh_of_an_account_is_terminated(
    sandbox: Sandbox, expired: Credential, command: StartProcess
) -> None:
    gate = sandbox.hold("after")
    with command("--account", "ab123") as process:
        gate.wait_until_processed(timeout=20)
        process.terminate()
        gate.release()
        assert process.stdout
        assert process.stdout.read().startswith("ab123: refreshed, ")
    assert Credential.objects.get().generation == 2


def test_exit_code_is_2_when_the_usage_is_wrong(command: StartProcess, database_url: str) -> None:
    with command("--time-limit", "soon", stderr=PIPE) as process:
        assert process.stderr
        assert "'soon' is not a positive number of seconds" in process.stderr.read()
        state = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert state is not None
        assert (state.si_code, state.si_status) == (os.CLD_EXITED, 2)


def read_all(terminal: int) -> str:
    """Return the output to a terminal, until its last user has closed it."""
    parts = []
    with suppress(OSError):  # raised by Linux then
        while part := os.read(terminal, 4096):
            parts.append(part)
    return b"".join(parts).decode()


def test_progress_bar_is_as_wide_as_the_terminal(
    many_due: None, command: StartProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # it would take precedence
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 50))
    with command(stderr=theirs) as process:
        os.close(theirs)
        shown = read_all(ours)
        assert process.stdout
        counts = process.stdout.read()
    os.close(ours)
    first, *_, last = drawn = shown.split("\r")[1:-1]  # the terminal adds one at the end
    assert {len(line) for line in drawn} == {49}
    assert f" 0/{len(MANY)}" in first
    assert f"#] {len(MANY)}/{len(MANY)} " in last
    assert last.endswith("/s failed=0")
    assert counts.startswith(f"refreshed={len(MANY)} ")


# The status


@pytest.mark.parametrize(("is_lost", "expected"), [(False, 0), (True, 1)])
def test_status_exits_with_the_code(
    database_url: str,
    connect: Callable[..., Credential],
    sandbox: Sandbox,
    is_lost: bool,
    expected: int,
) -> None:
    connect()
    Credential.objects.refresh_due()
    if is_lost:
        Credential.objects.update(
            status="reauthorization_required", reason="revoked", refresh_at=None
        )
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


# The import


def test_all_reported_imports_are_stored_when_the_process_is_killed(
    sandbox: Sandbox, database_url: str
) -> None:
    with started(
        *IMPORT, database_url=database_url, settings=sandbox.settings, stdin=PIPE, stdout=PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(LINE) + "\n")
        process.stdin.flush()  # not closed: more lines would follow
        assert process.stdout.readline() == "line 1: ab123: imported\n"
    # The process has ended
    assert stored() == ("refresh-1-of-ab123", "connected")


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (["--access-token", CANARY], "", 2),
        ([CANARY], "", 2),
        (["--application", CANARY], "", 2),
        (["--traceback", "--application", CANARY], "", 1),
        (["--traceback"], raw(grant(expires_at=CANARY)).decode(), 1),
        (["--traceback"], f"[{CANARY}", 1),
        ([], "", 0),
    ],
)
def test_import_has_the_right_exit_code_and_prints_no_secret(
    database_url: str, sandbox: Sandbox, arguments: list[str], text: str, code: int
) -> None:
    process = subprocess.run(
        [sys.executable, *IMPORT, *arguments],
        env=environment(database_url, sandbox.settings),
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == code, process.stderr
    assert CANARY not in process.stdout + process.stderr
