"""Events are added up, and deleted when they are too old or too many."""

from collections.abc import Callable
from datetime import UTC, timedelta

import pytest
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_infusionsoft.choices import EventKind
from django_infusionsoft.models import Application, Credential, CredentialEvent, DailyCount
from django_infusionsoft.monitoring import counts, retention
from django_infusionsoft.monitoring.health import health_of
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import run

NEVER = lambda: False  # noqa: E731
KEPT_FOR_A_WEEK = override_settings(INFUSIONSOFT_EVENT_RETENTION_DAYS=7)


def details(kind: EventKind = EventKind.REFRESH_FAILED) -> list[str]:
    """Return the details of the events of a kind, in the order of writing."""
    found = CredentialEvent.objects.filter(kind=kind).order_by("pk")
    return list(found.values_list("detail", flat=True))


def statements(queries: CaptureQueriesContext, begin: str) -> int:
    return sum(each["sql"].startswith(begin) for each in queries.captured_queries)


def write_refreshes(credential: Credential, count: int, kind: str = "refreshed") -> None:
    CredentialEvent.objects.bulk_create(
        CredentialEvent(credential=credential, kind=kind, generation=number)
        for number in range(1, count + 1)
    )


def generations(credential: Credential) -> list[int]:
    """Return the generations of the refreshes in the history."""
    found = credential.events.filter(kind__in=["refreshed", "recovered"]).order_by("pk")
    return list(found.values_list("generation", flat=True))


@pytest.fixture
def write_aged(credential: Credential) -> Callable[..., None]:
    """Write events of these ages in days, with their age as the detail: ``write_aged(8, 6.9)``."""

    def write(*days: float) -> None:
        for each in days:
            event = CredentialEvent.objects.create(
                credential=credential,
                kind=EventKind.REFRESH_FAILED,
                generation=1,
                detail=f"{each:g}",
            )
            then = timezone.now() - timedelta(days=each)
            CredentialEvent.objects.filter(pk=event.pk).update(created_at=then)

    return write


# By age


def test_events_are_deleted_after_the_retention_of_the_settings(
    write_aged: Callable[..., None],
) -> None:
    write_aged(8, 6.9, 400, 7.1, 0)
    with KEPT_FOR_A_WEEK:
        assert retention.prune("default", is_over=NEVER) == 3
    assert details() == ["6.9", "0"]
    assert details(EventKind.IMPORTED) == [""]


def test_imports_are_never_deleted(credential: Credential) -> None:
    CredentialEvent.objects.update(created_at=timezone.now() - timedelta(days=400))
    with KEPT_FOR_A_WEEK:
        assert retention.prune("default", is_over=NEVER) == 0
    assert credential.events.get().kind == "imported"


def test_all_events_are_kept_when_the_retention_is_zero(write_aged: Callable[..., None]) -> None:
    write_aged(10_000)
    with (
        override_settings(INFUSIONSOFT_EVENT_RETENTION_DAYS=0),
        CaptureQueriesContext(connection) as queries,
    ):
        assert retention.prune("default", is_over=NEVER) == 0
    assert statements(queries, "DELETE") == 0
    assert details() == ["10000"]


@KEPT_FOR_A_WEEK
def test_events_are_deleted_in_batches(
    write_aged: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.monitoring.retention.DELETE_BATCH_SIZE", 2)
    write_aged(10, 11, 12, 13, 14)
    with CaptureQueriesContext(connection) as queries:
        assert retention.prune("default", is_over=NEVER) == 5
    assert statements(queries, "DELETE") == 3
    assert details() == []


@KEPT_FOR_A_WEEK
def test_pruning_stops_after_the_oldest_events_when_time_is_over(
    write_aged: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.monitoring.retention.DELETE_BATCH_SIZE", 2)
    write_aged(10, 14, 12, 13, 11)
    assert retention.prune("default", is_over=lambda: True) == 2
    assert details() == ["12", "13", "11"]


@KEPT_FOR_A_WEEK
def test_pruning_deletes_at_most_the_maximum_per_run(
    write_aged: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.monitoring.retention.DELETE_BATCH_SIZE", 1)
    monkeypatch.setattr("django_infusionsoft.monitoring.retention.MAX_PRUNED", 2)
    write_aged(10, 11, 12)
    assert retention.prune("default", is_over=NEVER) == 2
    assert retention.prune("default", is_over=NEVER) == 1


@KEPT_FOR_A_WEEK
def test_run_prunes_events_and_logs_their_number(
    write_aged: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="django_infusionsoft")
    write_aged(10, 11, 3)
    assert Credential.objects.refresh_due().pruned == 2
    assert "pruned=2 ended=done" in caplog.text
    assert details() == ["3"]


@KEPT_FOR_A_WEEK
def test_stopped_run_prunes_no_events(write_aged: Callable[..., None]) -> None:
    write_aged(10)
    assert Credential.objects.refresh_due(should_stop=lambda: True).pruned == 0
    assert details() == ["10"]


# By number


def test_newest_refreshes_of_each_account_are_kept(connect_two: list[Credential]) -> None:
    first, second = connect_two
    write_refreshes(first, 23)
    write_refreshes(second, 5)
    write_refreshes(first, 2, "recovered")
    CredentialEvent.objects.update(created_at=timezone.now() - timedelta(days=400))
    assert retention.prune("default", is_over=NEVER) == 5
    assert generations(first) == [*range(6, 24), 1, 2]
    assert generations(second) == [1, 2, 3, 4, 5]


def test_number_of_kept_refreshes_is_that_of_the_settings(credential: Credential) -> None:
    write_refreshes(credential, 5)
    with override_settings(INFUSIONSOFT_EVENT_RETENTION_REFRESHES=2):
        retention.prune("default", is_over=NEVER)
    assert generations(credential) == [4, 5]


@KEPT_FOR_A_WEEK
def test_refreshes_are_kept_by_their_age_when_the_number_is_zero(credential: Credential) -> None:
    write_refreshes(credential, 30)
    old = credential.events.filter(kind="refreshed", generation__lte=3)
    old.update(created_at=timezone.now() - timedelta(days=8))
    with override_settings(INFUSIONSOFT_EVENT_RETENTION_REFRESHES=0):
        retention.prune("default", is_over=NEVER)
    assert generations(credential) == [*range(4, 31)]


def test_other_events_than_refreshes_are_kept_whatever_their_number(
    credential: Credential,
) -> None:
    write_refreshes(credential, 30, "refresh_failed")
    assert retention.prune("default", is_over=NEVER) == 0


def test_each_run_looks_at_the_next_accounts(
    connect_two: list[Credential], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "CREDENTIALS_PER_RUN", 1)
    for each in connect_two:
        write_refreshes(each, 22)
    pruned = [Credential.objects.refresh_due().pruned for _ in range(4)]
    assert pruned == [2, 2, 0, 0]
    write_refreshes(connect_two[0], 1)
    assert sum(Credential.objects.refresh_due().pruned for _ in range(3)) == 1


# Counts


@pytest.fixture
def failing(connect: Callable[..., Credential], sandbox: Sandbox) -> None:
    """Three accounts: the next run refreshes one, loses one, and fails for one."""
    connect("ab123", seconds_left=-1)
    sandbox.plan(faults.error_503())
    run()
    connect("cd456", seconds_left=-1)
    connect("ef789", seconds_left=-1)
    sandbox.revoke("ef789")


def test_runs_add_up_refreshes_by_day(failing: None) -> None:
    run()
    count = DailyCount.objects.get()
    assert (count.refreshed, count.failed, count.lost) == (1, 1, 1)
    assert count.day == timezone.now().astimezone(UTC).date()
    assert count.seconds > 0
    run()
    assert DailyCount.objects.get().refreshed == 1


def test_single_refresh_is_counted_by_the_next_run_without_a_statement_of_its_own(
    credential: Credential,
) -> None:
    with CaptureQueriesContext(connection) as queries:
        credential.refresh()
    assert not any("dailycount" in each["sql"] for each in queries.captured_queries)
    run()
    assert DailyCount.objects.get().refreshed == 1


def test_counts_are_kept_by_application_and_outlive_the_events(
    due: Callable[..., Credential], second: Application, sandbox: Sandbox
) -> None:
    due("ab123")
    due("cd456")
    credential = due("ef789")
    Credential.objects.filter(pk=credential.pk).update(application=second)
    CredentialEvent.objects.all().delete()
    for each in Credential.objects.all():
        write_refreshes(each, 3)
    with override_settings(INFUSIONSOFT_EVENT_RETENTION_REFRESHES=1):
        Credential.objects.update(refresh_at=None)
        run()
    found = DailyCount.objects.order_by("application_key")
    assert [(each.application_key, each.refreshed) for each in found] == [(0, 6), (second.pk, 3)]
    assert CredentialEvent.objects.count() == 3


def test_all_batches_are_counted(credential: Credential, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "BATCH_SIZE", 2)
    write_refreshes(credential, 5)
    run()
    assert DailyCount.objects.get().refreshed == 5


def test_health_shows_the_last_days(credential: Credential) -> None:
    credential.refresh()
    run()
    today = DailyCount.objects.get()
    DailyCount.objects.create(day=today.day, application_key=7, refreshed=2, seconds=1.5)
    DailyCount.objects.create(day=today.day - timedelta(days=7), refreshed=9)
    (day,) = health_of("default").as_dict()["days"]
    assert day["day"] == today.day.isoformat()
    assert (day["refreshed"], day["failed"], day["lost"]) == (3, 0, 0)
    assert day["seconds"] == pytest.approx(today.seconds + 1.5, abs=0.001)
