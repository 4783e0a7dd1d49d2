"""A run over what is due: why it ends, what it leaves, what it costs."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest
from django.db import DataError, connection, connections
from django.db.backends.signals import connection_created
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_infusionsoft import leases
from django_infusionsoft.calls import FAILURES_THAT_HALT
from django_infusionsoft.models import (
    Application,
    ApplicationState,
    Credential,
    CredentialEvent,
)
from django_infusionsoft.runs import Run
from django_infusionsoft.sandbox import Fault, Gate, Sandbox, faults
from tests.support import end_leases, keap_with, row, threads

Due = Callable[..., Credential]
ACCOUNTS = [f"acc{number:02}" for number in range(64)]
ONE_BY_ONE = override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=1)
TWO_BY_TWO = override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=2)
EIGHT_AT_ONCE = override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=8)
DOWN = faults.error_503()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with keap_with(ACCOUNTS) as running:
        yield running


@pytest.fixture
def batch(due: Due) -> list[Credential]:
    """A dozen credentials that are due, the most urgent first, as they are in the database."""
    return [row(due(account, 60 - place)) for place, account in enumerate(ACCOUNTS[:12])]


def counts(run: Run) -> dict[str, int]:
    return {name: count for name, count in run.as_dict().items() if count}


def presented(sandbox: Sandbox) -> list[str]:
    """Return the accounts whose refresh tokens came in, in order: those of probes are nobody's."""
    return [request.account for request in sandbox.token_requests if request.account]


def probes(sandbox: Sandbox) -> int:
    return len(sandbox.token_requests) - len(presented(sandbox))


def held(sandbox: Sandbox, credentials: list[Credential]) -> Gate:
    """Hold the answers to these credentials' refreshes at one gate."""
    gate = Gate("after")
    for credential in credentials:
        sandbox.plan(faults.hold(gate), account=credential.account)
    return gate


def wait_until(has_happened: Callable[[], object]) -> None:
    """Wait for what other threads do in the database."""
    ends_at = time.monotonic() + 20
    while not has_happened():
        assert time.monotonic() < ends_at, "Waited for 20 seconds."
        time.sleep(0.02)


def leased() -> int:
    return Credential.objects.filter(lease_until__isnull=False).count()


def assert_untouched(credentials: list[Credential]) -> None:
    """Let the rows be what they were: due as before, and nothing counted."""
    assert credentials
    for before in credentials:
        after = row(before)
        assert after.refresh_at == before.refresh_at
        assert (after.lease_until, after.lease_id, after.lease_holder) == (None, "", "")
        assert (after.generation, after.status) == (before.generation, "connected")
        assert after.unanswered_attempts == before.unanswered_attempts
        assert (after.failures, after.last_error) == (before.failures, "")
        assert [event.kind for event in after.events.all()] == ["imported"]


def let_probes_be_due() -> None:
    ApplicationState.objects.update(probe_at=timezone.now() - timedelta(seconds=1))


def state() -> ApplicationState:
    """Return how it stands with the settings' client."""
    return ApplicationState.objects.get(application=None)


def seconds_until_probe() -> float:
    return (state().probe_at - timezone.now()).total_seconds()


# Why it ends


def test_run_is_done_when_nothing_is_due_any_more(batch: list[Credential]) -> None:
    run = Credential.objects.refresh_due()
    assert (counts(run), run.ended) == ({"refreshed": 12}, "done")


def test_run_is_done_when_nothing_was_due(sandbox: Sandbox, db: None) -> None:
    assert Credential.objects.refresh_due().ended == "done"


def test_run_is_done_when_what_was_due_could_not_be_refreshed(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(DOWN, account=batch[0].account)
    sandbox.revoke(ACCOUNTS[1])
    run = Credential.objects.refresh_due()
    assert counts(run) == {"refreshed": 10, "unavailable": 1, "rejected": 1}
    assert run.ended == "done"


@ONE_BY_ONE
def test_run_ends_at_its_time_limit(sandbox: Sandbox, batch: list[Credential]) -> None:
    sandbox.plan(faults.latency_after(0.4))
    run = Credential.objects.refresh_due(time_limit_seconds=0.3)
    assert (counts(run), run.ended) == ({"refreshed": 1}, "time_limit")
    assert_untouched(batch[1:])


@ONE_BY_ONE
def test_run_ends_when_it_is_to_stop(sandbox: Sandbox, batch: list[Credential]) -> None:
    run = Credential.objects.refresh_due(should_stop=lambda: bool(presented(sandbox)))
    assert (counts(run), run.ended) == ({"refreshed": 1}, "stop")
    assert_untouched(batch[1:])


def test_nothing_is_claimed_when_the_run_is_to_stop_at_once(batch: list[Credential]) -> None:
    run = Credential.objects.refresh_due(should_stop=lambda: True)
    assert (counts(run), run.ended) == ({}, "stop")
    assert_untouched(batch)


def test_run_ends_because_of_keap_when_all_that_is_due_waits_for_it(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(DOWN, times=None)
    assert Credential.objects.refresh_due().ended == "keap"
    again = Credential.objects.refresh_due()
    assert (counts(again), again.ended) == ({"stopped": 1}, "keap")


# What it leaves


@TWO_BY_TWO
def test_unused_leases_are_given_back_and_answers_stored_when_the_run_is_to_stop(
    transactional_db: None, sandbox: Sandbox, batch: list[Credential]
) -> None:
    Credential.objects.filter(pk=batch[3].pk).update(unanswered_attempts=1)
    batch[3].refresh_from_db()
    gate, stop = held(sandbox, batch[1:]), threading.Event()
    with threads(1) as start:
        run = start(lambda: Credential.objects.refresh_due(should_stop=stop.is_set))
        gate.wait_until_processed(2)
        assert leased() > 2  # some are claimed ahead
        stop.set()
        wait_until(lambda: leased() == 2)
        assert not run.done()
        assert_untouched(batch[3:])
        gate.release()
    assert (counts(run.result()), run.result().ended) == ({"refreshed": 3}, "stop")
    assert [row(each).generation for each in batch[:3]] == [2] * 3
    assert presented(sandbox)[0] == batch[0].account
    assert len(presented(sandbox)) == 3
    assert leased() == 0
    assert_untouched(batch[3:])


@TWO_BY_TWO
@pytest.mark.parametrize(
    ("fault", "outcome"),
    [(faults.drop_after(), "unknown"), (faults.throttled(), "unavailable")],
    ids=["unknown outcome", "429"],
)
def test_unused_leases_are_given_back_when_an_answer_halts_the_run(
    transactional_db: None,
    sandbox: Sandbox,
    batch: list[Credential],
    fault: Fault,
    outcome: str,
) -> None:
    Credential.objects.filter(pk=batch[3].pk).update(unanswered_attempts=1)
    batch[3].refresh_from_db()
    halting, gate = Gate("after"), held(sandbox, batch[2:])
    sandbox.plan(faults.hold(halting) | fault, account=batch[1].account)
    with threads(1) as start:
        run = start(Credential.objects.refresh_due)
        gate.wait_until_processed(1)
        halting.release()
        wait_until(lambda: leased() == 1)  # the one that is held
        assert_untouched(batch[3:])
        assert len(presented(sandbox)) == 3
        gate.release()
    done = run.result()
    if outcome == "unknown":  # and the probe was answered
        assert (counts(done), done.ended) == ({"refreshed": 11, "unknown": 1}, "done")
        assert row(batch[1]).unanswered_attempts == 1
    else:
        assert counts(done) == {"refreshed": 2, "unavailable": 1, "stopped": 1}
        assert done.ended == "keap"
        assert_untouched(batch[3:])
    assert leased() == 0


def is_store(sql: str) -> bool:
    return sql.startswith("UPDATE") and "access_token" in sql


@TWO_BY_TWO
@pytest.mark.parametrize("stored_before", [0, 1])
def test_error_comes_out_and_nothing_unsent_is_leased_when_the_database_takes_no_pair(
    transactional_db: None, sandbox: Sandbox, batch: list[Credential], stored_before: int
) -> None:
    def fail_after(run: Run) -> None:
        if run.refreshed >= stored_before:
            failing.append(None)

    failing: list[None] = [] if stored_before else [None]

    def fail(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if failing and is_store(sql):
            raise DataError("disk full")
        return execute(sql, *rest)

    with connection.execute_wrapper(fail), pytest.raises(DataError, match="disk full"):
        Credential.objects.refresh_due(on_progress=fail_after)
    sent = presented(sandbox)
    assert len(sent) == len(set(sent)) < len(batch)
    still = Credential.objects.filter(lease_until__isnull=False)
    assert set(still.values_list("account", flat=True)) == set(sent[stored_before:])
    assert_untouched([each for each in batch if each.account not in sent])
    # What was answered is in the spool.
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 12 - stored_before}
    assert len(presented(sandbox)) == len(set(presented(sandbox))) == len(batch)


# Keap is down


@ONE_BY_ONE
def test_application_is_stopped_after_some_errors_in_a_row(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(DOWN, times=None)
    run = Credential.objects.refresh_due()
    assert counts(run) == {"unavailable": FAILURES_THAT_HALT, "stopped": 1}
    assert presented(sandbox) == [each.account for each in batch[:FAILURES_THAT_HALT]]
    assert probes(sandbox) == 0
    assert state().trouble == "unavailable"
    assert seconds_until_probe() == pytest.approx(15, abs=3)
    assert_untouched(batch[FAILURES_THAT_HALT:])


def test_nothing_is_sent_before_the_probe_is_due(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(DOWN, times=None)
    Credential.objects.refresh_due()
    before = len(sandbox.token_requests)
    for _ in range(3):
        assert counts(Credential.objects.refresh_due()) == {"stopped": 1}
    assert len(sandbox.token_requests) == before
    assert_untouched(batch[FAILURES_THAT_HALT:])


def test_pause_grows_to_a_minute_while_probes_are_in_vain(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(DOWN, times=None)
    Credential.objects.refresh_due()
    sent = len(presented(sandbox))
    for number, pause in enumerate((15, 30, 60, 60), start=1):
        let_probes_be_due()
        assert counts(Credential.objects.refresh_due()) == {"stopped": 1}
        assert (probes(sandbox), len(presented(sandbox))) == (number, sent)
        assert seconds_until_probe() == pytest.approx(pause, abs=3)


@ONE_BY_ONE
def test_one_probe_brings_the_application_back_with_those_first_that_had_failed(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    Credential.objects.update(issued_at=timezone.now() - timedelta(days=1))
    sandbox.plan(DOWN, times=None)
    Credential.objects.refresh_due()
    failed = presented(sandbox)
    sandbox.clear_plan()
    let_probes_be_due()
    run = Credential.objects.refresh_due()
    assert (counts(run), run.ended) == ({"refreshed": len(batch)}, "done")
    assert probes(sandbox) == 1
    assert state().trouble == ""
    again = presented(sandbox)[len(failed) :]
    assert set(again[: len(failed)]) == set(failed)


def test_one_run_probes_when_two_might(
    transactional_db: None, sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(DOWN, times=None)
    Credential.objects.refresh_due()
    sandbox.clear_plan()
    let_probes_be_due()
    before, gate = len(sandbox.token_requests), sandbox.hold("before")
    with threads(1) as start:
        prober = start(Credential.objects.refresh_due)
        gate.wait_until_arrived()
        other = Credential.objects.refresh_due()
        assert (counts(other), other.ended) == ({"stopped": 1}, "keap")
        assert len(sandbox.token_requests) == before
        gate.release()
    assert prober.result().refreshed == len(batch)
    assert probes(sandbox) == 1


@EIGHT_AT_ONCE
def test_application_is_stopped_when_keap_goes_down_in_the_middle_of_a_run(
    transactional_db: None, sandbox: Sandbox, due: Due
) -> None:
    batch = [row(due(account, 90 - place)) for place, account in enumerate(ACCOUNTS[:40])]
    for each in batch[1:]:
        sandbox.plan(DOWN, times=None, account=each.account)
    run = Credential.objects.refresh_due()
    assert (run.refreshed, run.stopped, run.ended) == (1, 1, "keap")
    # With those that were under way when the last one of so many failed.
    assert FAILURES_THAT_HALT <= run.unavailable < FAILURES_THAT_HALT + 8
    assert state().trouble == "unavailable"
    assert len(presented(sandbox)) == 1 + run.unavailable
    assert_untouched([each for each in batch if each.account not in presented(sandbox)])


@pytest.mark.parametrize(("wished", "pause"), [(None, 15), (5, 15), (100, 100), (86_400, 600)])
def test_too_many_requests_stop_the_application_at_once_and_for_as_long_as_keap_wishes(
    sandbox: Sandbox, batch: list[Credential], wished: float | None, pause: float
) -> None:
    sandbox.plan(faults.throttled(wished))
    run = Credential.objects.refresh_due()
    assert (counts(run), run.ended) == ({"unavailable": 1, "stopped": 1}, "keap")
    assert len(sandbox.token_requests) == 1
    assert state().trouble == "unavailable"
    assert seconds_until_probe() == pytest.approx(pause, abs=3)
    assert_untouched(batch[1:])


@ONE_BY_ONE
@pytest.mark.parametrize(
    ("fault", "failures"), [(DOWN, FAILURES_THAT_HALT), (faults.throttled(), 1)]
)
def test_other_application_goes_on_when_one_is_stopped(
    sandbox: Sandbox, due: Due, second: Application, fault: Fault, failures: int
) -> None:
    for place, account in enumerate(ACCOUNTS[:24]):
        if place % 2:
            due(account, 60 - place)
            sandbox.plan(fault, times=None, account=account)
        else:
            due(account, 60 - place, application=second)
    run = Credential.objects.refresh_due()
    assert counts(run) == {"refreshed": 12, "unavailable": failures, "stopped": 1}
    assert run.ended == "keap"
    assert state().trouble == "unavailable"
    of_second = Credential.objects.filter(application=second)
    assert not of_second.exclude(generation=2).exists()


# What it tells


def test_progress_is_told_with_growing_counts(sandbox: Sandbox, batch: list[Credential]) -> None:
    told: list[dict[str, int]] = []
    sandbox.revoke(ACCOUNTS[4])
    run = Credential.objects.refresh_due(on_progress=lambda run: told.append(run.as_dict()))
    assert told[-1] == run.as_dict()
    tried = [sum(each.values()) for each in told]
    assert tried == sorted(tried)
    assert len(set(tried)) > 1
    assert tried[-1] == len(batch)


# What it costs


def connection_numbers() -> set[int]:
    """Return the numbers of the test database's connections, ours among them."""
    question = {
        "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database()",
        "mysql": "SELECT id FROM information_schema.processlist WHERE db = database()",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(question)
        return {number for (number,) in cursor.fetchall()}


@EIGHT_AT_ONCE
def test_run_has_one_database_connection_however_many_calls_are_under_way(
    transactional_db: None, sandbox: Sandbox, batch: list[Credential]
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite does not tell who has opened a database")
    gate, before = held(sandbox, batch[1:]), connection_numbers()
    with threads(1) as start:
        run: Future[Run] = start(Credential.objects.refresh_due)
        gate.wait_until_processed(8)
        during = connection_numbers() - before
        gate.release()
        run.result()
    assert len(during) == 1


@EIGHT_AT_ONCE
def test_threads_that_ask_keap_open_no_connection(
    transactional_db: None, sandbox: Sandbox, batch: list[Credential]
) -> None:
    def opened(**kwargs: Any) -> None:
        openers.append(threading.get_ident())

    openers: list[int] = []
    connection_created.connect(opened)
    try:
        connections.close_all()
        assert Credential.objects.refresh_due().refreshed == len(batch)
    finally:
        connection_created.disconnect(opened)
    assert set(openers) == {threading.get_ident()}


@EIGHT_AT_ONCE
def test_each_refreshed_credential_costs_one_update_and_little_else(
    transactional_db: None, sandbox: Sandbox, due: Due
) -> None:
    for account in ACCOUNTS[:40]:
        due(account)
    with CaptureQueriesContext(connection) as queries:
        assert counts(Credential.objects.refresh_due()) == {"refreshed": 40}
    statements = [each["sql"] for each in queries.captured_queries]
    stores = [sql for sql in statements if is_store(sql)]
    assert len(stores) == 40
    # Claims and events come in batches, larger or smaller ones as answers arrive.
    others = Counter(sql.split()[0] for sql in statements if not is_store(sql))
    assert others["SELECT"] + others["UPDATE"] + others["INSERT"] < 60
    assert others["UPDATE"] < 20
    assert others["INSERT"] < 30


def test_process_that_died_before_it_used_its_claims_has_cost_no_attempt(
    batch: list[Credential],
) -> None:
    for _ in range(2):
        assert len(leases.claim_batch(Credential.objects.due(), 12)) == 12
        end_leases()
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 12}
    assert not CredentialEvent.objects.filter(kind="abandoned").exists()


def test_process_that_died_with_its_claims_in_use_has_cost_an_attempt_each(
    batch: list[Credential],
) -> None:
    claims = leases.claim_batch(Credential.objects.due(), 12)
    leases.use(claims[:5])
    end_leases()
    leases.claim_batch(Credential.objects.due(), 12)
    assert Credential.objects.filter(unanswered_attempts=1).count() == 5


@override_settings(INFUSIONSOFT_REFRESH_RATE=5)
def test_attempt_of_a_dead_process_is_told_when_its_successor_stops_before_its_turn(
    batch: list[Credential],
) -> None:
    now = timezone.now()
    ApplicationState.objects.create(
        since=now, probe_at=now, booked_until=now + timedelta(seconds=0.8)
    )
    leases.use(leases.claim_batch(Credential.objects.due(), 12))
    end_leases()
    asked = iter([False])
    run = Credential.objects.refresh_due(should_stop=lambda: next(asked, True))
    assert run.ended == "stop"
    (told,) = CredentialEvent.objects.filter(kind="abandoned")
    (unanswered,) = Credential.objects.filter(unanswered_attempts=1)
    assert (told.credential, unanswered.lease_until) == (unanswered, None)


def test_places_that_were_booked_do_not_matter_when_there_is_no_ceiling_any_more(
    batch: list[Credential],
) -> None:
    now = timezone.now()
    ApplicationState.objects.create(
        since=now, probe_at=now, booked_until=now + timedelta(minutes=1)
    )
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 12}
