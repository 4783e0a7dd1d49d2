"""A site's tests stop or move Python's clocks; the app goes by its own and the database's."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import time_machine
from django.test import override_settings
from django.utils import timezone
from freezegun import freeze_time

from django_infusionsoft.exceptions import OutcomeUnknown, RefreshInProgress
from django_infusionsoft.keap import oauth
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import row, run

pytestmark = pytest.mark.django_db

CLIENT = oauth.Client("sandbox-client", "sandbox-secret")
Stop = Callable[[datetime], AbstractContextManager[object]]


@pytest.fixture(params=[freeze_time, partial(time_machine.travel, tick=False)])
def stop(request: pytest.FixtureRequest) -> Stop:
    """Stop Python's clocks at a moment, with each of two tools."""
    tool: Stop = request.param
    return tool


def test_run_ends_while_the_clocks_stand_still(
    stop: Stop, sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    for account in ("ab123", "cd456", "ef789"):
        due(account)
    with override_settings(INFUSIONSOFT_REFRESH_RATE=4), stop(timezone.now()):
        assert run() == {"refreshed": 3}  # the last one must wait for its slot


def test_run_ends_when_its_time_limit_is_over_while_the_clocks_stand_still(
    stop: Stop, sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    for account in ("ab123", "cd456"):
        due(account)
    with override_settings(INFUSIONSOFT_REFRESH_RATE=0.01), stop(timezone.now()):
        result = Credential.objects.refresh_due(time_limit_seconds=0.5)
    assert (result.refreshed, result.ended) == (1, "time_limit")


def test_waiting_for_another_process_ends_while_the_clocks_stand_still(
    stop: Stop, expired: Credential
) -> None:
    later = timezone.now() + timedelta(hours=1)
    Credential.objects.update(lease_until=later, lease_id="x", lease_is_used=True)
    with (
        override_settings(INFUSIONSOFT_WAIT_SECONDS=0.2),
        stop(timezone.now()),
        pytest.raises(RefreshInProgress),
    ):
        row(expired).get_access_token()


@pytest.mark.parametrize("year", [2020, 2060])
def test_access_token_is_valid_by_the_clock_of_the_database(
    stop: Stop, sandbox: Sandbox, credential: Credential, year: int
) -> None:
    with stop(datetime(year, 1, 1, tzinfo=UTC)):
        assert Credential.objects.for_account("ab123").get_access_token()
        assert row(credential).get_access_token()
    assert sandbox.token_requests == []


def test_dripping_reply_is_given_up_while_the_clocks_stand_still(
    stop: Stop, sandbox: Sandbox
) -> None:
    token = sandbox.issue("ab123")["refresh_token"]
    sandbox.plan(faults.drip(0.05))
    with (
        override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.2),
        stop(timezone.now()),
        pytest.raises(OutcomeUnknown),
    ):
        oauth.refresh(CLIENT, token)
