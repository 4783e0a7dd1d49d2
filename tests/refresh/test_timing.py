"""The times of refreshes and retries: arithmetic only."""

from datetime import UTC, datetime, timedelta

import pytest

from django_infusionsoft.refresh.timing import BUSY_SECONDS, Plan, backoff

DAY = 86_400
NOW = datetime(2026, 3, 4, 5, 17, 30, tzinfo=UTC)
SEEDS = [f"ab{n}" for n in range(2000)]


def delays(lifetime: float, now: datetime = NOW) -> list[float]:
    plan = Plan(fraction=0.75)
    return [plan.delay(lifetime, seed=seed, now=now) for seed in SEEDS]


def test_refresh_is_due_well_before_expiry_and_not_too_often() -> None:
    assert all(0.62 * DAY < delay < 0.81 * DAY for delay in delays(DAY))


@pytest.mark.parametrize("minutes", range(0, 60, 7))
def test_refresh_avoids_the_full_hour(minutes: int) -> None:
    now = NOW.replace(minute=minutes)
    for delay in delays(DAY, now):
        at = (now + timedelta(seconds=delay)).timestamp() % 3600
        assert BUSY_SECONDS - 1e-3 <= at <= 3600 - BUSY_SECONDS + 1e-3


def test_refreshes_are_spread_when_many_were_connected_at_once() -> None:
    minutes = {round(delay / 60) for delay in delays(DAY)}
    assert len(minutes) > 90


def test_delay_is_the_same_when_computed_again() -> None:
    assert delays(DAY) == delays(DAY)


def test_refresh_is_due_before_expiry_when_the_lifetime_is_short() -> None:
    assert all(63 - 1e-9 <= delay <= 72 for delay in delays(90))


@pytest.mark.parametrize("lifetime", [0, -5, -1e9])
def test_refresh_is_due_at_once_when_the_access_token_has_expired(lifetime: float) -> None:
    assert set(delays(lifetime)) == {0}


def test_refresh_token_is_used_in_time_when_the_access_token_is_valid_for_a_year() -> None:
    assert all(31 * DAY < delay < 37 * DAY for delay in delays(365 * DAY))


@pytest.mark.parametrize(("days", "fraction"), [(45, 0.5), (10, 0.75), (1, 0.9)])
def test_refresh_token_is_used_within_the_fraction_of_its_own_lifetime(
    days: int, fraction: float
) -> None:
    plan = Plan(fraction, refresh_token_seconds=days * DAY)
    for seed in SEEDS:
        delay = plan.delay(365 * DAY, seed=seed, now=NOW)
        assert delay <= days * DAY * (fraction + 0.05)
        # The delay may be up to an hour shorter, to avoid the full hour.
        assert delay >= days * DAY * (fraction - 0.05) - 3600


def test_retry_delay_grows_from_minutes_to_an_hour() -> None:
    pauses = [backoff(failures, seed="") for failures in range(1, 100)]
    assert 90 <= pauses[0] <= 150
    assert pauses[1] > 150
    assert all(45 * 60 <= pause <= 75 * 60 for pause in pauses[5:])


def test_retry_delays_differ_between_credentials() -> None:
    assert len({backoff(3, seed=seed) for seed in SEEDS}) > 1000
