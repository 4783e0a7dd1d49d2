"""Workers, crashes, people, a database and a Keap that fail, in any order: is a grant ever lost?

Hypothesis drives the app's own functions step by step, over a real database and the sandbox, and
shortens whatever breaks a promise to the fewest steps. The plain run is always the same one. To
explore, say how many examples: ``INFUSIONSOFT_TESTS_EXAMPLES=2000 pytest tests/test_model.py``;
each such run is another one, and ``--hypothesis-seed=N`` repeats it.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from django.conf import settings as django_settings
from django.db import OperationalError, connection
from django.db.models import F
from django.test import override_settings
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from django_infusionsoft import attempts, leases, spool
from django_infusionsoft.exceptions import InfusionsoftError
from django_infusionsoft.models import ApplicationState, Credential
from django_infusionsoft.oauth import NO_TOKEN, TokenPair
from django_infusionsoft.recovery import recover_all
from django_infusionsoft.sandbox import Sandbox, TokenRequest, faults

EXAMPLES = os.environ.get("INFUSIONSOFT_TESTS_EXAMPLES", "")
ACCOUNTS = ("ab123", "cd456")
DAY = 86_400
YEARS = 10 * 365 * DAY

UNREAD, KEPT = "process dies with the answer unread", "process dies with the answer kept"

# What befalls whoever asks Keap.
ANSWERS: dict[str, faults.Fault | None] = {
    "calm": None,
    "503": faults.error_503(),
    "client is wrong": None,
    "never arrives": faults.drop_before(),
    "answer is lost": faults.drop_after(),
    "answer is cut off": faults.drop_midway(),
    UNREAD: None,
}
HELD: dict[str, Literal["before", "after"]] = {
    "stays before Keap": "before",
    "stays behind Keap": "after",
}
# And whoever does all of it in one go.
WEATHERS = (
    *ANSWERS,
    "Keap is silent",
    KEPT,
    "database is away",
    "database does not confirm",
)
CHANGES = (
    "connect",
    "disconnect",
    "delete",
    "revoke",
    "set a wrong secret",
    "set the right secret",
)
CLAIMS = ("as the row is now", "as it was loaded", "by will", "with others")
DATABASES = ("calm", "database is away", "database does not confirm")

keep = spool.keep
accounts = st.sampled_from([ACCOUNTS[0], *ACCOUNTS])  # more often the same one
weathers = st.sampled_from([*["calm"] * 4, *WEATHERS])  # else most grants die young
# The time that passes before a step. Leases (2 minutes) and a probe's pause; every pause; a life.
pauses = st.sampled_from([0, 130, 5000, DAY])
naps = st.sampled_from([*[0] * 6, 130])  # a worker seldom sleeps beyond its lease
# Whichever step comes next, and whatever it needs to know.
steps = st.fixed_dictionaries(
    {
        "how": st.sampled_from(CLAIMS),
        "answer": st.sampled_from([*["calm"] * 3, *ANSWERS, *HELD, *HELD]),
        "weather": st.sampled_from(DATABASES),
        "dies": st.sampled_from([*[False] * 5, True]),
    }
)


class Killed(BaseException):
    """The end of a process: nothing is cleaned up."""


@dataclass(frozen=True)
class Place:
    """Where a pair stands in the order in which Keap has given them, grant by grant."""

    account: str
    grant: int
    number: int
    access_token: str = field(repr=False)


class Ledger:
    """Every pair that Keap has ever given, whoever has got it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._grants: dict[int, tuple[str, int]] = {}
        self._chains: dict[tuple[str, int], list[str]] = {}
        self.places: dict[str, Place] = {}
        self.access_tokens: dict[str, set[str]] = {account: set() for account in ACCOUNTS}

    def look(self) -> None:
        """Write down what is new; nobody gets two pairs of a grant between two looks."""
        for grant in self._sandbox.live_grants:
            account = grant.account.app_id
            if id(grant) not in self._grants:
                number = self.grants_of(account)
                self._grants[id(grant)] = account, number
                self._chains[account, number] = []
            chain = self._chains[self._grants[id(grant)]]
            if grant.refresh_token not in chain:
                chain.append(grant.refresh_token)
                (access_token,) = grant.access_tokens - self.access_tokens[account]
                self.access_tokens[account].add(access_token)
                self.places[grant.refresh_token] = Place(
                    *self._grants[id(grant)], len(chain), access_token
                )

    def next(self, refresh_token: str) -> str | None:
        """Return what a refresh token was exchanged for."""
        place = self.places[refresh_token]
        chain = self._chains[place.account, place.grant]
        return chain[place.number] if place.number < len(chain) else None

    def grants_of(self, account: str) -> int:
        return sum(name == account for name, _ in self._chains)


@dataclass(eq=False)
class Attempt:
    """What the model remembers of a lease and of the one presentation that it allows."""

    refresh_token: str
    is_presented: bool = False
    request: TokenRequest | None = None
    is_written: bool = False
    """Whether its outcome is in the database."""
    is_late: bool = False

    @property
    def is_answered(self) -> bool:
        """Whether its presentation, if there was one, came to an end that the database knows."""
        was_answered = self.request is not None and self.request.is_delivered
        return self.is_written and (was_answered or not self.is_presented)


@dataclass(eq=False)
class Worker:
    """A process between two of its steps."""

    claim: leases.Claim
    notes: Attempt
    generation: int
    attempt: attempts.Attempt | None = None
    call: "Future[attempts.Attempt] | None" = None
    gate: faults.Gate | None = None
    is_dead: bool = False


@contextmanager
def database(weather: str) -> Iterator[None]:
    """Let the database go away once a lease is taken, or write and not confirm."""

    def fail(execute: Any, sql: str, *rest: Any) -> Any:
        is_ours = sql.startswith("UPDATE") and "django_infusionsoft_credential" in sql
        if not is_ours or "CASE WHEN" in sql:  # which takes a lease
            return execute(sql, *rest)
        if weather == "database does not confirm":
            execute(sql, *rest)
        raise OperationalError(weather)

    if not weather.startswith("database"):
        yield
        return
    with connection.execute_wrapper(fail), suppress(OperationalError):
        yield


class Model(RuleBasedStateMachine):
    """Two credentials, any number of workers, and what was promised to the site."""

    folder: ClassVar[Path]
    sandbox: ClassVar[Sandbox]

    instances: Bundle[Credential] = Bundle("instances")

    def __init__(self) -> None:
        super().__init__()
        Credential.objects.all().delete()
        ApplicationState.objects.all().delete()
        for path in self.folder.glob("*"):
            path.unlink()
        for account in ACCOUNTS:  # what an earlier example has left
            self.sandbox.revoke(account)
        self.pool = ThreadPoolExecutor(50)
        self.local = threading.local()
        self.weather_now = "calm"
        self.ledger = Ledger(self.sandbox)
        self.seen = len(self.sandbox.token_requests)
        self.answers_read: set[str] = set()
        self.attempts: list[Attempt] = []
        self.all_workers: list[Worker] = []
        self.at_work: dict[int, Worker] = {}
        self.loaded: list[Credential] = []
        self.ended: set[tuple[str, int]] = set()
        self.disconnected: set[str] = set()
        self.generations: dict[int, tuple[int, str]] = {}
        self.last_places: dict[str, Place] = {}
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(spool, "keep", self._keep_or_die)

    @initialize(target=instances)
    def begin(self) -> MultipleResults[Credential]:
        return multiple(self._connect(ACCOUNTS[0]))

    # One step of a worker. One that dies forgets what it holds; one that is never told to go on
    # has died as well, and one that is told so late has slept.

    @rule(credential=instances, step=steps, later=naps)
    def one_worker(self, credential: Credential, step: dict[str, Any], later: int) -> None:
        self._let_pass(later)
        self._step(1, credential, **step)

    @rule(credential=instances, step=steps, later=naps)
    def another_worker(self, credential: Credential, step: dict[str, Any], later: int) -> None:
        self._let_pass(later)
        self._step(2, credential, **step)

    def _step(
        self,
        number: int,
        credential: Credential,
        *,
        how: str,
        answer: str,
        weather: str,
        dies: bool,
    ) -> None:
        """Claim a credential, or send, or go on waiting for the answer, or settle and tell."""
        worker = self.at_work.pop(number, None)
        if worker is None:
            for each in self._claim(credential, how):  # who holds the others, never goes on
                self.at_work.setdefault(number, each)
        elif worker.attempt:
            self._settle(worker, weather, tells=not dies)
        elif worker.call:
            worker.is_dead = dies
            self._release(worker)
            self._go_on(number, worker)
        else:
            attempts.tell_abandoned(worker.claim)
            if answer in HELD:
                self._send_and_wait(worker, HELD[answer])
            else:
                self._send(worker, answer)
            if not dies:
                self._go_on(number, worker)

    def _go_on(self, number: int, worker: Worker) -> None:
        if worker.attempt or worker.call:
            self.at_work[number] = worker

    def _claim(self, credential: Credential, how: str) -> Iterator[Worker]:
        """Claim one credential or several, by whatever is known of them."""
        if how == "with others":
            batch = leases.claim_batch(Credential.objects.get_queryset(), 2)
            leases.use(batch)
            return self._workers(*batch)
        by_will = how == "by will"
        seen = self._seen(credential, now=how != "as it was loaded")
        return self._workers(*(leases.claim(each, by_will=by_will) for each in seen))

    def _send(self, worker: Worker, answer: str) -> None:
        with self._weather(answer):
            worker.attempt = attempts.send(worker.claim)
        for request in self._new_requests():
            self._note_step(worker, request)

    def _send_and_wait(self, worker: Worker, where: Literal["before", "after"]) -> None:
        claim = worker.claim

        def send() -> attempts.Attempt:
            self.local.worker = worker
            return attempts.send(claim)

        is_sent = (
            claim.may_present
            and claim.lease.allows_a_call
            and spool.find(attempts.place_of(claim.credential), in_flight=True) is None
        )
        worker.gate = self.sandbox.hold(where, account=str(claim.credential))
        worker.call = self.pool.submit(send)
        if not is_sent:
            worker.call.result()
            self.sandbox.clear_plan()
        elif where == "before":
            worker.gate.wait_until_arrived()
            self._note_step(worker, None)
        else:
            worker.gate.wait_until_processed()
            for request in self._new_requests():
                self._note_step(worker, request)

    def _settle(self, worker: Worker, weather: str, *, tells: bool) -> None:
        assert worker.attempt
        worker.notes.is_late = worker.claim.lease.ends_at < time.monotonic()
        settled: list[attempts.Settled] = []  # none where the database is away
        with database(weather):
            settled.append(attempts.settle(worker.attempt))
        worker.notes.is_written = bool(settled) or not self._lease_of(worker.claim)
        if tells:
            attempts.tell(settled)

    # In one go

    @rule(weather=weathers, later=pauses)
    def run(self, weather: str, later: int) -> None:
        self._let_pass(later)
        with self._in_one_go(weather):
            Credential.objects.refresh_due()
        if weather == "calm":
            for credential in Credential.objects.filter(lease_id=""):
                assert spool.find(attempts.place_of(credential), in_flight=True) is None

    @precondition(lambda self: any(self.folder.glob("*")))
    @rule(weather=st.sampled_from(DATABASES))
    def recover(self, weather: str) -> None:
        with self._in_one_go(weather):
            list(recover_all(Credential, "default"))

    @rule(
        credential=instances,
        now=st.booleans(),
        is_refused=st.booleans(),
        weather=weathers,
        later=pauses,
    )
    def read(
        self, credential: Credential, now: bool, is_refused: bool, weather: str, later: int
    ) -> None:
        """Ask for an access token, perhaps because the API has refused the one at hand."""
        self._let_pass(later)
        for each in self._seen(credential, now=now):
            served: list[str] = []
            with self._in_one_go(weather):
                if is_refused:
                    served.append(each.replace_access_token(each.access_token))
                else:
                    served.append(each.get_access_token())
            assert self.ledger.access_tokens[str(each)].issuperset(served)

    # What people do

    @rule(credential=instances, weather=weathers, later=pauses)
    def refresh_by_will(self, credential: Credential, weather: str, later: int) -> None:
        self._let_pass(later)
        for each in self._seen(credential, now=True):
            with self._in_one_go(weather, by_will=True):
                each.refresh()

    @rule(target=instances, account=accounts, change=st.sampled_from(CHANGES))
    def change(self, account: str, change: str) -> MultipleResults[Credential]:
        if change == "connect" or self._has_ended(account):
            return multiple(self._connect(account))
        match change:
            case "disconnect":
                for credential in Credential.objects.filter(account=account):
                    credential.disconnect()
                    self.disconnected.add(account)
            case "delete":
                Credential.objects.filter(account=account).delete()
            case "revoke":
                self.ended |= {(account, n) for n in range(self.ledger.grants_of(account))}
                self.sandbox.revoke(account)
            case "set a wrong secret":
                self.patch.setattr(django_settings, "INFUSIONSOFT_CLIENT_SECRET", "wrong")
            case "set the right secret":
                self._set_the_right_secret()
        return multiple()

    # What must hold after every step

    @invariant()
    def rows_only_move_forward(self) -> None:
        for credential in Credential.objects.all():
            account, refresh_token = str(credential), credential.refresh_token
            now = credential.generation, refresh_token
            before = self.generations.get(credential.pk, (0, ""))
            assert now == before or now[0] > before[0], f"{before} became {now}"
            self.generations[credential.pk] = now
            assert (refresh_token == "") == (account in self.disconnected)
            if refresh_token:
                place = self.ledger.places[refresh_token]
                last = self.last_places.get(account, place)
                assert credential.access_token == place.access_token
                assert place.account == account
                assert place.grant == self.ledger.grants_of(account) - 1
                assert (place.grant, place.number) >= (last.grant, last.number)
                self.last_places[account] = place

    @invariant()
    def an_answer_that_was_read_is_stored_or_in_the_spool(self) -> None:
        for credential in Credential.objects.exclude(status="disconnected"):
            answer = self.ledger.next(credential.refresh_token)
            if answer in self.answers_read:
                slip = spool.find(attempts.place_of(credential), in_flight=True)
                assert slip is not None
                assert slip.pair.refresh_token == answer

    @invariant()
    def nobody_is_asked_to_reconnect_what_is_alive(self) -> None:
        rows = Credential.objects.needs_reauthorization().exclude(reason="unanswered")
        for credential in rows:
            place = self.ledger.places[credential.refresh_token]
            is_spent = self.ledger.next(credential.refresh_token) is not None
            assert is_spent or (place.account, place.grant) in self.ended

    @invariant()
    def every_presentation_is_known(self) -> None:
        for refresh_token in self.ledger.places:
            known = [
                each
                for each in self.attempts
                if each.request and each.refresh_token == refresh_token
            ]
            assert self.sandbox.presentations(refresh_token) == len(known)

    # After the last step

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # else a step has failed already
                self._grants_are_alive_when_all_is_calm()
        finally:
            for worker in self.all_workers:
                worker.is_dead = True
                self._release(worker)
            self.pool.shutdown()
            self.patch.undo()

    def _grants_are_alive_when_all_is_calm(self) -> None:
        for worker in self.all_workers:
            worker.is_dead = True
            self._release(worker)
        self._set_the_right_secret()
        for _ in range(3):
            self.run("calm", later=10 * DAY)
            self.rows_only_move_forward()
        for credential in Credential.objects.all():
            if credential.reason == "unanswered":
                self._require_reason_to_be_careful(credential)
                with self._in_one_go("calm", by_will=True):
                    credential.refresh()
        for credential in Credential.objects.all():
            self._require_truth(credential)
        assert list(self.folder.glob("*")) == []

    def _require_reason_to_be_careful(self, credential: Credential) -> None:
        doubtful = [
            each
            for each in self.attempts
            if each.refresh_token == credential.refresh_token
            and (each.is_late or not each.is_answered)
        ]
        assert len(doubtful) >= leases.MAX_PRESENTATIONS

    def _require_truth(self, credential: Credential) -> None:
        """A grant is alive, or was lost with an answer that nobody read, and then it says so."""
        account, says = str(credential), (credential.status, credential.reason)
        if account in self.disconnected:
            assert says == ("disconnected", "")
            return
        following = self.ledger.next(credential.refresh_token)
        place = self.ledger.places[credential.refresh_token]
        if (account, place.grant) in self.ended:
            assert credential.status == "reauthorization_required"
        elif following is None:
            assert says == ("connected", "")
            assert credential.refresh_token in {
                grant.refresh_token for grant in self.sandbox.live_grants
            }
        else:
            assert following not in self.answers_read, "An answer that was read has been lost."
            assert says == ("reauthorization_required", "rotation_lost")

    # How it is done

    def _let_pass(self, seconds: int) -> None:
        """Move what was written down into the past, in the database and in every process."""
        shift = timedelta(seconds=seconds)
        times = ("lease_until", "refresh_at", "issued_at", "expires_at")
        Credential.objects.update(**{name: F(name) - shift for name in times})
        ApplicationState.objects.update(probe_at=F("probe_at") - shift)
        self.sandbox.clock.advance(seconds)
        for lease in {
            id(each.claim.lease): each.claim.lease for each in self.all_workers
        }.values():
            object.__setattr__(lease, "ends_at", lease.ends_at - seconds)  # frozen for all others
        for credential in (*self.loaded, *(each.claim.credential for each in self.all_workers)):
            credential.clock_ahead -= shift
        for path in self.folder.glob("*"):
            written_at = path.stat().st_mtime - seconds
            os.utime(path, (written_at, written_at))

    def _connect(self, account: str) -> Credential:
        """Let a person authorize the site: a new grant, which wins over whatever there was."""
        reply = self.sandbox.issue(account)
        self.ledger.look()
        pair = TokenPair(
            reply["access_token"], reply["refresh_token"], reply["expires_in"], account
        )
        self.disconnected.discard(account)
        credential = Credential.objects.connect(pair, application=None)
        self.last_places.pop(account, None) if credential.generation == 1 else None
        return self._remember(credential)

    def _remember(self, credential: Credential) -> Credential:
        self.loaded.append(credential)
        return credential

    def _workers(self, *claims: leases.Claim | None) -> Iterator[Worker]:
        for claim in claims:
            if claim is None:
                continue
            credential = claim.credential
            for other in self.all_workers:  # one at a time
                theirs = other.claim.credential
                is_same = (theirs.pk, other.generation) == (credential.pk, credential.generation)
                has_ended = other.claim.lease.ends_at < time.monotonic()
                assert not is_same or has_ended or other.notes.is_written
            notes = Attempt(credential.refresh_token)
            self.attempts.append(notes)
            worker = Worker(claim, notes, credential.generation)
            self.all_workers.append(worker)
            yield worker

    @contextmanager
    def _weather(self, weather: str) -> Iterator[None]:
        if fault := ANSWERS.get(weather):
            for account in ACCOUNTS:
                self.sandbox.plan(fault, times=None, account=account)
        elif weather == "Keap is silent":  # to probes too
            self.sandbox.plan(faults.drop_before(), times=None)
        self.weather_now = weather
        is_wrong = weather == "client is wrong"
        secret = {"INFUSIONSOFT_CLIENT_SECRET": "wrong"} if is_wrong else {}
        try:
            with override_settings(**secret), suppress(Killed):
                yield
        finally:
            self.weather_now = "calm"
            self.sandbox.clear_plan()

    @contextmanager
    def _in_one_go(self, weather: str, *, by_will: bool = False) -> Iterator[None]:
        with self._weather(weather), database(weather), suppress(InfusionsoftError):
            yield
        leases_left = dict(Credential.objects.values_list("account", "lease_id"))
        for request in self._new_requests():
            notes = Attempt(request.refresh_token)
            self.attempts.append(notes)
            notes.is_written = not leases_left.pop(request.account, "")
            self._note_presentation(notes, request, by_will=by_will, is_overtaken=False)
        known = {worker.claim.lease.id for worker in self.all_workers}
        for account, lease_id in leases_left.items():
            if lease_id and lease_id not in known:
                self.attempts.append(
                    Attempt(Credential.objects.get(account=account).refresh_token)
                )

    def _new_requests(self) -> list[TokenRequest]:
        self.ledger.look()
        requests = self.sandbox.token_requests[self.seen :]
        self.seen += len(requests)
        return [request for request in requests if request.refresh_token != NO_TOKEN]

    def _note_presentation(
        self, notes: Attempt, request: TokenRequest | None, *, by_will: bool, is_overtaken: bool
    ) -> None:
        """One repeat at most where there was no answer, and none where there was.

        :param is_overtaken: whether the answer was stored between this claim and this step, as by
            a worker that had slept beyond its lease: then a repeat tells nobody anything, and
            costs nothing.
        """
        others = [
            each
            for each in self.attempts
            if each.refresh_token == notes.refresh_token and each.is_presented
        ]
        notes.is_presented, notes.request = True, request
        unanswered = sum(not each.is_answered for each in others)
        assert by_will or unanswered < leases.MAX_PRESENTATIONS
        assert is_overtaken or not any(self._was_read(each) for each in others)

    def _note_step(self, worker: Worker, request: TokenRequest | None) -> None:
        claim = worker.claim
        assert claim.lease.ends_at > time.monotonic()
        row = Credential.objects.filter(pk=claim.credential.pk, generation=worker.generation)
        self._note_presentation(
            worker.notes, request, by_will=claim.by_will, is_overtaken=not row.exists()
        )

    def _was_read(self, notes: Attempt) -> bool:
        was_exchanged = notes.request is not None and notes.request.outcome == "rotated"
        return was_exchanged and self.ledger.next(notes.refresh_token) in self.answers_read

    def _release(self, worker: Worker) -> None:
        if worker.gate is None or worker.call is None:
            return
        worker.gate.release()
        with suppress(Killed):
            worker.attempt = worker.call.result()
        worker.gate = worker.call = None
        for request in self._new_requests():
            worker.notes.request = request

    def _lease_of(self, claim: leases.Claim) -> str:
        row = Credential.objects.filter(pk=claim.credential.pk).first()
        return row.lease_id if row else ""

    def _seen(self, credential: Credential, *, now: bool) -> list[Credential]:
        """Return an instance as it is, or as its row says now, if there is one."""
        if not now:
            return [credential]
        return [self._remember(each) for each in Credential.objects.filter(pk=credential.pk)]

    def _has_ended(self, account: str) -> bool:
        grant = account, self.ledger.grants_of(account) - 1
        is_there = Credential.objects.connected().filter(account=account).exists()
        return grant in self.ended or not is_there

    def _set_the_right_secret(self) -> None:
        secret = self.sandbox.settings["INFUSIONSOFT_CLIENT_SECRET"]
        self.patch.setattr(django_settings, "INFUSIONSOFT_CLIENT_SECRET", secret)

    def _keep_or_die(self, place: spool.Place, pair: TokenPair) -> spool.Slip:
        worker = getattr(self.local, "worker", None)
        if worker.is_dead if worker else self.weather_now == UNREAD:
            raise Killed
        slip = keep(place, pair)
        assert pair.refresh_token
        self.answers_read.add(pair.refresh_token)
        if self.weather_now == KEPT:
            raise Killed
        return slip


@pytest.fixture
def world(
    transactional_db: None, sandbox: Sandbox, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """What a model needs, and no waiting: time passes by its own word."""
    monkeypatch.setattr(Model, "folder", spool, raising=False)
    monkeypatch.setattr(Model, "sandbox", sandbox, raising=False)
    monkeypatch.setattr("django_infusionsoft.database.RETRY_PAUSES", ())
    monkeypatch.setattr("django_infusionsoft.refresh.FIRST_POLL_SECONDS", 0)
    sandbox.switches.refresh_token_seconds = YEARS
    logging.disable()  # or every example's log is kept
    with override_settings(INFUSIONSOFT_WAIT_SECONDS=1e-6):
        yield
    logging.disable(logging.NOTSET)


def test_no_grant_is_lost_whatever_happens_in_which_order(world: None, tmp_path: Path) -> None:
    print("To explore more, set INFUSIONSOFT_TESTS_EXAMPLES=2000.")  # noqa: T201
    set_hypothesis_home_dir(tmp_path)
    try:
        run_state_machine_as_test(
            Model,
            settings=settings(
                max_examples=int(EXAMPLES or 60),
                stateful_step_count=30,
                derandomize=not EXAMPLES,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        set_hypothesis_home_dir(None)


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(
            ["one claims", "one sends", "a person connects", "one settles"],
            id="a person connects while the answer is in hand",
        ),
        pytest.param(
            ["one claims", "one sends", "a person disconnects", "one settles"],
            id="a person disconnects while the answer is in hand",
        ),
        pytest.param(
            ["one claims", "one sends", "a day passes and all is run", "one settles"],
            id="the answer is found in the spool while a worker still has it",
        ),
        pytest.param(
            ["one claims", "one is held before", "a day passes and all is run", "one is let go"],
            id="a late request is refused, and its worker dies",
        ),
        pytest.param(
            [
                "one claims",
                "one is held before",
                "a day passes and all is run",
                "one is let go",
                "one settles",
            ],
            id="a late request is refused when the row has moved on",
        ),
        pytest.param(
            ["one claims", "one is held behind", "a day passes and all is run", "one is let go"],
            id="a late answer comes when the repeat has been refused, and its worker dies",
        ),
        pytest.param(
            ["one claims", "one sends", "another claims late", "one settles", "another sends"],
            id="a late worker stores between the claim and the request of another one",
        ),
    ],
)
def test_no_grant_is_lost_in_an_order_that_is_hard_to_meet(world: None, order: list[str]) -> None:
    model = Model()
    model.begin()
    credential = Credential.objects.get()
    calm = {"how": CLAIMS[0], "answer": "calm", "weather": "calm", "dies": False}

    def one(later: int = 0, **step: str) -> None:
        model.one_worker(credential=credential, step=calm | step, later=later)

    def another(later: int = 0) -> None:
        model.another_worker(credential=credential, step=calm, later=later)

    words: dict[str, Callable[[], object]] = {
        "one claims": one,
        "one sends": one,
        "one settles": one,
        "one is let go": one,
        "one is held before": lambda: one(answer="stays before Keap"),
        "one is held behind": lambda: one(answer="stays behind Keap"),
        "another claims late": lambda: another(later=130),
        "another sends": another,
        "a day passes and all is run": lambda: model.run(weather="calm", later=DAY),
        "a person connects": lambda: model.change(account="ab123", change="connect"),
        "a person disconnects": lambda: model.change(account="ab123", change="disconnect"),
    }
    try:
        for word in order:
            words[word]()
            for each in model.invariants:
                each.function(model)
    finally:
        model.teardown()
