"""The limit of refreshes a second, which all runs share by reserving slots in a database row."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise

import pytest
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_infusionsoft.models import Application, ApplicationState, Credential
from django_infusionsoft.refresh import rate_limit
from django_infusionsoft.sandbox import Client, Sandbox
from django_infusionsoft.storage.applications import from_now, row_of, state_of
from tests.support import SECOND, row, threads

Due = Callable[..., Credential]
ACCOUNTS = [f"acc{number:02}" for number in range(1, 25)]
RATE = 20
# The length of a slot: a twentieth of a second.
INTERVAL = timedelta(seconds=1 / RATE)
# A request may be late and the next one in time.
LATE_SECONDS = 0.25


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Run Keap with many accounts, two clients and a rate limit."""
    with (
        Sandbox(accounts=ACCOUNTS, clients=[Client(), SECOND]) as running,
        override_settings(**running.settings | {"INFUSIONSOFT_REFRESH_RATE": RATE}),
    ):
        yield running


def times(sandbox: Sandbox, client: Client | None = None) -> list[float]:
    """Return the times of all requests, or of one client's, in epoch seconds."""
    client_ids = [client.client_id] if client else [Client().client_id, SECOND.client_id]
    return sorted(
        request.at for request in sandbox.token_requests if request.client_id in client_ids
    )


def max_in(seconds: float, moments: list[float]) -> int:
    """Return the largest number of moments in any period of so many seconds."""
    return max(sum(begin <= moment < begin + seconds for moment in moments) for begin in moments)


def assert_within_limit(moments: list[float]) -> None:
    assert moments[-1] - moments[0] >= (len(moments) - 1) / RATE - LATE_SECONDS
    for seconds in (0.25, 0.5, 1):
        assert max_in(seconds, moments) <= (seconds + LATE_SECONDS) * RATE + 1


def reserve_all(application: Application | None, seconds: float) -> None:
    """Reserve every slot for so many seconds."""
    state = state_of("default", application)
    row_of("default", state).update(reserved_until=from_now(seconds))


# Runs


def test_run_sends_no_faster_than_the_rate_limit(
    transactional_db: None, sandbox: Sandbox, due: Due
) -> None:
    for account in ACCOUNTS:
        due(account)
    assert Credential.objects.refresh_due().refreshed == len(ACCOUNTS)
    assert_within_limit(times(sandbox))


def test_concurrent_runs_together_send_no_faster_than_the_rate_limit(
    transactional_db: None, sandbox: Sandbox, due: Due
) -> None:
    for account in ACCOUNTS:
        due(account)
    gate = sandbox.hold("before", times=None)
    with threads(2) as start:
        runs = [start(Credential.objects.refresh_due) for _ in range(2)]
        gate.wait_until_arrived(2)  # both have started
        gate.release()
    refreshed = [run.result().refreshed for run in runs]
    assert sum(refreshed) == len(ACCOUNTS)
    assert min(refreshed) > 0
    assert_within_limit(times(sandbox))


def test_each_application_has_its_own_rate_limit(
    transactional_db: None, sandbox: Sandbox, due: Due, second: Application
) -> None:
    for account in ACCOUNTS[:12]:
        due(account)
        due(account, application=second)
    assert Credential.objects.refresh_due().refreshed == 24
    for client in (Client(), SECOND):
        assert len(times(sandbox, client)) == 12
        assert_within_limit(times(sandbox, client))
    ours, seconds = (state_of("default", each).reserved_until for each in (None, second))
    assert ours is not None
    assert seconds is not None
    # Twelve slots each, not twelve followed by another twelve.
    assert abs(ours - seconds) < 12 * INTERVAL


def test_no_slot_is_reserved_when_there_is_no_rate_limit(sandbox: Sandbox, due: Due) -> None:
    for account in ACCOUNTS[:3]:
        due(account)
    with override_settings(INFUSIONSOFT_REFRESH_RATE=0):
        assert Credential.objects.refresh_due().refreshed == 3
    assert not ApplicationState.objects.exists()


def test_run_waits_when_others_have_reserved_all_slots(
    transactional_db: None, sandbox: Sandbox, due: Due
) -> None:
    due(ACCOUNTS[0])
    reserve_all(None, rate_limit.AHEAD_SECONDS + 0.5)
    free_at = ApplicationState.objects.values_list("reserved_until", flat=True).get()
    assert free_at is not None
    run = Credential.objects.refresh_due()
    assert (run.refreshed, run.ended) == (1, "done")
    assert times(sandbox)[0] >= free_at.timestamp() - 0.05


@pytest.mark.parametrize("ended", ["time_limit", "stop"])
def test_run_that_waits_for_a_slot_ends_when_it_is_stopped(
    transactional_db: None, sandbox: Sandbox, due: Due, ended: str
) -> None:
    before = row(due(ACCOUNTS[0]))
    reserve_all(None, 100)
    asked: list[None] = []

    def should_stop() -> bool:
        asked.append(None)
        return ended == "stop" and len(asked) > 1

    run = Credential.objects.refresh_due(time_limit_seconds=0.5, should_stop=should_stop)
    assert (run.tried, run.ended) == (0, ended)
    assert sandbox.token_requests == []
    after = row(before)
    assert (after.lease_until, after.refresh_at) == (None, before.refresh_at)


def test_run_does_not_wait_for_a_slot_when_nothing_is_due(sandbox: Sandbox, db: None) -> None:
    reserve_all(None, 100)
    assert Credential.objects.refresh_due(time_limit_seconds=60).ended == "done"


def test_others_are_refreshed_when_one_application_has_no_free_slot(
    transactional_db: None, sandbox: Sandbox, due: Due, second: Application
) -> None:
    booked_out = [due(account, 60) for account in ACCOUNTS[:3]]
    for account in ACCOUNTS[:3]:
        due(account, application=second)
    reserve_all(None, 100)
    run = Credential.objects.refresh_due(time_limit_seconds=2)
    assert (run.refreshed, run.ended) == (3, "time_limit")
    assert {request.client_id for request in sandbox.token_requests} == {SECOND.client_id}
    assert [row(each).lease_until for each in booked_out] == [None] * 3
    assert set(Credential.objects.due()) == set(booked_out)


def test_waiting_leases_are_released_when_the_run_is_stopped(
    transactional_db: None, sandbox: Sandbox, due: Due
) -> None:
    before = {each.pk: each.refresh_at for each in map(row, map(due, ACCOUNTS))}
    with override_settings(INFUSIONSOFT_REFRESH_RATE=5):
        # Once the second has been sent, others are claimed and wait for their slots.
        run = Credential.objects.refresh_due(should_stop=lambda: len(times(sandbox)) >= 2)
    assert run.ended == "stop"
    assert run.refreshed == len(times(sandbox))
    left = Credential.objects.filter(generation=1)
    assert len(left) == len(ACCOUNTS) - run.refreshed
    for each in left:
        assert (each.lease_until, each.unanswered_attempts) == (None, 0)
        assert each.refresh_at == before[each.pk]


# Slots


def test_slots_are_reserved_in_the_row_one_after_the_other(sandbox: Sandbox, db: None) -> None:
    reserve_all(None, 100)
    for count in (1, 5, 3):
        before = state_of("default", None).reserved_until
        slots = rate_limit.reserve("default", None, count)
        after = state_of("default", None).reserved_until
        assert before is not None
        assert after is not None
        assert abs(after - before - count * INTERVAL) < timedelta(milliseconds=1)
        assert len(slots) == count
        for one, next_one in pairwise(slots):
            assert next_one - one == pytest.approx(INTERVAL.total_seconds())
        wait = (before - timezone.now()).total_seconds()
        assert slots[0] - time.monotonic() == pytest.approx(wait, abs=1)


def test_slot_is_free_at_once_when_the_reserved_slots_have_passed(
    sandbox: Sandbox, db: None
) -> None:
    reserve_all(None, -100)
    assert rate_limit.reserve("default", None, 1)[0] <= time.monotonic()
    state = state_of("default", None)
    assert state.reserved_until is not None
    assert abs(state.reserved_until - state.database_now) < timedelta(seconds=5)


def test_slot_is_free_at_once_when_none_is_reserved(sandbox: Sandbox, db: None) -> None:
    assert rate_limit.reserve("default", None, 1)[0] <= time.monotonic()


def test_no_slot_is_reserved_twice_when_many_reserve_at_once(
    transactional_db: None, sandbox: Sandbox
) -> None:
    reserve_all(None, 100)
    before = state_of("default", None).reserved_until

    def reserve() -> list[float]:
        return [slot for _ in range(5) for slot in rate_limit.reserve("default", None, 3)]

    with threads(4) as start:
        reservations = [start(reserve) for _ in range(4)]
    slots = sorted(slot for each in reservations for slot in each.result())
    after = state_of("default", None).reserved_until
    assert before is not None
    assert after is not None
    assert abs(after - before - 60 * INTERVAL) < timedelta(milliseconds=10)
    assert slots[-1] - slots[0] == pytest.approx(59 / RATE, abs=0.5)


def test_reserving_costs_the_same_when_many_slots_are_reserved(sandbox: Sandbox, db: None) -> None:
    rate_limit.reserve("default", None, 1)
    costs = []
    for count in (1, 100):
        with CaptureQueriesContext(connection) as queries:
            rate_limit.reserve("default", None, count)
        costs.append(len(queries))
    assert costs == [2, 2]
