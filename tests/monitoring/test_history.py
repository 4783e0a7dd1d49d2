"""Events: written in one statement, and deleted when they are too old."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_infusionsoft.choices import EventKind
from django_infusionsoft.models import Credential, CredentialEvent
from django_infusionsoft.monitoring import history
from django_infusionsoft.monitoring.history import Entry

Connect = Callable[..., Credential]
NEVER = lambda: False  # noqa: E731
KEPT_FOR_A_WEEK = override_settings(INFUSIONSOFT_EVENT_RETENTION_DAYS=7)


def entries(*credentials: Credential) -> list[Entry]:
    return [
        Entry(each, EventKind.REFRESHED, {"detail": each.account, "duration_ms": index})
        for index, each in enumerate(credentials)
    ]


def details(kind: EventKind = EventKind.REFRESHED) -> list[str]:
    """Return the details of the events of a kind, in the order of writing."""
    found = CredentialEvent.objects.filter(kind=kind).order_by("pk")
    return list(found.values_list("detail", flat=True))


def statements(queries: CaptureQueriesContext, begin: str) -> int:
    return sum(each["sql"].startswith(begin) for each in queries.captured_queries)


@pytest.fixture
def three_accounts(connect: Connect) -> list[Credential]:
    """Three connected accounts."""
    return [connect(account) for account in ("ab123", "cd456", "ef789")]


@pytest.fixture
def write_aged(credential: Credential) -> Callable[..., None]:
    """Write events of these ages in days, with their age as the detail: ``write_aged(8, 6.9)``."""

    def write(*days: float) -> None:
        for each in days:
            event = CredentialEvent.objects.create(
                credential=credential, kind=EventKind.REFRESHED, generation=1, detail=f"{each:g}"
            )
            then = timezone.now() - timedelta(days=each)
            CredentialEvent.objects.filter(pk=event.pk).update(created_at=then)

    return write


# Writing


def test_all_events_are_written_in_one_statement(three_accounts: list[Credential]) -> None:
    with CaptureQueriesContext(connection) as queries:
        history.record_all(entries(*three_accounts))
    assert statements(queries, "INSERT") == 1
    assert details() == ["ab123", "cd456", "ef789"]
    events = CredentialEvent.objects.filter(kind="refreshed").order_by("pk")
    assert [event.duration_ms for event in events] == [0, 1, 2]
    assert [event.credential_id for event in events] == [each.pk for each in three_accounts]
    assert all(abs(timezone.now() - each.created_at) < timedelta(minutes=1) for each in events)


def test_no_query_is_made_when_there_are_no_events(db: None) -> None:
    with CaptureQueriesContext(connection) as queries:
        history.record_all([])
    assert len(queries) == 0


@pytest.mark.parametrize("index", range(3))
def test_other_events_are_written_when_a_credential_was_deleted(
    three_accounts: list[Credential],
    transactional_db: None,
    caplog: pytest.LogCaptureFixture,
    index: int,
) -> None:
    Credential.objects.filter(pk=three_accounts[index].pk).delete()
    history.record_all(entries(*three_accounts))
    del three_accounts[index]
    assert details() == [each.account for each in three_accounts]
    assert caplog.text.count("event_not_written") == 1


# Pruning


def test_events_are_deleted_after_the_retention_of_the_settings(
    write_aged: Callable[..., None],
) -> None:
    write_aged(8, 6.9, 400, 7.1, 0)
    with KEPT_FOR_A_WEEK:
        assert history.prune("default", is_over=NEVER) == 3
    assert details() == ["6.9", "0"]
    assert details(EventKind.IMPORTED) == [""]


def test_imports_are_never_deleted(credential: Credential) -> None:
    CredentialEvent.objects.update(created_at=timezone.now() - timedelta(days=400))
    with KEPT_FOR_A_WEEK:
        assert history.prune("default", is_over=NEVER) == 0
    assert credential.events.get().kind == "imported"


def test_all_events_are_kept_when_the_retention_is_zero(write_aged: Callable[..., None]) -> None:
    write_aged(10_000)
    with (
        override_settings(INFUSIONSOFT_EVENT_RETENTION_DAYS=0),
        CaptureQueriesContext(connection) as queries,
    ):
        assert history.prune("default", is_over=NEVER) == 0
    assert len(queries) == 0
    assert details() == ["10000"]


@KEPT_FOR_A_WEEK
def test_events_are_deleted_in_batches(
    write_aged: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.monitoring.history.PRUNE_BATCH_SIZE", 2)
    write_aged(10, 11, 12, 13, 14)
    with CaptureQueriesContext(connection) as queries:
        assert history.prune("default", is_over=NEVER) == 5
    assert statements(queries, "DELETE") == 3
    assert details() == []


@KEPT_FOR_A_WEEK
def test_pruning_stops_after_the_oldest_events_when_time_is_over(
    write_aged: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.monitoring.history.PRUNE_BATCH_SIZE", 2)
    write_aged(10, 14, 12, 13, 11)
    assert history.prune("default", is_over=lambda: True) == 2
    assert details() == ["10", "12", "11"]


@KEPT_FOR_A_WEEK
def test_pruning_deletes_at_most_the_maximum_per_run(
    write_aged: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.monitoring.history.PRUNE_BATCH_SIZE", 1)
    monkeypatch.setattr("django_infusionsoft.monitoring.history.MAX_PRUNED", 2)
    write_aged(10, 11, 12)
    assert history.prune("default", is_over=NEVER) == 2
    assert history.prune("default", is_over=NEVER) == 1


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
