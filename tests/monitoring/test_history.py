"""Events: written in one statement."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_infusionsoft.choices import EventKind
from django_infusionsoft.models import Credential, CredentialEvent
from django_infusionsoft.monitoring import history
from django_infusionsoft.monitoring.history import Entry

Connect = Callable[..., Credential]


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
