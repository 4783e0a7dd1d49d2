"""The database's clock steps, as after a fail-over: times in the rows lie too far ahead."""

from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.models import DateTimeField, F
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_infusionsoft.exceptions import RefreshInProgress
from django_infusionsoft.keap.transport import lease_seconds
from django_infusionsoft.models import ApplicationState, Credential, WorkerState
from django_infusionsoft.monitoring import alerts, heartbeat
from django_infusionsoft.monitoring.health import HealthStatus, health_of
from django_infusionsoft.refresh.leases import claim
from django_infusionsoft.refresh.run_result import Ended
from django_infusionsoft.sandbox import Sandbox
from tests.mails import mailing_by
from tests.support import end_leases, row, run

pytestmark = pytest.mark.django_db

Due = Callable[..., Credential]
STEP = timedelta(hours=6)


def lease(credential: Credential, length: timedelta) -> None:
    ends_at = timezone.now() + length
    columns = {"lease_id": "x", "lease_holder": "other:1", "lease_is_used": True}
    Credential.objects.filter(pk=credential.pk).update(
        lease_until=ends_at, refresh_at=ends_at, **columns
    )


def assert_cut(credential: Credential) -> None:
    lease_until = row(credential).lease_until
    assert lease_until is not None
    left = (lease_until - timezone.now()).total_seconds()
    assert 0.5 * lease_seconds() < left <= lease_seconds() + 1
    assert row(credential).refresh_at == lease_until


def step_back(**columns: Any) -> None:
    """Leave a heartbeat that was recorded before the clock stepped back."""
    WorkerState.objects.update_or_create(
        pk=1, defaults={"run_seen_at": timezone.now() + STEP, **columns}
    )


@override_settings(INFUSIONSOFT_REFRESH_RATE=20)
def test_run_refreshes_when_heartbeat_and_reserved_slots_are_ahead(
    due: Due, sandbox: Sandbox
) -> None:
    for account in ("ab123", "cd456"):
        due(account)
    now = timezone.now()
    ApplicationState.objects.create(since=now, probe_at=now, reserved_until=now + STEP)
    step_back(run_began_at=now + STEP)
    result = Credential.objects.refresh_due(time_limit_seconds=50, pause_seconds=30)
    assert (result.refreshed, result.ended) == (2, Ended.DONE)
    assert ApplicationState.objects.filter(reserved_until__lt=now + STEP / 2).exists()


@override_settings(INFUSIONSOFT_REFRESH_RATE=20)
def test_slots_of_many_workers_are_kept(due: Due, sandbox: Sandbox) -> None:
    due("ab123")
    now = timezone.now()
    state = ApplicationState.objects.create(
        since=now, probe_at=now, reserved_until=now + timedelta(minutes=1)
    )
    result = Credential.objects.refresh_due(time_limit_seconds=0.5)
    assert (result.tried, result.ended) == (0, Ended.TIME_LIMIT)
    assert ApplicationState.objects.get().reserved_until == state.reserved_until


def test_run_cuts_a_lease_that_ends_later_than_it_can(
    due: Due, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    credential = due("ab123")
    lease(credential, STEP)
    assert run() == {}
    assert_cut(credential)
    assert sandbox.token_requests == []
    assert "clock_stepped_back leases=1" in caplog.text
    assert health_of("default").clock_stepped_at is not None
    end_leases()
    assert run() == {"refreshed": 1}


def test_reader_cuts_a_lease_that_ends_later_than_it_can(
    expired: Credential, sandbox: Sandbox
) -> None:
    lease(expired, STEP)
    with override_settings(INFUSIONSOFT_WAIT_SECONDS=0.1), pytest.raises(RefreshInProgress):
        row(expired).get_access_token()
    assert_cut(expired)
    assert sandbox.token_requests == []


def test_lease_of_a_machine_with_longer_timeouts_is_kept(due: Due, sandbox: Sandbox) -> None:
    credential = due("ab123")
    lease(credential, timedelta(seconds=1.5 * lease_seconds()))
    before = row(credential).lease_until
    assert run() == {}
    assert row(credential).lease_until == before


def test_pair_that_was_stored_by_the_clock_ahead_is_refreshed_at_once(
    credential: Credential, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    now = timezone.now()
    Credential.objects.update(issued_at=now + STEP, refresh_at=now + 4 * STEP)
    step_back()
    assert run() == {"refreshed": 1}
    assert row(credential).issued_at < now + STEP / 2
    assert "clock_stepped_back seconds=2" in caplog.text


def test_retry_that_was_scheduled_by_the_clock_ahead_is_made_at_once(
    credential: Credential, sandbox: Sandbox
) -> None:
    Credential.objects.update(failures=1, refresh_at=timezone.now() + STEP)
    step_back()
    assert run() == {"refreshed": 1}


def test_accounts_that_are_not_ahead_keep_their_times(
    credential: Credential, sandbox: Sandbox
) -> None:
    before = row(credential).refresh_at
    step_back()
    assert run() == {}
    assert row(credential).refresh_at == before


def test_step_during_a_run_is_found_by_the_next_run(
    due: Due, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_infusionsoft.refresh.sweep.HEARTBEAT_SECONDS", -1)
    due("ab123")
    ahead = due("cd456")
    now = timezone.now()
    Credential.objects.filter(pk=ahead.pk).update(issued_at=now + STEP, refresh_at=now + 4 * STEP)
    assert Credential.objects.refresh_due(on_progress=lambda _: step_back()).refreshed == 1
    assert run() == {"refreshed": 1}
    assert row(ahead).generation == 2


def test_nothing_stands_still_when_the_clock_has_stepped_forward(
    credential: Credential, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """All stored times are longer ago, those of a lease and of a block too."""
    step, now = timedelta(days=10), timezone.now()
    run()
    assert claim(credential)
    ApplicationState.objects.create(block_reason="unavailable", since=now, probe_at=now + STEP)
    WorkerState.objects.update(mail_locked_until=now, mailed_at=now)
    for model in (Credential, ApplicationState, WorkerState):
        times = [each.name for each in model._meta.fields if isinstance(each, DateTimeField)]
        model._base_manager.update(**{name: F(name) - step for name in times})
    assert health_of("default").is_worker_late
    assert run() == {"refreshed": 1}
    after = row(credential)
    assert (after.status, after.generation, after.has_fresh_access_token) == ("connected", 2, True)
    assert health_of("default").status == HealthStatus.OK
    assert heartbeat.lock_mail("default", seconds=120, pause_seconds=600)
    assert "clock_stepped_back" not in caplog.text


def test_worker_is_late_when_its_heartbeat_is_ahead(credential: Credential) -> None:
    step_back()
    health = health_of("default")
    assert (health.is_worker_late, health.status) == (True, HealthStatus.BEHIND)
    run()
    assert health_of("default").status == HealthStatus.OK


def test_status_shows_that_the_clock_stepped_back_for_a_day(credential: Credential) -> None:
    step_back()
    run()

    def is_shown() -> bool:
        output = StringIO()
        call_command("infusionsoft_status", stdout=output)
        return "the database's clock has stepped back: found " in output.getvalue()

    assert is_shown()
    assert health_of("default").as_dict()["clock_stepped_at"] is not None
    WorkerState.objects.update(clock_stepped_at=timezone.now() - timedelta(hours=25))
    assert not is_shown()
    assert health_of("default").as_dict()["clock_stepped_at"] is None


def test_mail_may_be_sent_when_the_last_one_is_ahead(db: None) -> None:
    step_back(mailed_at=timezone.now() + STEP, mail_locked_until=timezone.now() + STEP)
    assert heartbeat.lock_mail("default", seconds=120, pause_seconds=600)


def test_overdue_refreshes_are_mailed_when_the_last_mail_is_ahead(
    credential: Credential, mailoutbox: list[Any]
) -> None:
    WorkerState.objects.create(overdue_mailed_at=timezone.now() + STEP)
    with mailing_by(), override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"]):
        Credential.objects.update(connected_at=timezone.now() - STEP)
        assert alerts.send_pending("default")


def test_blocked_client_is_probed_when_the_next_probe_is_ahead(due: Due, sandbox: Sandbox) -> None:
    due("ab123")
    now = timezone.now()
    ApplicationState.objects.create(block_reason="unavailable", since=now, probe_at=now + STEP)
    assert run() == {"refreshed": 1}


def test_rejected_client_is_reported_when_the_last_report_is_ahead(
    due: Due, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    due("ab123")
    now = timezone.now()
    ApplicationState.objects.create(since=now, probe_at=now, notified_at=now + STEP)
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        run()
    assert "application_rejected" in caplog.text


def test_leases_are_checked_with_one_statement_for_all_rows(credential: Credential) -> None:
    run()

    def statements() -> int:
        with CaptureQueriesContext(connection) as queries:
            run()
        return len(queries)

    before = statements()
    fields = {
        each.attname: getattr(credential, each.attname)
        for each in Credential._meta.concrete_fields
        if each.attname not in ("id", "account", "application_key", "identity")
    }
    Credential.objects.bulk_create(
        Credential(**{**fields, "account": f"x{number}"}) for number in range(100)
    )
    assert statements() == before
