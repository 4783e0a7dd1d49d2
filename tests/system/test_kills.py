"""Processes are killed or stopped at each step of a refresh: only unread answers are lost.

The fixture of the spool checks that it is empty at the end.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from queue import Queue
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from subprocess import PIPE, Popen
from typing import Any, Literal

import pytest
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft import signals
from django_infusionsoft.exceptions import ReauthorizationRequired
from django_infusionsoft.keap.transport import lease_seconds
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox
from tests.processes import started
from tests.support import ask, end_leases, received, threads

pytestmark = [pytest.mark.every_database, pytest.mark.django_db(transaction=True)]

Step = Literal[
    "not claimed",
    "claimed",
    "processed by Keap",
    "in the spool",
    "stored",
    "out of the spool",
    "reported",
]
Process = Popen[str]
StartProcess = Callable[[], AbstractContextManager[Process]]
StartInterrupted = Callable[..., AbstractContextManager[Process]]
Kill = Callable[[Step], Process]
ExpireLeases = Callable[[], None]
Connect = Callable[..., Credential]

# One for each state of a credential that is possible when the process of a run dies.
ACCOUNTS = ("ab123", "bc234", "cd345", "de456", "ef567")
REPORTED, READ, UNREAD, ARRIVED, UNTOUCHED = ACCOUNTS
# A lease of three seconds, which a test can wait for.
SHORT_LEASE = {
    "INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS": 0.5,
    "INFUSIONSOFT_READ_TIMEOUT_SECONDS": 0.5,
}


@pytest.fixture
def answered() -> "Queue[str]":
    """A queue with one line for each answer that the sandbox has sent."""
    return Queue()


@pytest.fixture
def sandbox(answered: "Queue[str]") -> Iterator[Sandbox]:
    """Run Keap with an account for each way in which a run can be interrupted."""
    with (
        Sandbox(accounts=ACCOUNTS, access_log=answered.put) as running,
        override_settings(**running.settings),
    ):
        yield running


@pytest.fixture
def interrupted(sandbox: Sandbox, database_url: str) -> StartInterrupted:
    """Start ``tests.system.interrupted_process`` with arguments and settings."""

    def start(*arguments: str, **settings: Any) -> AbstractContextManager[Process]:
        return started(
            "-m",
            "tests.system.interrupted_process",
            *arguments,
            database_url=database_url,
            settings={**sandbox.settings, **settings},
            stdout=PIPE,
        )

    return start


@pytest.fixture
def command(sandbox: Sandbox, database_url: str) -> StartProcess:
    """Start the command as cron does."""
    return lambda: started(
        "-m",
        "django",
        "infusionsoft_refresh",
        database_url=database_url,
        settings=sandbox.settings,
        stdout=PIPE,
    )


@pytest.fixture
def expire_leases(spool: Path, backdated: ExpireLeases) -> ExpireLeases:
    """Expire every lease. Check first that none is longer than it should be."""

    def expire() -> None:
        longest = timezone.now() + timedelta(seconds=lease_seconds())
        assert not Credential.objects.filter(lease_until__gt=longest)
        end_leases()
        Credential.objects.filter(is_unreported=True).update(
            issued_at=timezone.now() - timedelta(seconds=lease_seconds() + 1)
        )
        if spool.exists():
            backdated()

    return expire


def wait_for_signal(process: Process) -> Signals:
    """Wait until a signal has stopped or killed a process; return the signal."""
    # WNOWAIT: the caller can still wait for the process, so its ID is not reused.
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert state is not None
    assert state.si_code != os.CLD_EXITED, process.stdout and process.stdout.read()
    return Signals(state.si_status)


def read_result(process: Process) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def worker_name(process: Process) -> str:
    """Return the name of a process in the history."""
    return f"{socket.gethostname()}:{process.pid}"


def stored(credential: Credential) -> Credential:
    return Credential.objects.get(pk=credential.pk)


def history(credential: Credential) -> str:
    return " ".join(event.kind for event in credential.events.order_by("pk"))


def abandoned_by(credential: Credential) -> list[str]:
    events = credential.events.filter(kind="abandoned").order_by("pk")
    return [event.worker for event in events]


def state(credential: Credential, sandbox: Sandbox) -> str:
    """Return "alive" if the row has the valid refresh token, otherwise the reason."""
    row = stored(credential)
    assert row.lease_until is None
    if any(grant.refresh_token == row.refresh_token for grant in sandbox.live_grants):
        assert (row.status, row.reason) == ("connected", "")
        return "alive"
    assert row.status == "reauthorization_required"
    return row.reason


@pytest.fixture
def killed_when(sandbox: Sandbox, interrupted: StartInterrupted, expired: Credential) -> Kill:
    """Start a process that refreshes, and kill it at a step."""

    def kill(step: Step) -> Process:
        if step != "processed by Keap":
            with interrupted("refresh", step, "SIGKILL") as process:
                assert wait_for_signal(process) == SIGKILL
            return process
        gate = sandbox.hold("after")
        with interrupted("refresh") as process:
            gate.wait_until_processed(timeout=20)
            process.kill()
            assert wait_for_signal(process) == SIGKILL
        gate.release()
        return process

    return kill


# kill -9


# The step of the process that is killed; what becomes of the grant, how many times its refresh
# token is presented, and the history.
KILLS = [
    ("not claimed", "alive", 1, "imported refreshed"),
    ("stored", "alive", 1, "imported refreshed"),
    ("out of the spool", "alive", 1, "imported refreshed"),
    ("reported", "alive", 1, "imported refreshed"),
    ("claimed", "alive", 1, "imported abandoned refreshed"),
    ("processed by Keap", "rotation_lost", 2, "imported abandoned reauthorization_required"),
    ("in the spool", "alive", 1, "imported recovered"),
]


@pytest.mark.parametrize(
    ("way", "step", "grant", "presentations", "said"),
    [("run", *each) for each in KILLS] + [("reader", *each) for each in KILLS[4:]],
)
def test_next_run_or_reader_recovers_from_a_killed_process(
    sandbox: Sandbox,
    expired: Credential,
    killed_when: Kill,
    expire_leases: ExpireLeases,
    way: str,
    step: Step,
    grant: str,
    presentations: int,
    said: str,
) -> None:
    process = killed_when(step)
    expire_leases()
    with received(signals.reauthorization_required) as calls:
        if way == "run":
            Credential.objects.refresh_due()
        else:
            assert (ask(expired) == "ReauthorizationRequired") == (grant == "rotation_lost")
    assert state(expired, sandbox) == grant
    assert sandbox.presentations(expired.refresh_token) == presentations
    assert history(expired) == said
    assert abandoned_by(expired) == [worker_name(process)] * said.count("abandoned")
    assert [call["reason"] for call in calls] == [grant] * (grant == "rotation_lost")


@pytest.mark.parametrize("step", ["processed by Keap", "in the spool"])
def test_lease_of_a_killed_process_is_respected_until_it_expires(
    sandbox: Sandbox,
    expired: Credential,
    killed_when: Kill,
    expire_leases: ExpireLeases,
    step: Step,
) -> None:
    killed_when(step)
    before = len(sandbox.token_requests)
    assert sum(Credential.objects.refresh_due().as_dict().values()) == 0
    assert len(sandbox.token_requests) == before
    assert history(expired) == "imported"
    expire_leases()
    Credential.objects.refresh_due()


def test_nothing_is_presented_a_third_time_when_the_retry_was_killed_too(
    sandbox: Sandbox, expired: Credential, killed_when: Kill, expire_leases: ExpireLeases
) -> None:
    processes = []
    for _ in range(2):
        processes.append(killed_when("processed by Keap"))
        expire_leases()
    Credential.objects.refresh_due()
    assert state(expired, sandbox) == "unanswered"
    assert sandbox.presentations(expired.refresh_token) == 2
    assert history(expired) == "imported abandoned abandoned reauthorization_required"
    assert abandoned_by(expired) == [worker_name(process) for process in processes]


@pytest.mark.parametrize(
    ("step", "said"),
    [("in the spool", "imported recovered"), ("out of the spool", "imported refreshed")],
)
def test_each_credential_of_a_batch_recovers_from_its_own_step_when_a_run_is_killed(
    sandbox: Sandbox,
    connect: Connect,
    interrupted: StartInterrupted,
    expire_leases: ExpireLeases,
    step: Step,
    said: str,
) -> None:
    batch = {account: connect(account, seconds_left=-1) for account in ACCOUNTS}
    for place, credential in enumerate(batch.values()):
        due = timezone.now() - timedelta(seconds=60 - place)
        Credential.objects.filter(pk=credential.pk).update(refresh_at=due)
    read = sandbox.hold("after", account=READ)
    unread = sandbox.hold("after", account=UNREAD)
    arrived = sandbox.hold("before", account=ARRIVED)
    sandbox.hold("before", account=UNTOUCHED)  # a free thread may send it
    # First one alone, then three of the other four; the fourth is claimed in advance.
    with interrupted("run", step, "SIGKILL", "2", INFUSIONSOFT_REFRESH_CONCURRENCY=3) as process:
        read.wait_until_processed(timeout=20)
        unread.wait_until_processed()
        arrived.wait_until_arrived()
        read.release()
        assert wait_for_signal(process) == SIGKILL
    unread.release()
    expire_leases()
    sandbox.clear_plan()
    with received(signals.reauthorization_required) as calls:
        run = Credential.objects.refresh_due()
    assert {account: state(each, sandbox) for account, each in batch.items()} == {
        REPORTED: "alive",
        READ: "alive",
        UNREAD: "rotation_lost",
        ARRIVED: "alive",
        UNTOUCHED: "alive",
    }
    assert {account: history(each) for account, each in batch.items()} == {
        REPORTED: "imported refreshed",
        READ: said,
        UNREAD: "imported abandoned reauthorization_required",
        ARRIVED: "imported abandoned refreshed",
        # Claimed in advance: whether it was sent is unknown afterwards.
        UNTOUCHED: "imported abandoned refreshed",
    }
    assert abandoned_by(batch[UNREAD]) == abandoned_by(batch[ARRIVED]) == [worker_name(process)]
    assert [call["credential"].account for call in calls] == [UNREAD]
    assert run.rejected == 1
    presentations = [sandbox.presentations(batch[each].refresh_token) for each in (REPORTED, READ)]
    assert presentations == [1, 1]


# SIGSTOP, SIGCONT


@pytest.mark.parametrize("step", ["claimed", "connected"])
def test_nothing_is_sent_by_a_process_that_was_stopped_until_its_lease_expired(
    sandbox: Sandbox, expired: Credential, interrupted: StartInterrupted, step: str
) -> None:
    with interrupted("refresh", step, "SIGSTOP", **SHORT_LEASE) as process:
        assert wait_for_signal(process) == SIGSTOP
        token = expired.get_access_token()  # waits until the lease has really expired
        process.send_signal(SIGCONT)
        assert read_result(process) == "done"
    assert [request.outcome for request in sandbox.token_requests] == ["rotated"]
    assert stored(expired).access_token == token
    assert state(expired, sandbox) == "alive"
    assert history(expired) == "imported abandoned refreshed"
    assert abandoned_by(expired) == [worker_name(process)]


def test_grant_is_restored_by_an_answer_that_arrived_while_its_process_was_stopped(
    sandbox: Sandbox, expired: Credential, interrupted: StartInterrupted, answered: "Queue[str]"
) -> None:
    gate = sandbox.hold("after")
    with interrupted("refresh", "waiting", "SIGSTOP", **SHORT_LEASE) as process:
        assert wait_for_signal(process) == SIGSTOP
        gate.wait_until_processed()
        with pytest.raises(ReauthorizationRequired):
            expired.get_access_token()  # retries once the lease has really expired
        assert state(expired, sandbox) == "rotation_lost"
        answered.get(timeout=10)  # that of the retry
        gate.release()
        answered.get(timeout=10)  # that of the stopped process
        process.send_signal(SIGCONT)
        assert read_result(process) == "done"
    assert state(expired, sandbox) == "alive"
    assert sandbox.presentations(expired.refresh_token) == 2
    assert history(expired) == "imported abandoned reauthorization_required refreshed"


def test_pair_is_stored_once_when_its_process_was_stopped_before_storing_it(
    sandbox: Sandbox,
    expired: Credential,
    interrupted: StartInterrupted,
    expire_leases: ExpireLeases,
) -> None:
    with interrupted("refresh", "in the spool", "SIGSTOP") as process:
        assert wait_for_signal(process) == SIGSTOP
        expire_leases()
        Credential.objects.refresh_due()
        assert (state(expired, sandbox), history(expired)) == ("alive", "imported recovered")
        process.send_signal(SIGCONT)
        assert read_result(process) == "done"
    assert state(expired, sandbox) == "alive"
    assert stored(expired).generation == 2
    assert len(sandbox.token_requests) == 1
    assert not expired.events.filter(kind="late_reply_dropped").exists()


# The database must end the lock of a stopped process. Otherwise the reader would wait for it.
def test_valid_access_token_is_returned_when_a_run_was_stopped_while_claiming_a_batch(
    sandbox: Sandbox, connect: Connect, interrupted: StartInterrupted
) -> None:
    credential = connect(seconds_left=200)
    now = timezone.now()
    Credential.objects.update(refresh_at=now, issued_at=now - timedelta(hours=23))
    with threads(1) as start, interrupted("run", "picked", "SIGSTOP") as process:
        assert wait_for_signal(process) == SIGSTOP
        reader = start(stored(credential).get_access_token)
        assert reader.result(timeout=8)


# SIGTERM of the command


@pytest.mark.parametrize("where", ["before", "after"])
def test_answer_is_stored_when_the_command_is_terminated_while_it_waits_for_keap(
    sandbox: Sandbox,
    expired: Credential,
    command: StartProcess,
    where: Literal["before", "after"],
) -> None:
    gate = sandbox.hold(where)
    with command() as process:
        if where == "before":
            gate.wait_until_arrived(timeout=20)
        else:
            gate.wait_until_processed(timeout=20)
        process.terminate()
        gate.release()
        assert wait_for_signal(process) == SIGTERM
    assert state(expired, sandbox) == "alive"
    assert history(expired) == "imported refreshed"
    assert sandbox.presentations(expired.refresh_token) == 1


@pytest.mark.parametrize("step", ["claimed", "in the spool", "stored", "reported"])
def test_pair_is_stored_and_reported_when_the_command_is_terminated_at_a_step(
    sandbox: Sandbox, expired: Credential, interrupted: StartInterrupted, step: Step
) -> None:
    with interrupted("run", step, "SIGTERM") as process:
        assert wait_for_signal(process) == SIGTERM
    assert state(expired, sandbox) == "alive"
    assert history(expired) == "imported refreshed"
    assert len(sandbox.token_requests) == 1


def test_nothing_more_is_sent_when_the_command_is_terminated(
    sandbox: Sandbox, connect: Connect, interrupted: StartInterrupted
) -> None:
    batch = [connect(account, seconds_left=-1) for account in ACCOUNTS]
    # Only the first one is sent until Keap has answered.
    with interrupted("run", "in the spool", "SIGTERM") as process:
        assert wait_for_signal(process) == SIGTERM
    assert len(sandbox.token_requests) == 1
    assert [state(each, sandbox) for each in batch] == ["alive"] * len(batch)
    assert sorted(history(each) for each in batch) == [
        *["imported"] * (len(batch) - 1),
        "imported refreshed",
    ]
    assert Credential.objects.due().count() == len(batch) - 1
