"""The health of a site: counts of all credentials, worker state and status."""

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

from django_infusionsoft.choices import BlockReason, Condition, Outcome, Status
from django_infusionsoft.models import Application, ApplicationState, Credential, WorkerState
from django_infusionsoft.monitoring import heartbeat
from django_infusionsoft.monitoring.health import EXIT_CODES, Health, HealthStatus, health_of
from django_infusionsoft.storage.credentials import in_condition

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


def read_health() -> Health:
    return health_of("default")


def record_heartbeat(minutes_ago: float = 0) -> None:
    heartbeat.record_heartbeat("default")
    WorkerState.objects.update(run_seen_at=timezone.now() - minutes_ago * MINUTE)


def due_for(minutes: float) -> dict[str, Any]:
    return {"refresh_at": timezone.now() - minutes * MINUTE}


def leased(minutes: float) -> dict[str, Any]:
    """Return the columns of a lease that expires then; ``refresh_at`` is always its end."""
    end = timezone.now() + minutes * MINUTE
    return {"lease_until": end, "refresh_at": end, "lease_id": "x"}


def rows_in_every_state(make: Make) -> None:
    for status, failures, lease in product(Status, (0, 1, 7), ({}, leased(1), leased(-1))):
        make(status=status, failures=failures, **lease)
    now = timezone.now()
    since: list[dict[str, Any]] = [
        {"expires_at": now - MINUTE},
        {"expires_at": now - MINUTE, **due_for(30)},
        {"failing_since": now - 30 * MINUTE},
        {"failing_since": now - MINUTE},
    ]
    for status, failures, columns in product(Status, (0, 1), since):
        make(status=status, failures=failures, **columns)
    for status, failures, outcome in product(Status, (0, 1), Outcome):
        make(status=status, failures=failures, failed_outcome=outcome, **leased(1))


def test_counts_match_the_conditions_of_all_rows(make: Make) -> None:
    rows_in_every_state(make)
    conditions = Counter(each.condition for each in Credential.objects.all())
    assert read_health().counts == conditions
    assert read_health().total == Credential.objects.count() == 87
    assert set(conditions) == set(Condition)


@pytest.mark.parametrize("condition", Condition)
def test_rows_can_be_filtered_by_their_condition(make: Make, condition: Condition) -> None:
    rows_in_every_state(make)
    found = set(Credential.objects.filter(in_condition(condition)))
    assert found == {each for each in Credential.objects.all() if each.condition == condition}


def test_alive_counts_the_connected_accounts(make: Make) -> None:
    rows_in_every_state(make)
    assert read_health().alive == Credential.objects.connected().count() == 29


def count_queries() -> int:
    with CaptureQueriesContext(connection) as queries:
        read_health()
    return len(queries)


def test_health_needs_the_same_number_of_queries_for_500_accounts(make: Make) -> None:
    record_heartbeat()
    first = make()
    fields = {
        each.attname: getattr(first, each.attname)
        for each in Credential._meta.concrete_fields
        if each.attname not in ("id", "account", "application_key")
    }

    def add(count: int, prefix: str) -> None:
        Credential.objects.bulk_create(
            [Credential(**{**fields, "account": f"{prefix}{number}"}) for number in range(count)]
        )

    add(9, "a")
    few = count_queries()
    add(490, "b")
    assert Credential.objects.count() == 500
    assert count_queries() == few == 7


def test_nothing_is_decrypted(credential: Credential) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[]):
        assert read_health().total == 1


def test_status_is_ok_when_no_account_is_connected(db: None) -> None:
    health = read_health()
    assert (health.status, health.total, health.is_worker_late) == (HealthStatus.OK, 0, False)


def test_overdue_seconds_are_those_of_the_oldest_due_account(make: Make) -> None:
    make(**due_for(5))
    make(**due_for(30), expires_at=timezone.now() - MINUTE)
    make()
    health = read_health()
    assert (health.due, health.expired) == (2, 1)
    assert 30 * 60 <= health.overdue_seconds < 60 * 60


def test_overdue_seconds_are_zero_when_no_account_is_due(make: Make) -> None:
    make()
    health = read_health()
    assert (health.due, health.overdue_seconds, health.first_lost_at) == (0, 0, None)


@pytest.mark.parametrize("status", [Status.REAUTHORIZATION_REQUIRED, Status.DISCONNECTED])
def test_account_is_not_due_when_it_is_not_connected(make: Make, status: Status) -> None:
    make(status=status, **due_for(30))
    assert read_health().due == 0


def test_leased_account_is_not_due(make: Make) -> None:
    make(lease_until=timezone.now() + MINUTE, **due_for(30))
    assert read_health().due == 0


def test_account_is_due_when_its_lease_has_expired(make: Make) -> None:
    make(**leased(-20))
    assert read_health().due == 1


@pytest.mark.parametrize(
    ("block_reason", "due"),
    [(BlockReason.REJECTED, 1), (BlockReason.UNAVAILABLE, 2), (BlockReason.UNANSWERED, 2)],
)
def test_accounts_of_a_rejected_client_are_not_due_and_require_action(
    make: Make, second: Application, block_reason: BlockReason, due: int
) -> None:
    make(**due_for(30), application=second)
    make(**due_for(5))
    now = timezone.now()
    ApplicationState.objects.create(
        application=second, block_reason=block_reason, since=now, probe_at=now
    )
    health = read_health()
    assert health.due == due
    assert health.action_required == (block_reason == BlockReason.REJECTED)


def test_action_is_required_when_the_client_in_the_settings_is_rejected(make: Make) -> None:
    make(**due_for(30))
    now = timezone.now()
    ApplicationState.objects.create(block_reason=BlockReason.REJECTED, since=now, probe_at=now)
    record_heartbeat()
    health = read_health()
    assert (health.due, health.status) == (0, HealthStatus.ACTION_REQUIRED)


def test_first_account_is_lost_45_days_after_its_refresh_token_was_issued(make: Make) -> None:
    issued = timezone.now() - timedelta(days=40)
    make(**due_for(30), issued_at=issued)
    make(**due_for(60))
    lost_at = read_health().first_lost_at
    assert lost_at is not None
    assert abs(lost_at - issued - timedelta(days=45)) < timedelta(seconds=1)


def test_worker_is_late_when_no_run_was_ever_recorded(make: Make) -> None:
    make()
    health = read_health()
    assert (health.is_worker_late, health.last_run_at) == (True, None)


def test_worker_is_not_late_when_a_run_was_recorded_recently(make: Make) -> None:
    make()
    record_heartbeat(minutes_ago=10)
    health = read_health()
    assert (health.is_worker_late, health.status) == (False, HealthStatus.OK)


def test_worker_is_late_after_the_seconds_of_the_settings(make: Make) -> None:
    make()
    record_heartbeat(minutes_ago=10)
    with override_settings(INFUSIONSOFT_OVERDUE_SECONDS=300):
        assert read_health().is_worker_late


def test_worker_is_not_late_when_no_account_is_connected(make: Make) -> None:
    make(status=Status.DISCONNECTED)
    record_heartbeat(minutes_ago=100)
    assert read_health().status == HealthStatus.OK


@pytest.mark.parametrize(
    ("is_lost", "minutes_due", "minutes_since_run", "status"),
    [
        (False, -5, 0, HealthStatus.OK),
        (False, 5, 0, HealthStatus.OK),
        (True, -5, 0, HealthStatus.ACTION_REQUIRED),
        (False, 30, 0, HealthStatus.BEHIND),
        (False, -5, 30, HealthStatus.BEHIND),
        (True, 30, 0, HealthStatus.BEHIND),
        (True, -5, 30, HealthStatus.BEHIND),
    ],
)
def test_status_is_the_most_severe(
    make: Make, is_lost: bool, minutes_due: float, minutes_since_run: float, status: HealthStatus
) -> None:
    make(**due_for(minutes_due))
    if is_lost:
        make(status=Status.REAUTHORIZATION_REQUIRED, refresh_at=None)
    record_heartbeat(minutes_since_run)
    assert read_health().status == status


def test_exit_codes_match_the_documented_ones() -> None:
    assert EXIT_CODES == {"ok": 0, "action_required": 1, "behind": 2, "failing": 1}


def test_as_dict_contains_counts_and_the_last_run(make: Make) -> None:
    make(account_name="Somebody")
    make(status=Status.REAUTHORIZATION_REQUIRED, refresh_at=None)
    heartbeat.end_run("default", ended="done", refreshed=3, failed=1)
    facts = json.loads(json.dumps(read_health().as_dict()))
    last_run = facts.pop("last_run")
    assert facts == {
        "status": "action_required",
        "credentials": {
            "connected": 1,
            "refreshing": 0,
            "retrying": 0,
            "failing": 0,
            "needs_attention": 1,
            "disconnected": 0,
        },
        "due": 0,
        "overdue_seconds": 0,
        "clock_stepped_at": None,
        "days": [],
        "applications": {
            "rejected": 0,
            "unanswered": 0,
            "unavailable": 0,
            "misconfigured": 0,
            "distrusted": 0,
        },
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


def test_as_dict_has_no_last_run_when_none_was_recorded(make: Make) -> None:
    make()
    assert read_health().as_dict()["last_run"] is None


@pytest.mark.django_db(transaction=True)
def test_health_inside_a_transaction_reads_committed_rows_only(
    make: Make, database_url: str
) -> None:
    make()
    with transaction.atomic():
        Credential.objects.count()
        make()  # not committed
        if connection.vendor == "sqlite":
            pytest.skip("SQLite reads through its write-ahead log either way")
        assert read_health().total == 1
