"""One look at all credentials: counted right, whatever state they are in, and cheaply."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_infusionsoft import upkeep
from django_infusionsoft.choices import Condition, Status, Trouble
from django_infusionsoft.health import EXIT_CODES, Health, Verdict, health_of
from django_infusionsoft.models import Application, ApplicationState, Credential, Upkeep

pytestmark = pytest.mark.django_db

Make = Callable[..., Credential]
MINUTE = timedelta(minutes=1)


@pytest.fixture
def make() -> Make:
    """Make a credential's row: ``make(failures=1)``."""

    def make_row(**columns: Any) -> Credential:
        now = timezone.now()
        times = {
            "issued_at": now,
            "expires_at": now + timedelta(days=1),
            "connected_at": now,
            "refresh_at": now + timedelta(hours=18),
        }
        number = Credential.objects.count()
        return Credential.objects.create(**{"account": f"x{number}", **times, **columns})

    return make_row


def look() -> Health:
    return health_of("default")


def see_run(minutes_ago: float = 0) -> None:
    upkeep.see_run("default")
    Upkeep.objects.update(run_seen_at=timezone.now() - minutes_ago * MINUTE)


def due_for(minutes: float) -> dict[str, Any]:
    return {"refresh_at": timezone.now() - minutes * MINUTE}


def leased(minutes: float) -> dict[str, Any]:
    """What a lease is that ends then: ``refresh_at`` is always its end."""
    end = timezone.now() + minutes * MINUTE
    return {"lease_until": end, "refresh_at": end, "lease_id": "x"}


def rows_in_every_state(make: Make) -> None:
    for status, failures, lease in product(Status, (0, 1, 7), ({}, leased(1), leased(-1))):
        make(status=status, failures=failures, **lease)


def test_counts_are_the_conditions_of_all_rows(make: Make) -> None:
    rows_in_every_state(make)
    conditions = Counter(each.condition for each in Credential.objects.all())
    assert look().counts == conditions
    assert look().total == Credential.objects.count() == 27
    assert set(conditions) == set(Condition)


@pytest.mark.parametrize("condition", Condition)
def test_rows_are_found_by_their_condition(make: Make, condition: Condition) -> None:
    rows_in_every_state(make)
    found = set(Credential.objects.get_queryset().in_condition(condition))
    assert found == {each for each in Credential.objects.all() if each.condition == condition}


def test_alive_are_those_that_no_person_has_to_mend(make: Make) -> None:
    rows_in_every_state(make)
    assert look().alive == Credential.objects.connected().count() == 9


def queries_of_a_look() -> int:
    with CaptureQueriesContext(connection) as queries:
        look()
    return len(queries)


def test_look_costs_as_many_queries_for_500_as_for_10(make: Make) -> None:
    see_run()
    first = make()
    fields = {
        each.attname: getattr(first, each.attname)
        for each in Credential._meta.concrete_fields
        if each.attname not in ("id", "account", "application_key")
    }

    def more(count: int, prefix: str) -> None:
        Credential.objects.bulk_create(
            [Credential(**{**fields, "account": f"{prefix}{number}"}) for number in range(count)]
        )

    more(9, "a")
    few = queries_of_a_look()
    more(490, "b")
    assert Credential.objects.count() == 500
    assert queries_of_a_look() == few == 5


def test_nothing_is_decrypted(credential: Credential) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[]):
        assert look().total == 1


def test_nothing_connected_is_well(db: None) -> None:
    health = look()
    assert (health.verdict, health.total, health.is_worker_late) == (Verdict.OK, 0, False)


def test_oldest_that_is_due_tells_how_late_it_is(make: Make) -> None:
    make(**due_for(5))
    make(**due_for(30), expires_at=timezone.now() - MINUTE)
    make()
    health = look()
    assert (health.due, health.ended) == (2, 1)
    assert 30 * 60 <= health.overdue_seconds < 60 * 60


def test_nothing_is_overdue_where_nothing_is_due(make: Make) -> None:
    make()
    health = look()
    assert (health.due, health.overdue_seconds, health.first_lost_at) == (0, 0, None)


@pytest.mark.parametrize("status", [Status.REAUTHORIZATION_REQUIRED, Status.DISCONNECTED])
def test_what_is_over_is_not_due(make: Make, status: Status) -> None:
    make(status=status, **due_for(30))
    assert look().due == 0


def test_leased_is_not_due(make: Make) -> None:
    make(lease_until=timezone.now() + MINUTE, **due_for(30))
    assert look().due == 0


def test_lease_that_ended_is_due(make: Make) -> None:
    make(**leased(-20))
    assert look().due == 1


@pytest.mark.parametrize(
    ("trouble", "due"),
    [(Trouble.REJECTED, 1), (Trouble.UNAVAILABLE, 2), (Trouble.UNANSWERED, 2)],
)
def test_accounts_of_a_refused_client_wait_for_a_person_and_for_no_worker(
    make: Make, second: Application, trouble: Trouble, due: int
) -> None:
    make(**due_for(30), application=second)
    make(**due_for(5))
    now = timezone.now()
    ApplicationState.objects.create(
        application=second, trouble=trouble, since=now, probe_at=now, trips=1
    )
    health = look()
    assert health.due == due
    assert health.needs_person == (trouble == Trouble.REJECTED)


def test_accounts_of_the_settings_client_wait_for_a_person_too(make: Make) -> None:
    make(**due_for(30))
    now = timezone.now()
    ApplicationState.objects.create(trouble=Trouble.REJECTED, since=now, probe_at=now)
    see_run()
    health = look()
    assert (health.due, health.verdict) == (0, Verdict.NEEDS_PERSON)


def test_first_is_lost_when_its_refresh_token_is_too_old(make: Make) -> None:
    issued = timezone.now() - timedelta(days=40)
    make(**due_for(30), issued_at=issued)
    make(**due_for(60))
    lost_at = look().first_lost_at
    assert lost_at is not None
    assert abs(lost_at - issued - timedelta(days=45)) < timedelta(seconds=1)


def test_worker_that_was_never_seen_is_late(make: Make) -> None:
    make()
    health = look()
    assert (health.is_worker_late, health.last_run_at) == (True, None)


def test_worker_that_is_seen_is_not_late(make: Make) -> None:
    make()
    see_run(minutes_ago=10)
    health = look()
    assert (health.is_worker_late, health.verdict) == (False, Verdict.OK)


def test_worker_is_late_after_the_seconds_of_the_settings(make: Make) -> None:
    make()
    see_run(minutes_ago=10)
    with override_settings(INFUSIONSOFT_OVERDUE_SECONDS=300):
        assert look().is_worker_late


def test_no_worker_is_missed_where_nothing_is_alive(make: Make) -> None:
    make(status=Status.DISCONNECTED)
    see_run(minutes_ago=100)
    assert look().verdict == Verdict.OK


@pytest.mark.parametrize(
    ("is_lost", "minutes_due", "minutes_since_run", "verdict"),
    [
        (False, -5, 0, Verdict.OK),
        (False, 5, 0, Verdict.OK),
        (True, -5, 0, Verdict.NEEDS_PERSON),
        (False, 30, 0, Verdict.BEHIND),
        (False, -5, 30, Verdict.BEHIND),
        (True, 30, 0, Verdict.BEHIND),
        (True, -5, 30, Verdict.BEHIND),
    ],
)
def test_verdict_is_the_worst(
    make: Make, is_lost: bool, minutes_due: float, minutes_since_run: float, verdict: Verdict
) -> None:
    make(**due_for(minutes_due))
    if is_lost:
        make(status=Status.REAUTHORIZATION_REQUIRED, refresh_at=None)
    see_run(minutes_since_run)
    assert look().verdict == verdict


def test_exit_codes_are_what_the_documents_say() -> None:
    assert EXIT_CODES == {"ok": 0, "needs_person": 1, "behind": 2}


def test_dictionary_has_numbers_and_times(make: Make) -> None:
    make(account_name="Somebody")
    make(status=Status.REAUTHORIZATION_REQUIRED, refresh_at=None)
    upkeep.end_run("default", ended="done", refreshed=3, failed=1)
    facts = json.loads(json.dumps(look().as_dict()))
    last_run = facts.pop("last_run")
    assert facts == {
        "status": "needs_person",
        "credentials": {
            "connected": 1,
            "refreshing": 0,
            "retrying": 0,
            "needs_attention": 1,
            "disconnected": 0,
        },
        "due": 0,
        "overdue_seconds": 0,
        "applications": {"rejected": 0, "unanswered": 0, "unavailable": 0},
    }
    assert set(last_run) == {
        "seen_at",
        "seconds_ago",
        "ended_at",
        "ended",
        "refreshed",
        "failed",
    }
    assert (last_run["ended"], last_run["refreshed"], last_run["failed"]) == ("done", 3, 1)
    assert last_run["seconds_ago"] < 600


def test_dictionary_knows_no_run_where_none_was_seen(make: Make) -> None:
    make()
    assert look().as_dict()["last_run"] is None


@pytest.mark.django_db(transaction=True)
def test_look_inside_a_transaction_sees_what_is_committed_since(
    make: Make, database_url: str
) -> None:
    make()
    with transaction.atomic():
        Credential.objects.count()
        make()  # not committed
        if connection.vendor == "sqlite":
            pytest.skip("SQLite reads through its write-ahead log either way")
        assert look().total == 1
