"""Many applications whose requests Keap takes and does not answer."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.models import Application, ApplicationState, Credential
from django_infusionsoft.refresh.run_result import Ended
from django_infusionsoft.sandbox import Client, Sandbox, faults
from tests.support import run

pytestmark = pytest.mark.django_db

APPLICATIONS = 12
ACCOUNTS = [f"acc{number:02}" for number in range(APPLICATIONS)]
CLIENTS = [Client(f"client-{number}", "secret") for number in range(APPLICATIONS)]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with (
        Sandbox(accounts=ACCOUNTS, clients=CLIENTS) as running,
        override_settings(
            **running.settings,
            INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS=10,
            INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.5,
        ),
    ):
        yield running


@pytest.fixture
def blocked(sandbox: Sandbox, due: Callable[..., Credential]) -> None:
    """Block all applications, whose probes are due since different times."""
    now = timezone.now()
    for number, (client, account) in enumerate(zip(CLIENTS, ACCOUNTS, strict=True)):
        application = Application.objects.create(
            name=client.client_id, client_id=client.client_id, client_secret=client.client_secret
        )
        due(account, application=application)
        ApplicationState.objects.create(
            application=application,
            block_reason="unanswered",
            since=now - timedelta(hours=1),
            probe_at=now - timedelta(minutes=1 + number),
        )


def make_probes_due() -> None:
    past = timezone.now() - timedelta(minutes=1)
    ApplicationState.objects.filter(probe_at__gt=past).update(probe_at=past)


def test_one_probe_of_a_run_finds_out_that_keap_hangs(sandbox: Sandbox, blocked: None) -> None:
    """Another one in the next run, so that one application cannot keep the others waiting."""
    sandbox.plan(faults.latency(30), times=None)
    for number in range(3):
        assert run() == {"stopped": APPLICATIONS}
        assert ApplicationState.objects.filter(probes=1).count() == number + 1
        make_probes_due()
    sandbox.clear_plan()
    assert run() == {"refreshed": APPLICATIONS}


def test_all_applications_are_probed_when_keap_replies_with_errors(
    sandbox: Sandbox, blocked: None
) -> None:
    sandbox.plan(faults.answer(503), times=None)
    with override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=10):
        run()
    assert ApplicationState.objects.filter(probes=1).count() == APPLICATIONS


@pytest.mark.parametrize("ended", [Ended.STOP, Ended.TIME_LIMIT])
def test_run_ends_between_two_probes(sandbox: Sandbox, blocked: None, ended: Ended) -> None:
    """It sends nothing more, even if the probe was answered."""
    sandbox.plan(faults.latency(0.3), times=None)
    started = time.monotonic()
    result = Credential.objects.refresh_due(
        time_limit_seconds=0.2 if ended == Ended.TIME_LIMIT else 60,
        should_stop=lambda: ended == Ended.STOP and bool(sandbox.token_requests),
    )
    assert result.ended == ended
    assert time.monotonic() - started < 10
    assert len(sandbox.token_requests) <= 1
    assert not Credential.objects.exclude(generation=1).exists()
