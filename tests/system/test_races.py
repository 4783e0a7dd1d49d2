"""Many processes use one credential at once, on the database of the test run."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import ExitStack
from datetime import datetime, timedelta
from importlib.util import find_spec
from subprocess import PIPE, Popen
from threading import Event
from typing import Any, TypeVar

import pytest
import requests
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults
from django_infusionsoft.storage import credentials
from tests.processes import started
from tests.support import threads
from tests.system.racing_process import ACCOUNT

pytestmark = pytest.mark.every_database

T = TypeVar("T")
long, short = pytest.mark.long, pytest.mark.short

StartProcesses = Callable[..., list["Racer"]]

# These load their instance before the round starts.
LOADED_BEFORE = ["token", "session", "refresh", "command"]
if find_spec("celery"):
    LOADED_BEFORE.append("task")
# These load it themselves, so it may already have the new token pair.
LOADED_LATER = ["command_for_account", "admin_action"]
WAYS = LOADED_BEFORE + LOADED_LATER


class Racer:
    """Another process of the site, and the messages to and from it."""

    def __init__(self, process: "Popen[str]", threads: int) -> None:
        self.threads = threads
        self._process = process

    def send(self, what: object) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())


@pytest.fixture
def start(sandbox: Sandbox, database_url: str) -> Iterator[StartProcesses]:
    """Start processes: ``start(8, threads=8)``."""
    with ExitStack() as stack:

        def run(count: int, *, threads: int, seconds_ahead: int = 0) -> list[Racer]:
            arguments = ["-m", "tests.system.racing_process", str(threads), str(seconds_ahead)]
            options = {"stdin": PIPE, "stdout": PIPE}
            # Longer than Keap and this machine take.
            settings = {**sandbox.settings, "INFUSIONSOFT_WAIT_SECONDS": 60}
            processes = [
                started(*arguments, database_url=database_url, settings=settings, **options)
                for _ in range(count)
            ]
            racers = [Racer(stack.enter_context(each), threads) for each in processes]
            assert [each.receive() for each in racers] == ["ready"] * count
            return racers

        yield run


def prepare(racers: Sequence[Racer], ways: Sequence[str], *, is_shared: bool = False) -> None:
    """Let every thread load the credential, to use it in the given ways in turn."""
    ways_left = list(ways) * sum(each.threads for each in racers)
    for racer in racers:
        ways_of_racer = [ways_left.pop(0) for _ in range(racer.threads)]
        racer.send({"ways": ways_of_racer, "is_shared": is_shared})
    assert [each.receive() for each in racers] == ["loaded"] * len(racers)


def go(racers: Sequence[Racer]) -> None:
    """Start all threads; return when each has read the row as it was before the refresh."""
    for racer in racers:
        racer.send("go")
    assert [each.receive() for each in racers] == ["under way"] * len(racers)


def finish(racers: Sequence[Racer]) -> list[str]:
    """Return all access tokens that threads got; check that no thread failed."""
    results = [result for racer in racers for result in racer.receive()]
    assert [result["error"] for result in results] == [""] * len(results)
    return [access_token for result in results for access_token in result["access_tokens"]]


def age_access_token(sandbox: Sandbox, *, seconds_left: float = -1) -> None:
    """Change the row as if the access token expired in so many seconds; if it has, revoke it."""
    if seconds_left < 0:
        sandbox.revoke_access_tokens(ACCOUNT)
    ends_at = timezone.now() + timedelta(seconds=seconds_left)
    Credential.objects.update(
        issued_at=ends_at - timedelta(days=1), expires_at=ends_at, refresh_at=ends_at
    )


def seconds_until(moment: datetime | None) -> float:
    assert moment
    return (moment - timezone.now()).total_seconds()


def check_all_work(sandbox: Sandbox, access_tokens: Iterable[str]) -> None:
    for access_token in set(access_tokens):
        headers = {"Authorization": f"Bearer {access_token}"}
        requests.get(
            f"{sandbox.api_url}v2/contacts", headers=headers, timeout=10
        ).raise_for_status()


def check_grant_is_alive(sandbox: Sandbox) -> None:
    (grant,) = sandbox.live_grants
    assert Credential.objects.get().refresh_token == grant.refresh_token
    assert sandbox.replays == 0


@pytest.mark.parametrize(
    ("processes", "threads", "rounds"),
    [
        pytest.param(4, 4, 3, id="short", marks=short),
        pytest.param(8, 8, 14, id="long", marks=long),
    ],
)
def test_one_refresh_serves_all_when_processes_and_threads_ask_at_once(
    sandbox: Sandbox,
    credential: Credential,
    start: StartProcesses,
    processes: int,
    threads: int,
    rounds: int,
) -> None:
    racers = start(processes, threads=threads)
    for number in range(1, rounds + 1):
        age_access_token(sandbox)
        prepare(racers, ["token"])
        gate = sandbox.hold("after")
        go(racers)
        gate.wait_until_processed()
        gate.release()
        served = finish(racers)
        assert served == [Credential.objects.get().access_token] * (processes * threads)
        check_all_work(sandbox, served)
        assert len(sandbox.token_requests) == number
        check_grant_is_alive(sandbox)


@long
def test_one_refresh_serves_all_when_keap_takes_a_quarter_of_a_minute(
    sandbox: Sandbox, credential: Credential, start: StartProcesses
) -> None:
    racers = start(8, threads=8)
    age_access_token(sandbox)
    prepare(racers, ["token"])
    sandbox.plan(faults.latency_after(15))
    go(racers)
    served = finish(racers)
    assert served == [Credential.objects.get().access_token] * 64
    check_all_work(sandbox, served)
    assert len(sandbox.token_requests) == 1
    check_grant_is_alive(sandbox)


MIXED = pytest.mark.parametrize(
    ("processes", "rounds"),
    [pytest.param(2, 2, id="short", marks=short), pytest.param(4, 6, id="long", marks=long)],
)


@MIXED
def test_all_ways_to_refresh_share_one_refresh_when_used_at_once(
    sandbox: Sandbox,
    credential: Credential,
    admin_user: User,
    start: StartProcesses,
    processes: int,
    rounds: int,
) -> None:
    racers = start(processes, threads=len(WAYS))
    for number in range(1, rounds + 1):
        age_access_token(sandbox)
        prepare(racers, WAYS)
        gate = sandbox.hold("after")
        go(racers)
        gate.wait_until_processed()
        gate.release()
        served = finish(racers)
        assert set(served) == {Credential.objects.get().access_token}
        check_all_work(sandbox, served)
        assert len(sandbox.token_requests) == number
        check_grant_is_alive(sandbox)


@MIXED
def test_no_caller_fails_when_all_ways_to_refresh_overlap_at_random(
    sandbox: Sandbox,
    credential: Credential,
    admin_user: User,
    start: StartProcesses,
    processes: int,
    rounds: int,
) -> None:
    racers = start(processes, threads=len(WAYS))
    for _ in range(rounds):
        age_access_token(sandbox)
        prepare(racers, WAYS)
        before = len(sandbox.token_requests)
        go(racers)
        check_all_work(sandbox, finish(racers))
        # One for all, and one for each explicit refresh that starts when that one is done.
        explicit = processes * len(LOADED_LATER)
        assert 1 <= len(sandbox.token_requests) - before <= 1 + explicit
        check_grant_is_alive(sandbox)


@pytest.mark.parametrize(
    "rounds", [pytest.param(3, id="short", marks=short), pytest.param(11, id="long", marks=long)]
)
def test_every_access_token_works_when_threads_share_a_stale_instance(
    sandbox: Sandbox, credential: Credential, start: StartProcesses, rounds: int
) -> None:
    sharing = start(2, threads=8)
    others = start(1, threads=2)
    for _ in range(rounds):
        age_access_token(sandbox)
        prepare(sharing, ["tokens", "refresh", "session", "tokens"], is_shared=True)
        prepare(others, ["rotate"])
        go([*sharing, *others])
        check_all_work(sandbox, finish([*sharing, *others]))
        check_grant_is_alive(sandbox)


# Clocks


@pytest.mark.parametrize("hours", [1, -1])
@pytest.mark.parametrize("is_first", [True, False])
def test_one_refresh_serves_all_when_the_clock_of_one_process_is_wrong(
    sandbox: Sandbox,
    credential: Credential,
    start: StartProcesses,
    hours: int,
    is_first: bool,
) -> None:
    wrong, right = start(1, threads=4, seconds_ahead=hours * 3600), start(2, threads=4)
    racers = wrong + right if is_first else right + wrong
    age_access_token(sandbox)
    prepare(racers, ["token", "refresh", "session", "command"])
    gate = sandbox.hold("after")
    go(racers[:1])
    gate.wait_until_processed()
    go(racers[1:])
    assert 70 < seconds_until(Credential.objects.get().lease_until) < 130
    gate.release()
    served = finish(racers)
    row = Credential.objects.get()
    assert set(served) == {row.access_token}
    assert len(sandbox.token_requests) == 1
    check_grant_is_alive(sandbox)
    assert 86_340 < seconds_until(row.expires_at) < 86_400
    assert 0.6 * 86_400 < seconds_until(row.refresh_at) < 0.81 * 86_400


@pytest.mark.parametrize("hours", [1, -1])
def test_fresh_access_token_is_not_refreshed_when_the_clock_is_wrong(
    sandbox: Sandbox, credential: Credential, start: StartProcesses, hours: int
) -> None:
    racers = start(1, threads=3, seconds_ahead=hours * 3600)
    age_access_token(sandbox, seconds_left=1800)
    prepare(racers, ["token", "session", "command"])
    go(racers)
    assert finish(racers) == [credential.access_token]
    assert sandbox.token_requests == []


@pytest.mark.parametrize("hours", [1, -1])
def test_expired_access_token_is_refreshed_when_the_clock_is_wrong(
    sandbox: Sandbox, credential: Credential, start: StartProcesses, hours: int
) -> None:
    racers = start(1, threads=2, seconds_ahead=hours * 3600)
    for number, way in enumerate(["token", "session", "command"], start=1):
        age_access_token(sandbox, seconds_left=-1800)
        prepare(racers, [way])
        go(racers)
        check_all_work(sandbox, [*finish(racers), Credential.objects.get().access_token])
        assert len(sandbox.token_requests) == number
    check_grant_is_alive(sandbox)


# Threads of one process that share one instance, such as a module-level one


class Slow:
    """A thread that pauses after its first statement that contains some SQL."""

    def __init__(self, part_of_sql: str) -> None:
        self.has_read, self.may_continue = Event(), Event()
        self._part_of_sql = part_of_sql

    def run(self, function: Callable[[], T]) -> T:
        with connection.execute_wrapper(self._wrapper):
            return function()

    def _wrapper(self, execute: Any, sql: str, *rest: Any) -> Any:
        result = execute(sql, *rest)
        if self._part_of_sql in sql and not self.has_read.is_set():
            self.has_read.set()
            assert self.may_continue.wait(10)
        return result


def test_access_token_works_when_another_thread_read_the_row_before_it_was_rotated(
    transactional_db: None,
    sandbox: Sandbox,
    expired: Credential,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, slow = Credential.objects.for_account(ACCOUNT), Slow("is_leased")
    set_attribute = Credential.__setattr__
    with threads(1) as run:
        # As a thread does when the access token has expired.
        late = run(lambda: slow.run(lambda: credentials.reload(shared)))
        assert slow.has_read.wait(10)
        expired.refresh()

        def release_slow(self: Credential, name: str, value: Any) -> None:
            if name == "expires_at" and not slow.may_continue.is_set():
                slow.may_continue.set()
                wait([late], timeout=1)
            set_attribute(self, name, value)

        monkeypatch.setattr(Credential, "__setattr__", release_slow)
        served = shared.get_access_token()
        slow.may_continue.set()
    late.result()
    assert served == expired.access_token
    assert shared.get_access_token() == expired.access_token


def test_one_refresh_serves_a_thread_that_notices_the_result_late(
    transactional_db: None, sandbox: Sandbox, expired: Credential
) -> None:
    gate, slow = sandbox.hold("after"), Slow("lease_holder")
    with threads(2) as run:
        first = run(expired.get_access_token)
        gate.wait_until_processed()
        late = run(lambda: slow.run(expired.get_access_token))
        assert slow.has_read.wait(10)
        gate.release()
        served = first.result()
        slow.may_continue.set()
    assert late.result() == served
    assert len(sandbox.token_requests) == 1
