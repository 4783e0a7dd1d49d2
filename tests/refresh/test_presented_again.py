"""A user has a refresh token presented again that Keap has rejected."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.core import mail
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft import signals
from django_infusionsoft.choices import Reason
from django_infusionsoft.exceptions import InfusionsoftError
from django_infusionsoft.models import Credential
from django_infusionsoft.refresh.leases import claim, cut, release
from django_infusionsoft.sandbox import Sandbox, faults
from tests.mails import mailing_by
from tests.support import ask, received, row, run

pytestmark = pytest.mark.django_db

REFUSAL = faults.answer(400, {"error": "invalid_grant", "error_description": "Invalid token"})


@pytest.fixture(params=[Reason.REVOKED, Reason.USED_ELSEWHERE])
def rejected(
    request: pytest.FixtureRequest, sandbox: Sandbox, connect: Callable[..., Credential]
) -> Credential:
    """An account that Keap has rejected by mistake."""
    credential = connect(seconds_left=-1 if request.param == Reason.REVOKED else 86_400)
    sandbox.plan(REFUSAL, account="ab123")
    assert refresh(credential) == "ReauthorizationRequired"
    assert row(credential).reason == request.param
    return credential


def refresh(credential: Credential) -> str:
    try:
        row(credential).refresh()
    except InfusionsoftError as error:
        return type(error).__name__
    return "refreshed"


def end_pause() -> None:
    past = timezone.now() - timedelta(seconds=61)
    Credential.objects.update(presented_again_at=past)


def test_account_is_connected_again_when_keap_accepts_its_refresh_token(
    sandbox: Sandbox, rejected: Credential
) -> None:
    run()
    ask(rejected)
    assert len(sandbox.token_requests) == 1  # nothing is presented unless a user asks
    assert refresh(rejected) == "refreshed"
    after = row(rejected)
    assert (after.status, after.reason, after.generation) == ("connected", "", 2)
    assert after.refresh_at is not None


def test_refresh_token_is_presented_once_a_minute(sandbox: Sandbox, rejected: Credential) -> None:
    sandbox.plan(REFUSAL, times=None)
    assert {refresh(rejected) for _ in range(5)} == {"ReauthorizationRequired"}
    assert sandbox.presentations(rejected.refresh_token) == 2
    end_pause()
    assert refresh(rejected) == "ReauthorizationRequired"
    assert sandbox.presentations(rejected.refresh_token) == 3
    sandbox.clear_plan()
    assert refresh(rejected) == "ReauthorizationRequired"
    Credential.objects.update(presented_again_at=timezone.now() + timedelta(hours=1))
    assert refresh(rejected) == "refreshed"  # the time was of a wrong clock


@pytest.mark.parametrize(
    "fault", [REFUSAL, faults.error_503(), faults.drop_after(), faults.answer(401, {})], ids=str
)
def test_status_and_reason_stay_until_keap_accepts(
    sandbox: Sandbox, rejected: Credential, fault: faults.Fault
) -> None:
    before = row(rejected)
    sandbox.plan(fault, times=None)
    with (
        mailing_by(),
        override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@example.com"]),
        received(signals.reauthorization_required) as signal,
        received(signals.refresh_failed) as failed,
    ):
        Credential.objects.update(is_alerted=True)
        assert refresh(rejected) != "refreshed"
        run()
        lost = [alert for alert in mail.outbox if "reconnect" in str(alert.body)]
    after = row(rejected)
    assert (after.status, after.reason) == (before.status, before.reason)
    assert (after.refresh_at, after.failures, after.lease_until) == (None, before.failures, None)
    assert (signal, lost) == ([], [])
    assert len(failed) == (fault is not REFUSAL)
    events = list(rejected.events.order_by("pk").values_list("kind", flat=True))
    assert events == ["imported", "reauthorization_required", "refresh_failed"]


@pytest.mark.parametrize("reason", [Reason.EXPIRED, Reason.ROTATION_LOST])
def test_nothing_is_presented_again_when_the_reason_is_certain(
    sandbox: Sandbox, expired: Credential, reason: Reason
) -> None:
    Credential.objects.update(status="reauthorization_required", reason=reason, refresh_at=None)
    assert refresh(expired) == "ReauthorizationRequired"
    assert sandbox.token_requests == []


def test_nothing_is_due_when_a_claim_is_released(rejected: Credential) -> None:
    claimed = claim(row(rejected), force=True)
    assert claimed
    release([claimed])
    after = row(rejected)
    assert (after.lease_until, after.refresh_at) == (None, None)


def test_nothing_is_due_when_a_lease_that_ends_too_late_is_cut(rejected: Credential) -> None:
    assert claim(row(rejected), force=True)
    Credential.objects.update(lease_until=timezone.now() + timedelta(hours=6))
    cut(Credential.objects.all())
    after = row(rejected)
    assert after.lease_until
    assert after.lease_until < timezone.now() + timedelta(hours=1)
    assert after.refresh_at is None
