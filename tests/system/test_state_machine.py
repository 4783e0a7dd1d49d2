"""Workers, crashes, users, a database and a Keap that fail, in any order: no grant may be lost.

Hypothesis calls the app's own functions step by step, with a real database and the sandbox, and
shortens a failing order to the fewest steps. The default run is always the same. It is longest on
SQLite, where a statement takes least. To explore, set the number of examples:
``INFUSIONSOFT_TESTS_EXAMPLES=2000 pytest tests/system/test_state_machine.py``; each such run is
different, and ``--hypothesis-seed=N`` repeats it.
"""

import logging
import math
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

from django_infusionsoft.exceptions import InfusionsoftError
from django_infusionsoft.keap.oauth import NO_TOKEN, TokenPair
from django_infusionsoft.models import ApplicationState, Credential
from django_infusionsoft.refresh import leases, reporting, sending, spool, storing, trust
from django_infusionsoft.refresh.recovery import recover_all
from django_infusionsoft.refresh.spool_folder import Space
from django_infusionsoft.sandbox import Sandbox, TokenRequest, faults

pytestmark = pytest.mark.every_database

EXAMPLES = os.environ.get("INFUSIONSOFT_TESTS_EXAMPLES", "")
ACCOUNTS = ("ab123", "cd456")
DAY = 86_400
YEARS = 10 * 365 * DAY

UNREAD = "process dies with the answer unread"
SPOOLED = "process dies with the answer in the spool"

# What can happen to a request to Keap.
ANSWERS: dict[str, faults.Fault | None] = {
    "calm": None,
    "503": faults.error_503(),
    "client is rejected": None,
    "never arrives": faults.drop_before(),
    "answer is lost": faults.drop_after(),
    "answer is cut off": faults.drop_midway(),
    UNREAD: None,
}
HELD: dict[str, Literal["before", "after"]] = {
    "stays before Keap": "before",
    "stays after Keap": "after",
}
# What can happen to a whole refresh.
CONDITIONS = (
    *ANSWERS,
    "Keap is silent",
    SPOOLED,
    "database fails",
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
CLAIMS = ("as the row is now", "as it was loaded", "forced", "with others")
DATABASES = ("calm", "database fails", "database does not confirm")

save = spool.save
accounts = st.sampled_from([ACCOUNTS[0], *ACCOUNTS])  # the first is more likely
conditions = st.sampled_from([*["calm"] * 4, *CONDITIONS])  # otherwise most grants are lost early
# Seconds that pass before a step: leases (130 s) and a probe's delay; every delay; a lifetime.
delays = st.sampled_from([0, 140, 5000, DAY])
sleeps = st.sampled_from([*[0] * 6, 140])  # a worker seldom sleeps longer than its lease
# The arguments of a step, whichever comes next.
steps = st.fixed_dictionaries(
    {
        "how": st.sampled_from(CLAIMS),
        "answer": st.sampled_from([*["calm"] * 3, *ANSWERS, *HELD, *HELD]),
        "condition": st.sampled_from(DATABASES),
        "dies": st.sampled_from([*[False] * 5, True]),
    }
)


class Killed(BaseException):
    """The end of a process: nothing is cleaned up."""


@dataclass(frozen=True)
class Position:
    """The position of a token pair in the order in which Keap issued them, grant by grant."""

    account: str
    grant: int
    number: int
    access_token: str = field(repr=False)


class Ledger:
    """Every token pair that Keap has issued."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._grants: dict[int, tuple[str, int]] = {}
        self._chains: dict[tuple[str, int], list[str]] = {}
        self.positions: dict[str, Position] = {}
        self.access_tokens: dict[str, set[str]] = {account: set() for account in ACCOUNTS}

    def update(self) -> None:
        """Record new token pairs. A grant gets at most one between two calls."""
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
                self.positions[grant.refresh_token] = Position(
                    *self._grants[id(grant)], len(chain), access_token
                )

    def next(self, refresh_token: str) -> str | None:
        """Return the refresh token that replaced this one, if any."""
        position = self.positions[refresh_token]
        chain = self._chains[position.account, position.grant]
        return chain[position.number] if position.number < len(chain) else None

    def grants_of(self, account: str) -> int:
        return sum(name == account for name, _ in self._chains)


@dataclass(eq=False)
class Attempt:
    """The model's record of a lease and of the one presentation that it allows."""

    refresh_token: str
    is_presented: bool = False
    request: TokenRequest | None = None
    is_written: bool = False
    """Whether the outcome is in the database or in the spool."""
    is_late: bool = False

    @property
    def is_answered(self) -> bool:
        """Whether the app knows the result of the presentation, if there was one."""
        was_answered = self.request is not None and self.request.is_delivered
        return self.is_written and (was_answered or not self.is_presented)


@dataclass(eq=False)
class Worker:
    """A process between two of its steps."""

    claim: leases.Claim
    notes: Attempt
    generation: int
    attempt: sending.Attempt | None = None
    call: "Future[sending.Attempt] | None" = None
    gate: faults.Gate | None = None
    is_dead: bool = False


@contextmanager
def database(condition: str) -> Iterator[None]:
    """Let the database fail after a lease was taken, before or after it has written."""

    def fail(execute: Any, sql: str, *rest: Any) -> Any:
        is_ours = sql.startswith("UPDATE") and "django_infusionsoft_credential" in sql
        if not is_ours or "CASE WHEN" in sql:  # this takes a lease
            return execute(sql, *rest)
        if condition == "database does not confirm":
            execute(sql, *rest)
        raise OperationalError(condition)

    if not condition.startswith("database"):
        yield
        return
    with connection.execute_wrapper(fail), suppress(OperationalError):
        yield


class Model(RuleBasedStateMachine):
    """Two credentials, any number of workers, and the app's guarantees."""

    folder: ClassVar[Path]
    sandbox: ClassVar[Sandbox]

    instances: Bundle[Credential] = Bundle("instances")

    def __init__(self) -> None:
        super().__init__()
        Credential.objects.all().delete()
        ApplicationState.objects.all().delete()
        for path in self.folder.glob("*"):
            path.unlink()
        for account in ACCOUNTS:  # left by an earlier example
            self.sandbox.revoke(account)
        self.pool = ThreadPoolExecutor(50)
        self.local = threading.local()
        self.current_condition = "calm"
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
        self.last_positions: dict[str, Position] = {}
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(spool, "save", self._save_or_die)

    @initialize(target=instances)
    def begin(self) -> MultipleResults[Credential]:
        return multiple(self._connect(ACCOUNTS[0]))

    # One step of a worker. A worker that dies loses what it holds. A worker without a further step
    # has died as well, and one whose next step is late has slept.

    @rule(credential=instances, step=steps, later=sleeps)
    def one_worker(self, credential: Credential, step: dict[str, Any], later: int) -> None:
        self._advance(later)
        self._step(1, credential, **step)

    @rule(credential=instances, step=steps, later=sleeps)
    def another_worker(self, credential: Credential, step: dict[str, Any], later: int) -> None:
        self._advance(later)
        self._step(2, credential, **step)

    def _step(
        self,
        number: int,
        credential: Credential,
        *,
        how: str,
        answer: str,
        condition: str,
        dies: bool,
    ) -> None:
        """Claim a credential, or send, or continue waiting for the answer, or store and report."""
        worker = self.at_work.pop(number, None)
        if worker is None:
            # The workers of all but the first have no further step.
            for each in self._claim(credential, how):
                self.at_work.setdefault(number, each)
        elif worker.attempt:
            self._store(worker, condition, reports=not dies)
        elif worker.call:
            worker.is_dead = dies
            self._release(worker)
            self._continue(number, worker)
        else:
            reporting.report_previous(worker.claim)
            if answer in HELD:
                self._send_and_wait(worker, HELD[answer])
            else:
                self._send(worker, answer)
            if not dies:
                self._continue(number, worker)

    def _continue(self, number: int, worker: Worker) -> None:
        if worker.attempt or worker.call:
            self.at_work[number] = worker

    def _claim(self, credential: Credential, how: str) -> Iterator[Worker]:
        """Claim one credential or several, from a fresh or a stale instance."""
        if how == "with others":
            batch = leases.claim_batch(Credential.objects.get_queryset(), 2)
            leases.mark_used(batch)
            return self._workers(*batch)
        force = how == "forced"
        seen = self._seen(credential, now=how != "as it was loaded")
        return self._workers(*(leases.claim(each, force=force) for each in seen))

    def _send(self, worker: Worker, answer: str) -> None:
        with self._conditions(answer):
            worker.attempt = sending.send(worker.claim)
        for request in self._new_requests():
            self._note_step(worker, request)

    def _send_and_wait(self, worker: Worker, where: Literal["before", "after"]) -> None:
        claim = worker.claim

        def send() -> sending.Attempt:
            self.local.worker = worker
            return sending.send(claim)

        is_sent = (
            claim.may_present
            and claim.lease.has_time_for_call
            and spool.load(sending.spool_key_of(claim.credential)) is None
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

    def _store(self, worker: Worker, condition: str, *, reports: bool) -> None:
        assert worker.attempt
        worker.notes.is_late = worker.claim.lease.ends_at < time.monotonic()
        results: list[storing.AttemptResult] = []  # empty if the database fails
        with database(condition):
            results.append(storing.record_outcome(worker.attempt))
        spooled = sending.spooled_error_of(worker.claim.credential)
        is_kept = spooled is not None and spooled.lease_id == worker.claim.lease.id
        worker.notes.is_written = bool(results) or is_kept or not self._lease_of(worker.claim)
        if reports:
            reporting.report(results)

    # A whole refresh

    @rule(condition=conditions, later=delays)
    def run(self, condition: str, later: int) -> None:
        self._advance(later)
        with self._whole_refresh(condition):
            Credential.objects.refresh_due()
        if condition == "calm":
            for credential in Credential.objects.filter(lease_id=""):
                assert spool.load(sending.spool_key_of(credential)) is None

    @precondition(lambda self: any(self.folder.glob("*")))
    @rule(condition=st.sampled_from(DATABASES))
    def recover(self, condition: str) -> None:
        with self._whole_refresh(condition):
            list(recover_all(Credential, "default"))

    @rule(
        credential=instances,
        now=st.booleans(),
        is_rejected=st.booleans(),
        condition=conditions,
        later=delays,
    )
    def read(
        self, credential: Credential, now: bool, is_rejected: bool, condition: str, later: int
    ) -> None:
        """Ask for an access token, possibly because the API has rejected the current one."""
        self._advance(later)
        for each in self._seen(credential, now=now):
            served: list[str] = []
            with self._whole_refresh(condition):
                if is_rejected:
                    served.append(each.access_token_instead_of(each.access_token))
                else:
                    served.append(each.get_access_token())
            assert self.ledger.access_tokens[str(each)].issuperset(served)

    # Users' actions

    @rule(credential=instances, condition=conditions, later=delays)
    def refresh_forced(self, credential: Credential, condition: str, later: int) -> None:
        self._advance(later)
        for each in self._seen(credential, now=True):
            with self._whole_refresh(condition, force=True):
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
                position = self.ledger.positions[refresh_token]
                last = self.last_positions.get(account, position)
                assert credential.access_token == position.access_token
                assert position.account == account
                assert position.grant == self.ledger.grants_of(account) - 1
                assert (position.grant, position.number) >= (last.grant, last.number)
                self.last_positions[account] = position

    @invariant()
    def every_answer_that_was_read_is_stored_or_in_the_spool(self) -> None:
        for credential in Credential.objects.exclude(status="disconnected"):
            answer = self.ledger.next(credential.refresh_token)
            if answer in self.answers_read:
                spooled = spool.load(sending.spool_key_of(credential))
                assert spooled is not None
                assert spooled.pair.refresh_token == answer

    @invariant()
    def no_valid_grant_requires_reconnecting(self) -> None:
        rows = Credential.objects.needs_reauthorization().exclude(reason="unanswered")
        for credential in rows:
            position = self.ledger.positions[credential.refresh_token]
            is_spent = self.ledger.next(credential.refresh_token) is not None
            assert is_spent or (position.account, position.grant) in self.ended

    @invariant()
    def every_presentation_is_known(self) -> None:
        for refresh_token in self.ledger.positions:
            known = [
                each
                for each in self.attempts
                if each.request and each.refresh_token == refresh_token
            ]
            assert self.sandbox.presentations(refresh_token) == len(known)

    # After the last step

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # otherwise a step has failed already
                self._check_grants_after_recovery()
        finally:
            for worker in self.all_workers:
                worker.is_dead = True
                self._release(worker)
            self.pool.shutdown()
            self.patch.undo()

    def _check_grants_after_recovery(self) -> None:
        for worker in self.all_workers:
            worker.is_dead = True
            self._release(worker)
        self._set_the_right_secret()
        for _ in range(3):
            self.run("calm", later=10 * DAY)
            self.rows_only_move_forward()
            trust.believe_rejections("default")  # many grants may really have ended
        for credential in Credential.objects.all():
            if credential.reason == "unanswered":
                self._check_unanswered(credential)
                with self._whole_refresh("calm", force=True):
                    credential.refresh()
        for credential in Credential.objects.all():
            self._check_status(credential)
        assert list(self.folder.glob("*")) == []

    def _check_unanswered(self, credential: Credential) -> None:
        doubtful = [
            each
            for each in self.attempts
            if each.refresh_token == credential.refresh_token
            and (each.is_late or not each.is_answered)
        ]
        assert len(doubtful) >= leases.MAX_PRESENTATIONS

    def _check_status(self, credential: Credential) -> None:
        """Check that the grant is valid, or was lost with an unread answer and the row says so."""
        account, says = str(credential), (credential.status, credential.reason)
        if account in self.disconnected:
            assert says == ("disconnected", "")
            return
        following = self.ledger.next(credential.refresh_token)
        position = self.ledger.positions[credential.refresh_token]
        if (account, position.grant) in self.ended:
            assert credential.status == "reauthorization_required"
        elif following is None:
            assert says == ("connected", "")
            assert credential.refresh_token in {
                grant.refresh_token for grant in self.sandbox.live_grants
            }
        else:
            assert following not in self.answers_read, "An answer that was read has been lost."
            assert says == ("reauthorization_required", "rotation_lost")

    # Helpers

    def _advance(self, seconds: int) -> None:
        """Move all recorded times into the past, in the database and in every process."""
        shift = timedelta(seconds=seconds)
        times = ("lease_until", "refresh_at", "issued_at", "expires_at")
        Credential.objects.update(**{name: F(name) - shift for name in times})
        ApplicationState.objects.update(probe_at=F("probe_at") - shift)
        self.sandbox.clock.advance(seconds)
        for lease in {
            id(each.claim.lease): each.claim.lease for each in self.all_workers
        }.values():
            object.__setattr__(lease, "ends_at", lease.ends_at - seconds)  # a frozen dataclass
        for credential in (*self.loaded, *(each.claim.credential for each in self.all_workers)):
            credential.clock_offset -= shift
        for path in self.folder.glob("*"):
            written_at = path.stat().st_mtime - seconds
            os.utime(path, (written_at, written_at))

    def _connect(self, account: str) -> Credential:
        """Let a user authorize the site: a new grant, which replaces any earlier one."""
        reply = self.sandbox.issue(account)
        self.ledger.update()
        pair = TokenPair(
            reply["access_token"], reply["refresh_token"], reply["expires_in"], account
        )
        self.disconnected.discard(account)
        credential = Credential.objects.connect(pair, application=None)
        self.last_positions.pop(account, None) if credential.generation == 1 else None
        return self._remember(credential)

    def _remember(self, credential: Credential) -> Credential:
        self.loaded.append(credential)
        return credential

    def _workers(self, *claims: leases.Claim | None) -> Iterator[Worker]:
        for claim in claims:
            if claim is None:
                continue
            credential = claim.credential
            for other in self.all_workers:  # one lease at a time
                other_credential = other.claim.credential
                is_same = (
                    other_credential.pk == credential.pk
                    and other.generation == credential.generation
                )
                has_ended = other.claim.lease.ends_at < time.monotonic()
                assert not is_same or has_ended or other.notes.is_written
            notes = Attempt(credential.refresh_token)
            self.attempts.append(notes)
            worker = Worker(claim, notes, credential.generation)
            self.all_workers.append(worker)
            yield worker

    @contextmanager
    def _conditions(self, condition: str) -> Iterator[None]:
        if fault := ANSWERS.get(condition):
            for account in ACCOUNTS:
                self.sandbox.plan(fault, times=None, account=account)
        elif condition == "Keap is silent":  # also for probes
            self.sandbox.plan(faults.drop_before(), times=None)
        self.current_condition = condition
        is_wrong = condition == "client is rejected"
        secret = {"INFUSIONSOFT_CLIENT_SECRET": "wrong"} if is_wrong else {}
        try:
            with override_settings(**secret), suppress(Killed):
                yield
        finally:
            self.current_condition = "calm"
            self.sandbox.clear_plan()

    @contextmanager
    def _whole_refresh(self, condition: str, *, force: bool = False) -> Iterator[None]:
        with self._conditions(condition), database(condition), suppress(InfusionsoftError):
            yield
        leases_left = dict(Credential.objects.values_list("account", "lease_id"))
        for request in self._new_requests():
            notes = Attempt(request.refresh_token)
            self.attempts.append(notes)
            notes.is_written = not leases_left.pop(request.account, "")
            self._note_presentation(notes, request, force=force, is_overtaken=False)
        known = {worker.claim.lease.id for worker in self.all_workers}
        for account, lease_id in leases_left.items():
            if lease_id and lease_id not in known:
                self.attempts.append(
                    Attempt(Credential.objects.get(account=account).refresh_token)
                )

    def _new_requests(self) -> list[TokenRequest]:
        self.ledger.update()
        requests = self.sandbox.token_requests[self.seen :]
        self.seen += len(requests)
        return [request for request in requests if request.refresh_token != NO_TOKEN]

    def _note_presentation(
        self, notes: Attempt, request: TokenRequest | None, *, force: bool, is_overtaken: bool
    ) -> None:
        """Allow one retry at most without an answer, and none after an answer.

        :param is_overtaken: whether the answer was stored between this claim and this step, as by
            a worker that had slept longer than its lease. Such a retry does no harm.
        """
        others = [
            each
            for each in self.attempts
            if each.refresh_token == notes.refresh_token and each.is_presented
        ]
        notes.is_presented, notes.request = True, request
        unanswered = sum(not each.is_answered for each in others)
        assert force or unanswered < leases.MAX_PRESENTATIONS
        assert is_overtaken or not any(self._was_read(each) for each in others)

    def _note_step(self, worker: Worker, request: TokenRequest | None) -> None:
        claim = worker.claim
        assert claim.lease.ends_at > time.monotonic()
        row = Credential.objects.filter(pk=claim.credential.pk, generation=worker.generation)
        self._note_presentation(
            worker.notes, request, force=claim.force, is_overtaken=not row.exists()
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
        """Return the instance as it is, or reloaded if its row still exists."""
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

    def _save_or_die(
        self, position: spool.SpoolKey, pair: TokenPair, lease_id: str, space: Space
    ) -> spool.SpooledPair:
        worker = getattr(self.local, "worker", None)
        if worker.is_dead if worker else self.current_condition == UNREAD:
            raise Killed
        spooled = save(position, pair, lease_id, space)
        assert pair.refresh_token
        self.answers_read.add(pair.refresh_token)
        if self.current_condition == SPOOLED:
            raise Killed
        return spooled


@pytest.fixture
def world(
    transactional_db: None, sandbox: Sandbox, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Set up the class of the model, without any waiting: only the model moves the time."""
    monkeypatch.setattr(Model, "folder", spool, raising=False)
    monkeypatch.setattr(Model, "sandbox", sandbox, raising=False)
    monkeypatch.setattr("django_infusionsoft.storage.database.RETRY_PAUSES", ())
    monkeypatch.setattr("django_infusionsoft.refresh.single.POLL_SECONDS", 0)
    # A reader that leaves lets a thread store the reply, at a moment that the model cannot know.
    monkeypatch.setattr(
        "django_infusionsoft.refresh.single._seconds_to_stay", lambda credential: math.inf
    )
    sandbox.switches.refresh_token_seconds = YEARS
    logging.disable()  # otherwise the log of every example is kept
    with override_settings(INFUSIONSOFT_WAIT_SECONDS=1e-6):
        yield
    logging.disable(logging.NOTSET)


def test_no_grant_is_lost_in_random_orders(world: None, tmp_path: Path) -> None:
    print("To explore more, set INFUSIONSOFT_TESTS_EXAMPLES=2000.")  # noqa: T201
    set_hypothesis_home_dir(tmp_path)
    try:
        run_state_machine_as_test(
            Model,
            settings=settings(
                max_examples=int(EXAMPLES or (40 if connection.vendor == "sqlite" else 15)),
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
            ["one claims", "one sends", "a user connects", "one stores"],
            id="a user connects between the answer and storing it",
        ),
        pytest.param(
            ["one claims", "one sends", "a user disconnects", "one stores"],
            id="a user disconnects between the answer and storing it",
        ),
        pytest.param(
            ["one claims", "one sends", "a day passes and a run ends", "one stores"],
            id="the answer is found in the spool while a worker still has it",
        ),
        pytest.param(
            ["one claims", "one is held before", "a day passes and a run ends", "one is released"],
            id="a late request is rejected, and its worker dies",
        ),
        pytest.param(
            [
                "one claims",
                "one is held before",
                "a day passes and a run ends",
                "one is released",
                "one stores",
            ],
            id="a late request is rejected when the row has changed",
        ),
        pytest.param(
            ["one claims", "one is held after", "a day passes and a run ends", "one is released"],
            id="a late answer arrives when the retry was rejected, and its worker dies",
        ),
        pytest.param(
            ["one claims", "one sends", "another claims late", "one stores", "another sends"],
            id="a late worker stores between the claim and the request of another one",
        ),
    ],
)
def test_no_grant_is_lost_in_rare_orders(world: None, order: list[str]) -> None:
    model = Model()
    model.begin()
    credential = Credential.objects.get()
    calm = {"how": CLAIMS[0], "answer": "calm", "condition": "calm", "dies": False}

    def one(later: int = 0, **step: str) -> None:
        model.one_worker(credential=credential, step=calm | step, later=later)

    def another(later: int = 0) -> None:
        model.another_worker(credential=credential, step=calm, later=later)

    words: dict[str, Callable[[], object]] = {
        "one claims": one,
        "one sends": one,
        "one stores": one,
        "one is released": one,
        "one is held before": lambda: one(answer="stays before Keap"),
        "one is held after": lambda: one(answer="stays after Keap"),
        "another claims late": lambda: another(later=140),
        "another sends": another,
        "a day passes and a run ends": lambda: model.run(condition="calm", later=DAY),
        "a user connects": lambda: model.change(account="ab123", change="connect"),
        "a user disconnects": lambda: model.change(account="ab123", change="disconnect"),
    }
    try:
        for word in order:
            words[word]()
            for each in model.invariants:
                each.function(model)
    finally:
        model.teardown()
