"""When to refresh: arithmetic only."""

from datetime import UTC, datetime, timedelta

import pytest

from django_infusionsoft.timing import BUSY_SECONDS, Plan, backoff

DAY = 86_400
NOW = datetime(2026, 3, 4, 5, 17, 30, tzinfo=UTC)
SEEDS = [f"ab{n}" for n in range(2000)]


def delays(life: float, now: datetime = NOW) -> list[float]:
    plan = Plan(fraction=0.75)
    return [plan.delay(life, seed=seed, now=now) for seed in SEEDS]


def test_refresh_comes_well_before_the_end_and_not_too_often() -> None:
    assert all(0.62 * DAY < delay < 0.81 * DAY for delay in delays(DAY))


@pytest.mark.parametrize("minutes", range(0, 60, 7))
def test_refresh_stays_away_from_the_full_hour(minutes: int) -> None:
    now = NOW.replace(minute=minutes)
    for delay in delays(DAY, now):
        at = (now + timedelta(seconds=delay)).timestamp() % 3600
        assert BUSY_SECONDS - 1e-3 <= at <= 3600 - BUSY_SECONDS + 1e-3


def test_refreshes_are_spread_where_many_were_connected_at_once() -> None:
    minutes = {round(delay / 60) for delay in delays(DAY)}
    assert len(minutes) > 90


def test_delay_is_the_same_when_asked_again() -> None:
    assert delays(DAY) == delays(DAY)


def test_short_lives_of_a_sandbox_are_refreshed_before_their_end() -> None:
    assert all(63 - 1e-9 <= delay <= 72 for delay in delays(90))


@pytest.mark.parametrize("life", [0, -5, -1e9])
def test_refresh_is_due_at_once_when_the_access_token_has_ended(life: float) -> None:
    assert set(delays(life)) == {0}


def test_refresh_token_is_used_in_time_when_the_access_token_lives_for_a_year() -> None:
    assert all(31 * DAY < delay < 37 * DAY for delay in delays(365 * DAY))


@pytest.mark.parametrize(("days", "fraction"), [(45, 0.5), (10, 0.75), (1, 0.9)])
def test_refresh_token_is_used_before_the_part_of_its_own_life_is_over(
    days: int, fraction: float
) -> None:
    plan = Plan(fraction, refresh_token_seconds=days * DAY)
    for seed in SEEDS:
        delay = plan.delay(365 * DAY, seed=seed, now=NOW)
        assert delay <= days * DAY * (fraction + 0.05)
        # An hour's rush, and the hour before it, may be stayed away from.
        assert delay >= days * DAY * (fraction - 0.05) - 3600


def test_pause_grows_from_minutes_to_an_hour() -> None:
    pauses = [backoff(failures, seed="") for failures in range(1, 100)]
    assert 90 <= pauses[0] <= 150
    assert pauses[1] > 150
    assert all(45 * 60 <= pause <= 75 * 60 for pause in pauses[5:])


def test_pauses_differ_between_credentials() -> None:
    assert len({backoff(3, seed=seed) for seed in SEEDS}) > 1000
