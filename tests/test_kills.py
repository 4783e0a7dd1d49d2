"""Processes die or sleep at each step of a refresh: only an answer that nobody read is lost.

That the spool is empty in the end is said by its fixture.
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
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ReauthorizationRequired
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox
from tests.processes import started
from tests.support import end_leases, received, threads

pytestmark = pytest.mark.django_db(transaction=True)

Step = Literal[
    "not claimed",
    "claimed",
    "processed by Keap",
    "in the spool",
    "stored",
    "out of the spool",
    "told",
]
Process = Popen[str]
Start = Callable[[], AbstractContextManager[Process]]
Victim = Callable[..., AbstractContextManager[Process]]
Kill = Callable[[Step], Process]
Wait = Callable[[], None]
Connect = Callable[..., Credential]

# One for each thing that can have become of a credential when the process of a run dies.
TOLD, READ, UNREAD, ARRIVED, UNTOUCHED = ACCOUNTS = ("ab123", "bc234", "cd345", "de456", "ef567")
# A lease that a test can wait for, and a second more than the longest call.
SHORT_LEASE = {
    "INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS": 0.5,
    "INFUSIONSOFT_READ_TIMEOUT_SECONDS": 0.5,
    "INFUSIONSOFT_LEASE_SECONDS": 3.5,
}


@pytest.fixture
def answered() -> "Queue[str]":
    """One line for each answer that has left the sandbox."""
    return Queue()


@pytest.fixture
def sandbox(answered: "Queue[str]") -> Iterator[Sandbox]:
    """Keap with an account for each way in which a run can be interrupted."""
    with (
        Sandbox(accounts=ACCOUNTS, access_log=answered.put) as running,
        override_settings(**running.settings),
    ):
        yield running


@pytest.fixture
def victim(sandbox: Sandbox, database_url: str) -> Victim:
    """Start ``tests.victim`` with its arguments, and settings of its own."""

    def start(*arguments: str, **settings: Any) -> AbstractContextManager[Process]:
        return started(
            "-m",
            "tests.victim",
            *arguments,
            database_url=database_url,
            settings={**sandbox.settings, **settings},
            stdout=PIPE,
        )

    return start


@pytest.fixture
def command(sandbox: Sandbox, database_url: str) -> Start:
    """Start the command that cron starts."""
    return lambda: started(
        "-m",
        "django",
        "infusionsoft_refresh",
        database_url=database_url,
        settings=sandbox.settings,
        stdout=PIPE,
    )


@pytest.fixture
def let_time_pass(spool: Path, backdated: Wait) -> Wait:
    """Let every lease have ended. None is longer than it is meant to be."""

    def let() -> None:
        longest = timezone.now() + timedelta(seconds=conf.LEASE_SECONDS)
        assert not Credential.objects.filter(lease_until__gt=longest)
        end_leases()
        if spool.exists():
            backdated()

    return let


def fate(process: Process) -> Signals:
    """Wait until a signal has stopped or ended a process, and return which."""
    # The process stays waitable: it is the caller's, and its number is nobody else's so long.
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert state is not None
    assert state.si_code != os.CLD_EXITED, process.stdout and process.stdout.read()
    return Signals(state.si_status)


def last_words(process: Process) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def name_of(process: Process) -> str:
    """Return how the history calls a process."""
    return f"{socket.gethostname()}:{process.pid}"


def stored(credential: Credential) -> Credential:
    return Credential.objects.get(pk=credential.pk)


def history(credential: Credential) -> str:
    return " ".join(event.kind for event in credential.events.order_by("pk"))


def abandoned_by(credential: Credential) -> list[str]:
    events = credential.events.filter(kind="abandoned").order_by("pk")
    return [event.worker for event in events]


def state(credential: Credential, sandbox: Sandbox) -> str:
    """Return "alive" where the row has the refresh token that works, else why it has not."""
    row = stored(credential)
    assert row.lease_until is None
    if any(grant.refresh_token == row.refresh_token for grant in sandbox.live_grants):
        assert (row.status, row.reason) == ("connected", "")
        return "alive"
    assert row.status == "reauthorization_required"
    return row.reason


@pytest.fixture
def killed_when(sandbox: Sandbox, victim: Victim, expired: Credential) -> Kill:
    """Let a process begin a refresh and be killed at a step of it."""

    def kill(step: Step) -> Process:
        if step != "processed by Keap":
            with victim("refresh", step, "SIGKILL") as process:
                assert fate(process) == SIGKILL
            return process
        gate = sandbox.hold("after")
        with victim("refresh") as process:
            gate.wait_until_processed(timeout=20)
            process.kill()
            assert fate(process) == SIGKILL
        gate.release()
        return process

    return kill


# kill -9


@pytest.mark.parametrize(
    ("step", "grant", "presentations", "said"),
    [
        ("not claimed", "alive", 1, "imported refreshed"),
        ("claimed", "alive", 1, "imported abandoned refreshed"),
        ("processed by Keap", "rotation_lost", 2, "imported abandoned reauthorization_required"),
        ("in the spool", "alive", 1, "imported recovered"),
        ("stored", "alive", 1, "imported"),
        ("out of the spool", "alive", 1, "imported"),
        ("told", "alive", 1, "imported refreshed"),
    ],
)
def test_next_run_finds_what_a_killed_process_left(
    sandbox: Sandbox,
    expired: Credential,
    killed_when: Kill,
    let_time_pass: Wait,
    step: Step,
    grant: str,
    presentations: int,
    said: str,
) -> None:
    process = killed_when(step)
    let_time_pass()
    with received(signals.reauthorization_required) as told:
        Credential.objects.refresh_due()
    assert state(expired, sandbox) == grant
    assert sandbox.presentations(expired.refresh_token) == presentations
    assert history(expired) == said
    assert abandoned_by(expired) == [name_of(process)] * said.count("abandoned")
    assert [call["reason"] for call in told] == [grant] * (grant == "rotation_lost")


@pytest.mark.parametrize(
    ("step", "grant", "presentations", "said"),
    [
        ("claimed", "alive", 1, "imported abandoned refreshed"),
        ("processed by Keap", "rotation_lost", 2, "imported abandoned reauthorization_required"),
        ("in the spool", "alive", 1, "imported recovered"),
    ],
)
def test_next_reader_finds_what_a_killed_process_left(
    sandbox: Sandbox,
    expired: Credential,
    killed_when: Kill,
    let_time_pass: Wait,
    step: Step,
    grant: str,
    presentations: int,
    said: str,
) -> None:
    process = killed_when(step)
    let_time_pass()
    if grant == "alive":
        assert stored(expired).session().get("v2/contacts").status_code == 200
    else:
        with pytest.raises(ReauthorizationRequired, match="never arrived"):
            stored(expired).get_access_token()
    assert state(expired, sandbox) == grant
    assert sandbox.presentations(expired.refresh_token) == presentations
    assert history(expired) == said
    assert abandoned_by(expired) == [name_of(process)] * said.count("abandoned")


@pytest.mark.parametrize("step", ["processed by Keap", "in the spool"])
def test_killed_processs_lease_is_left_alone_until_it_ends(
    sandbox: Sandbox,
    expired: Credential,
    killed_when: Kill,
    let_time_pass: Wait,
    step: Step,
) -> None:
    killed_when(step)
    before = len(sandbox.token_requests)
    assert sum(Credential.objects.refresh_due().as_dict().values()) == 0
    assert len(sandbox.token_requests) == before
    assert history(expired) == "imported"
    let_time_pass()
    Credential.objects.refresh_due()


def test_nothing_is_presented_a_third_time_when_the_repeat_was_killed_too(
    sandbox: Sandbox, expired: Credential, killed_when: Kill, let_time_pass: Wait
) -> None:
    processes = []
    for _ in range(2):
        processes.append(killed_when("processed by Keap"))
        let_time_pass()
    Credential.objects.refresh_due()
    assert state(expired, sandbox) == "unanswered"
    assert sandbox.presentations(expired.refresh_token) == 2
    assert history(expired) == "imported abandoned abandoned reauthorization_required"
    assert abandoned_by(expired) == [name_of(process) for process in processes]


@pytest.mark.parametrize(
    ("step", "said"), [("in the spool", "imported recovered"), ("out of the spool", "imported")]
)
def test_each_credential_of_a_killed_runs_batch_is_judged_by_how_far_it_came(
    sandbox: Sandbox,
    connect: Connect,
    victim: Victim,
    let_time_pass: Wait,
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
    sandbox.hold("before", account=UNTOUCHED)  # which a thread that has become free may send
    # The first one alone, then three of the other four, with the fourth claimed ahead.
    with victim("run", step, "SIGKILL", "2", INFUSIONSOFT_REFRESH_CONCURRENCY=3) as process:
        read.wait_until_processed(timeout=20)
        unread.wait_until_processed()
        arrived.wait_until_arrived()
        read.release()
        assert fate(process) == SIGKILL
    unread.release()
    let_time_pass()
    sandbox.clear_plan()
    with received(signals.reauthorization_required) as told:
        run = Credential.objects.refresh_due()
    assert {account: state(each, sandbox) for account, each in batch.items()} == {
        TOLD: "alive",
        READ: "alive",
        UNREAD: "rotation_lost",
        ARRIVED: "alive",
        UNTOUCHED: "alive",
    }
    assert {account: history(each) for account, each in batch.items()} == {
        TOLD: "imported refreshed",
        READ: said,
        UNREAD: "imported abandoned reauthorization_required",
        ARRIVED: "imported abandoned refreshed",
        # Claimed ahead: whether it was sent cannot be told afterwards.
        UNTOUCHED: "imported abandoned refreshed",
    }
    assert abandoned_by(batch[UNREAD]) == abandoned_by(batch[ARRIVED]) == [name_of(process)]
    assert [call["credential"].account for call in told] == [UNREAD]
    assert run.rejected == 1
    assert [sandbox.presentations(batch[each].refresh_token) for each in (TOLD, READ)] == [1, 1]


# SIGSTOP, SIGCONT


@pytest.mark.parametrize("step", ["claimed", "connected"])
def test_nothing_is_sent_by_a_process_that_was_stopped_until_its_lease_was_over(
    sandbox: Sandbox, expired: Credential, victim: Victim, step: str
) -> None:
    with victim("refresh", step, "SIGSTOP", **SHORT_LEASE) as process:
        assert fate(process) == SIGSTOP
        token = expired.get_access_token()  # waits until the lease has really ended
        process.send_signal(SIGCONT)
        assert last_words(process) == "done"
    assert [request.outcome for request in sandbox.token_requests] == ["rotated"]
    assert stored(expired).access_token == token
    assert state(expired, sandbox) == "alive"
    assert history(expired) == "imported abandoned refreshed"
    assert abandoned_by(expired) == [name_of(process)]


def test_answer_that_came_while_its_process_was_stopped_brings_the_grant_back(
    sandbox: Sandbox, expired: Credential, victim: Victim, answered: "Queue[str]"
) -> None:
    gate = sandbox.hold("after")
    with victim("refresh", "waiting", "SIGSTOP", **SHORT_LEASE) as process:
        assert fate(process) == SIGSTOP
        gate.wait_until_processed()
        with pytest.raises(ReauthorizationRequired):
            expired.get_access_token()  # once the lease has really ended, the repeat
        assert state(expired, sandbox) == "rotation_lost"
        answered.get(timeout=10)  # the repeat's
        gate.release()
        answered.get(timeout=10)  # the one that the process has not waited for
        process.send_signal(SIGCONT)
        assert last_words(process) == "done"
    assert state(expired, sandbox) == "alive"
    assert sandbox.presentations(expired.refresh_token) == 2
    assert history(expired) == "imported abandoned reauthorization_required refreshed"


def test_pair_is_stored_once_when_its_process_was_stopped_before_storing_it(
    sandbox: Sandbox, expired: Credential, victim: Victim, let_time_pass: Wait
) -> None:
    with victim("refresh", "in the spool", "SIGSTOP") as process:
        assert fate(process) == SIGSTOP
        let_time_pass()
        Credential.objects.refresh_due()
        assert (state(expired, sandbox), history(expired)) == ("alive", "imported recovered")
        process.send_signal(SIGCONT)
        assert last_words(process) == "done"
    assert state(expired, sandbox) == "alive"
    assert stored(expired).generation == 2
    assert len(sandbox.token_requests) == 1
    assert not expired.events.filter(kind="late_reply_dropped").exists()


# The database takes back what a stopped process has locked, or the reader would wait as long.
def test_living_access_token_is_served_when_a_run_was_stopped_while_it_claimed_a_batch(
    sandbox: Sandbox, connect: Connect, victim: Victim
) -> None:
    credential = connect(seconds_left=200)
    now = timezone.now()
    Credential.objects.update(refresh_at=now, issued_at=now - timedelta(hours=23))
    with threads(1) as start, victim("run", "picked", "SIGSTOP") as process:
        assert fate(process) == SIGSTOP
        reader = start(stored(credential).get_access_token)
        assert reader.result(timeout=8)


# SIGTERM of the command


@pytest.mark.parametrize("where", ["before", "after"])
def test_answer_is_awaited_and_stored_when_the_command_is_terminated_while_it_waits_for_keap(
    sandbox: Sandbox, expired: Credential, command: Start, where: Literal["before", "after"]
) -> None:
    gate = sandbox.hold(where)
    with command() as process:
        if where == "before":
            gate.wait_until_arrived(timeout=20)
        else:
            gate.wait_until_processed(timeout=20)
        process.terminate()
        gate.release()
        assert fate(process) == SIGTERM
    assert state(expired, sandbox) == "alive"
    assert history(expired) == "imported refreshed"
    assert sandbox.presentations(expired.refresh_token) == 1


@pytest.mark.parametrize("step", ["claimed", "in the spool", "stored", "told"])
def test_pair_is_stored_and_told_when_the_command_is_terminated_at_a_step(
    sandbox: Sandbox, expired: Credential, victim: Victim, step: Step
) -> None:
    with victim("run", step, "SIGTERM") as process:
        assert fate(process) == SIGTERM
    assert state(expired, sandbox) == "alive"
    assert history(expired) == "imported refreshed"
    assert len(sandbox.token_requests) == 1


def test_nothing_more_is_sent_when_the_command_is_terminated(
    sandbox: Sandbox, connect: Connect, victim: Victim
) -> None:
    batch = [connect(account, seconds_left=-1) for account in ACCOUNTS]
    # Only the first one is sent before it is known that Keap answers.
    with victim("run", "in the spool", "SIGTERM") as process:
        assert fate(process) == SIGTERM
    assert len(sandbox.token_requests) == 1
    assert [state(each, sandbox) for each in batch] == ["alive"] * len(batch)
    assert sorted(history(each) for each in batch) == [
        *["imported"] * (len(batch) - 1),
        "imported refreshed",
    ]
    assert Credential.objects.due().count() == len(batch) - 1
