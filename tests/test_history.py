"""Events: written together, and deleted when they are too old."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_infusionsoft import history
from django_infusionsoft.choices import EventKind
from django_infusionsoft.history import Entry
from django_infusionsoft.models import Credential, CredentialEvent

Connect = Callable[..., Credential]
NEVER = lambda: False  # noqa: E731
KEPT_FOR_A_WEEK = override_settings(INFUSIONSOFT_EVENT_RETENTION_DAYS=7)


def entries(*credentials: Credential) -> list[Entry]:
    return [
        Entry(each, EventKind.REFRESHED, {"detail": each.account, "duration_ms": place})
        for place, each in enumerate(credentials)
    ]


def told(kind: EventKind = EventKind.REFRESHED) -> list[str]:
    """Return what the events of a kind say, in the order in which they were written."""
    found = CredentialEvent.objects.filter(kind=kind).order_by("pk")
    return list(found.values_list("detail", flat=True))


def statements(queries: CaptureQueriesContext, begin: str) -> int:
    return sum(each["sql"].startswith(begin) for each in queries.captured_queries)


@pytest.fixture
def many(connect: Connect) -> list[Credential]:
    """Three connected accounts."""
    return [connect(account) for account in ("ab123", "cd456", "ef789")]


@pytest.fixture
def aged(credential: Credential) -> Callable[..., None]:
    """Write events that are some days old: ``aged(8, 8, 6.9)``, named so."""

    def write(*days: float) -> None:
        for each in days:
            event = CredentialEvent.objects.create(
                credential=credential, kind=EventKind.REFRESHED, generation=1, detail=f"{each:g}"
            )
            then = timezone.now() - timedelta(days=each)
            CredentialEvent.objects.filter(pk=event.pk).update(created_at=then)

    return write


# Written


def test_all_events_are_written_in_one_statement(many: list[Credential]) -> None:
    with CaptureQueriesContext(connection) as queries:
        history.record_all(entries(*many))
    assert statements(queries, "INSERT") == 1
    assert told() == ["ab123", "cd456", "ef789"]
    events = CredentialEvent.objects.filter(kind="refreshed").order_by("pk")
    assert [event.duration_ms for event in events] == [0, 1, 2]
    assert [event.credential_id for event in events] == [each.pk for each in many]
    assert all(abs(timezone.now() - each.created_at) < timedelta(minutes=1) for each in events)


def test_no_statement_is_sent_when_there_is_nothing_to_write(db: None) -> None:
    with CaptureQueriesContext(connection) as queries:
        history.record_all([])
    assert len(queries) == 0


@pytest.mark.parametrize("place", range(3))
def test_others_events_are_written_when_a_credential_was_deleted(
    many: list[Credential],
    transactional_db: None,
    caplog: pytest.LogCaptureFixture,
    place: int,
) -> None:
    Credential.objects.filter(pk=many[place].pk).delete()
    history.record_all(entries(*many))
    del many[place]
    assert told() == [each.account for each in many]
    assert caplog.text.count("event_not_written") == 1


# Pruned


def test_events_are_deleted_when_they_are_older_than_the_settings_say(
    aged: Callable[..., None],
) -> None:
    aged(8, 6.9, 400, 7.1, 0)
    with KEPT_FOR_A_WEEK:
        assert history.prune(Credential, "default", is_over=NEVER) == 3
    assert told() == ["6.9", "0"]
    assert told(EventKind.IMPORTED) == [""]


def test_all_events_are_kept_when_the_settings_say_so(aged: Callable[..., None]) -> None:
    aged(10_000)
    with (
        override_settings(INFUSIONSOFT_EVENT_RETENTION_DAYS=0),
        CaptureQueriesContext(connection) as queries,
    ):
        assert history.prune(Credential, "default", is_over=NEVER) == 0
    assert len(queries) == 0
    assert told() == ["10000"]


@KEPT_FOR_A_WEEK
def test_events_are_deleted_a_few_at_a_time(
    aged: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.history.PRUNED_AT_ONCE", 2)
    aged(10, 11, 12, 13, 14)
    with CaptureQueriesContext(connection) as queries:
        assert history.prune(Credential, "default", is_over=NEVER) == 5
    assert statements(queries, "DELETE") == 3
    assert told() == []


@KEPT_FOR_A_WEEK
def test_pruning_stops_when_it_is_over_with_the_oldest_events_gone(
    aged: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.history.PRUNED_AT_ONCE", 2)
    aged(10, 14, 12, 13, 11)
    assert history.prune(Credential, "default", is_over=lambda: True) == 2
    assert told() == ["10", "12", "11"]


@KEPT_FOR_A_WEEK
def test_arrears_are_not_deleted_all_at_once(
    aged: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.history.PRUNED_AT_ONCE", 1)
    monkeypatch.setattr("django_infusionsoft.history.MOST_PRUNED", 2)
    aged(10, 11, 12)
    assert history.prune(Credential, "default", is_over=NEVER) == 2
    assert history.prune(Credential, "default", is_over=NEVER) == 1


@KEPT_FOR_A_WEEK
def test_run_prunes_and_says_how_much(
    aged: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="django_infusionsoft")
    aged(10, 11, 3)
    assert Credential.objects.refresh_due().pruned == 2
    assert "pruned=2 ended=done" in caplog.text
    assert told() == ["3"]


@KEPT_FOR_A_WEEK
def test_run_that_is_to_stop_prunes_nothing(aged: Callable[..., None]) -> None:
    aged(10)
    assert Credential.objects.refresh_due(should_stop=lambda: True).pruned == 0
    assert told() == ["10"]
