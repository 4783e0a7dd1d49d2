"""Rejections of many accounts in a row: by another valid client, or by a server that fails."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core import mail
from django.core.management import call_command
from django.db import connection, transaction
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft import signals
from django_infusionsoft.exceptions import ReauthorizationRequired
from django_infusionsoft.keap import oauth
from django_infusionsoft.models import Application, ApplicationState, ClientState, Credential
from django_infusionsoft.monitoring.health import HealthStatus, health_of
from django_infusionsoft.refresh.recovery import recover
from django_infusionsoft.refresh.sending import spool_key_of
from django_infusionsoft.refresh.spool import save
from django_infusionsoft.refresh.trust import MAX_BELIEVED
from django_infusionsoft.sandbox import Sandbox, faults
from django_infusionsoft.storage.applications import state_of
from tests.mails import mailing_by
from tests.support import SECOND, ask, keap_with, received, row, run

pytestmark = pytest.mark.django_db

Due = Callable[..., Credential]
ACCOUNTS = [f"acc{number:02}" for number in range(14)]
REFUSAL = faults.answer(400, {"error": "invalid_grant", "error_description": "Invalid token"})
OTHER = override_settings(
    INFUSIONSOFT_CLIENT_ID=SECOND.client_id, INFUSIONSOFT_CLIENT_SECRET=SECOND.client_secret
)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with (
        mailing_by(),
        override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@example.com"]),
        keap_with(ACCOUNTS) as running,
    ):
        yield running


@pytest.fixture
def batch(sandbox: Sandbox, due: Due) -> list[Credential]:
    return [due(account, 60 - number) for number, account in enumerate(ACCOUNTS)]


def counts() -> tuple[int, int, int]:
    """Return how many accounts are lost, are retried, and have new tokens."""
    rows = Credential.objects
    return (
        rows.needs_reauthorization().count(),
        rows.filter(status="connected", failures__gt=0).count(),
        rows.filter(generation__gt=1).count(),
    )


def make_turn_due() -> None:
    ApplicationState.objects.update(probe_at=timezone.now() - timedelta(seconds=1))


def run_until_one_succeeds() -> None:
    with override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=1):
        Credential.objects.refresh_due(should_stop=lambda: counts()[2] > 0)


def pass_hours() -> None:
    past = timezone.now() - timedelta(seconds=1)
    Credential.objects.filter(status="connected", failures__gt=0).update(refresh_at=past)
    make_turn_due()


def test_most_accounts_stay_when_another_client_is_configured(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    """And all come back with the right client, at once."""
    with OTHER:
        for _ in range(3):
            run()
        lost, retried, _ = counts()
        assert lost == MAX_BELIEVED
        assert retried < len(ACCOUNTS) - lost
        assert health_of("default").status == HealthStatus.ACTION_REQUIRED
    assert run() == {"refreshed": len(ACCOUNTS)}
    assert counts() == (0, 0, len(ACCOUNTS))
    assert health_of("default").status == HealthStatus.OK


def test_run_says_that_it_stopped_when_it_has_believed_the_last_rejection(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    with OTHER:
        done = Credential.objects.refresh_due()
    assert (done.rejected, done.stopped, done.ended) == (MAX_BELIEVED, 1, "keap")


def test_one_mail_names_both_causes(sandbox: Sandbox, batch: list[Credential]) -> None:
    with OTHER:
        for _ in range(3):
            run()
            make_turn_due()
    (alert,) = mail.outbox
    assert alert.subject == "[Keap] Keap rejects one account after the other"
    assert "those of another client" in str(alert.body)
    assert "--believe-rejections" in str(alert.body)


def test_report_follows_when_another_problem_was_reported_a_moment_before(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    """An administrator has replaced a client that Keap rejects by another one."""
    state_of("default", None)
    a_moment_ago, long_ago = (timezone.now() - timedelta(minutes=age) for age in (1, 61))
    ApplicationState.objects.update(notified_at=a_moment_ago)
    with OTHER, received(signals.application_rejected) as reports:
        run()
        assert reports == []
        ApplicationState.objects.update(notified_at=long_ago)
        make_turn_due()
        run()
        assert len(reports) == 1


def test_signals_are_sent_once_no_lease_is_held(
    sandbox: Sandbox, batch: list[Credential], due: Due, second: Application
) -> None:
    leases: list[int] = []

    def count_leases(**kwargs: Any) -> None:
        leases.append(Credential.objects.filter(lease_until__isnull=False).count())

    for signal in (signals.application_rejected, signals.application_accepted):
        signal.connect(count_leases)
    try:
        with OTHER:
            run()
        make_turn_due()
        due(ACCOUNTS[0], application=second)  # is claimed together with the account in turn
        run()
    finally:
        for signal in (signals.application_rejected, signals.application_accepted):
            signal.disconnect(count_leases)
    assert leases == [0, 0]


def test_one_account_at_a_time_is_tried_while_keap_rejects_everybody(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(REFUSAL, times=None)
    run()
    before = len(sandbox.token_requests)
    run()
    assert len(sandbox.token_requests) == before  # it is not time yet
    pauses = []
    for number in range(1, 5):
        make_turn_due()
        run()
        assert len(sandbox.token_requests) == before + number
        state = ApplicationState.objects.get()
        pauses.append(round((state.probe_at - timezone.now()).total_seconds(), -1))
    assert pauses == sorted(set(pauses))
    assert len({request.account for request in sandbox.token_requests}) == before + 4
    assert counts()[0] == MAX_BELIEVED
    sandbox.clear_plan()
    make_turn_due()
    run()
    assert counts() == (0, 0, len(ACCOUNTS))


def test_accounts_stay_in_the_turn_when_no_success_comes(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(REFUSAL, times=None)
    for _ in range(12):
        run()
        make_turn_due()
    assert counts() == (MAX_BELIEVED, len(ACCOUNTS) - MAX_BELIEVED, 0)
    waiting = Credential.objects.connected().order_by("refresh_at")
    hour = timezone.now() + timedelta(minutes=50)
    assert not waiting.filter(refresh_at__lt=hour).exists()
    pass_hours()
    run()
    assert waiting.filter(failures=2).count() == 1
    waiting.update(failures=24)
    pass_hours()
    run()
    assert waiting.filter(refresh_at__gt=timezone.now() + timedelta(hours=23)).count() == 1


def test_accounts_that_have_really_ended_are_lost_after_a_success(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    ended = ACCOUNTS[:2]
    sandbox.plan(REFUSAL, times=None)
    run()
    sandbox.clear_plan()
    for account in ended:
        sandbox.plan(REFUSAL, times=None, account=account)
    make_turn_due()
    for _ in range(3):
        run()
        pass_hours()
    lost = Credential.objects.needs_reauthorization().values_list("account", flat=True)
    assert set(lost) == set(ended)
    assert counts()[2] == len(ACCOUNTS) - 2
    assert sandbox.presentations(batch[0].refresh_token) == 2  # no third time


def test_success_of_another_client_does_not_restore_the_trust(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    """Two machines with different clients take turns."""
    for _ in range(3):
        with OTHER:
            run()
            assert counts()[0] <= MAX_BELIEVED
        make_turn_due()
        run()
        Credential.objects.update(refresh_at=timezone.now() - timedelta(minutes=1))
    assert counts()[0] == 0
    assert ClientState.objects.filter(rejections__gte=MAX_BELIEVED).count() == 1
    assert ClientState.objects.filter(rejections=0).count() == 1


@pytest.mark.parametrize("is_doubted", [True, False])
def test_trust_returns_when_the_wrong_client_was_tried_again_after_a_success(
    sandbox: Sandbox, batch: list[Credential], *, is_doubted: bool
) -> None:
    """The accounts that were being refreshed during the success stay doubted."""
    with OTHER:
        run()
    make_turn_due()
    run_until_one_succeeds()
    rest = Credential.objects.filter(generation=1)
    rest.update(refresh_at=timezone.now(), is_doubted=is_doubted)
    with OTHER:
        run()
    for _ in range(3):
        pass_hours()
        run()
    assert counts() == (0, 0, len(ACCOUNTS))
    assert not ApplicationState.objects.exclude(block_reason="").exists()


def test_trust_returns_when_a_pair_is_stored_from_the_spool(sandbox: Sandbox, due: Due) -> None:
    rejected, accepted = due("acc00"), due("acc01")
    pair = oauth.refresh(accepted.client, accepted.refresh_token)
    save(spool_key_of(accepted), pair).fsync()
    sandbox.plan(REFUSAL, account="acc00")
    with pytest.raises(ReauthorizationRequired):
        rejected.refresh()
    assert ClientState.objects.get().rejections == 1
    assert recover(row(accepted))
    assert ClientState.objects.get().rejections == 0
    assert not ApplicationState.objects.get().is_suspect


@pytest.mark.parametrize(
    "other", [faults.throttled(), faults.answer(401, {"error": "invalid_client"})]
)
def test_first_accounts_come_back_when_another_block_followed(
    sandbox: Sandbox, batch: list[Credential], other: faults.Fault
) -> None:
    with OTHER:
        run()
        sandbox.plan(other, times=None)
        make_turn_due()
        run()
    sandbox.clear_plan()
    assert counts()[0] == MAX_BELIEVED
    for _ in range(3):
        pass_hours()
        run()
    assert counts() == (0, 0, len(ACCOUNTS))


def test_at_most_five_are_lost_when_keap_rejects_everybody_again(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(REFUSAL, times=None)
    run()
    sandbox.clear_plan()
    make_turn_due()
    run_until_one_succeeds()
    Credential.objects.filter(status="connected").update(refresh_at=timezone.now())
    sandbox.plan(REFUSAL, times=None)
    run()
    assert counts()[0] <= MAX_BELIEVED


def test_rejections_that_were_counted_do_not_count_again(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    Credential.objects.update(is_doubted=True)
    sandbox.plan(REFUSAL, times=None)
    assert run() == {"rejected": len(ACCOUNTS)}
    assert not Credential.objects.filter(is_doubted=True).exists()


def test_success_has_no_other_accounts_retried(
    sandbox: Sandbox, batch: list[Credential], second: Application
) -> None:
    others: dict[str, dict[str, Any]] = {
        ACCOUNTS[9]: {"reason": "expired"},
        ACCOUNTS[10]: {"reason": "revoked", "application": second},
        ACCOUNTS[11]: {"reason": "", "status": "disconnected"},
        # A user has just had it presented again.
        ACCOUNTS[12]: {"reason": "revoked", "lease_until": timezone.now() + timedelta(minutes=1)},
    }
    for account, columns in others.items():
        changes = {"status": "reauthorization_required", "refresh_at": None, **columns}
        Credential.objects.filter(account=account).update(is_doubted=True, **changes)
    with OTHER:
        run()
    make_turn_due()
    run()
    kept = Credential.objects.filter(account__in=others).exclude(events__outcome__gt="")
    assert {each.account for each in kept} == set(others)
    assert counts() == (3, 0, len(ACCOUNTS) - len(others))


def test_account_that_is_lost_after_the_trust_has_returned_is_not_retried(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    with OTHER:
        run()
    make_turn_due()
    run()
    sandbox.plan(REFUSAL)
    for account, outcome in ((ACCOUNTS[0], "rejected"), (ACCOUNTS[1], "refreshed")):
        Credential.objects.filter(account=account).update(refresh_at=timezone.now())
        assert run() == {outcome: 1}
    assert counts()[0] == 1


def test_account_that_is_lost_before_a_success_is_not_retried_after_a_later_block(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    """The success has shown that this loss was not the client's fault."""
    sandbox.plan(REFUSAL, account=ACCOUNTS[0])
    run_until_one_succeeds()
    assert counts()[0] == 1
    with OTHER:
        run()
    make_turn_due()
    run()
    assert counts() == (1, 0, len(ACCOUNTS) - 1)


def test_success_counts_when_its_claim_is_older_than_the_rejection(
    sandbox: Sandbox, due: Due
) -> None:
    """Both were claimed at once, when the client had no rejection."""

    def release_when_lost() -> bool:
        if counts()[0]:
            late.release()
        return False

    for number, account in enumerate(ACCOUNTS[:3]):
        due(account, 60 - number)
    sandbox.plan(REFUSAL, account=ACCOUNTS[1])
    late = sandbox.hold("before", endpoint="refresh", account=ACCOUNTS[2])
    with override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=2):
        Credential.objects.refresh_due(should_stop=release_when_lost)
    assert counts() == (1, 0, 2)
    assert ClientState.objects.get().rejections == 0


def test_claims_ahead_are_not_presented_when_a_rejection_is_doubted(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    for account in ACCOUNTS[1:]:
        sandbox.plan(REFUSAL, times=None, account=account)
    with override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=3):
        run()  # after the first success it claims all the others at once
    assert len(sandbox.token_requests) < len(ACCOUNTS)
    assert not Credential.objects.filter(lease_until__isnull=False).exists()


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite lets one writer in at a time")
def test_rejections_can_be_believed_in_a_transaction(
    transactional_db: None, sandbox: Sandbox, batch: list[Credential]
) -> None:
    sandbox.plan(REFUSAL, times=None)
    run()
    with transaction.atomic():
        Credential.objects.believe_rejections()
    assert not ApplicationState.objects.exclude(block_reason="").exists()


def test_rejections_between_successes_are_believed(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    ended = ACCOUNTS[1::2]
    for account in ended:
        sandbox.plan(REFUSAL, times=None, account=account)
    with override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=1):
        assert run() == {"refreshed": 7, "rejected": 7}
    assert not ApplicationState.objects.exclude(block_reason="").exists()


@pytest.mark.parametrize("certainty", ["expired", "API"])
def test_certain_rejections_are_believed_at_once(
    sandbox: Sandbox, batch: list[Credential], certainty: str
) -> None:
    if certainty == "API":
        for account in ACCOUNTS:
            sandbox.revoke(account)
    else:
        text = {"error": "invalid_grant", "error_description": "Refresh Token expired"}
        sandbox.plan(faults.answer(400, text), times=None)
    assert run() == {"rejected": len(ACCOUNTS)}
    assert counts()[0] == len(ACCOUNTS)


def test_command_makes_the_app_believe_the_rest(sandbox: Sandbox, batch: list[Credential]) -> None:
    sandbox.plan(REFUSAL, times=None)
    run()
    make_turn_due()
    run()
    assert counts()[1] == 1  # and it waits for an hour
    with received(signals.reauthorization_required) as lost, pytest.raises(SystemExit):
        call_command("infusionsoft_refresh", believe_rejections=True, stdout=StringIO())
    assert len(lost) == len(ACCOUNTS) - MAX_BELIEVED
    assert counts()[0] == len(ACCOUNTS)


def test_caller_gets_a_temporary_error(sandbox: Sandbox, batch: list[Credential]) -> None:
    sandbox.plan(REFUSAL, times=None)
    run()
    Credential.objects.update(expires_at=timezone.now())
    before = len(sandbox.token_requests)
    waiting = Credential.objects.connected().filter(failures=0).first()
    assert waiting
    assert ask(waiting) in ("RejectionDoubted", "TemporarilyUnavailable")
    assert len(sandbox.token_requests) == before


def test_user_can_refresh_an_account_at_once_when_the_client_is_corrected(
    sandbox: Sandbox, batch: list[Credential]
) -> None:
    with OTHER:
        run()
    credential = Credential.objects.needs_reauthorization().first()
    assert credential
    credential.refresh()
    assert run() == {"refreshed": len(ACCOUNTS) - 1}


def test_other_application_goes_on(
    sandbox: Sandbox, batch: list[Credential], due: Due, second: Application
) -> None:
    Credential.objects.filter(account__in=ACCOUNTS[9:]).delete()
    for account in ACCOUNTS[9:]:
        due(account, application=second)
        sandbox.plan(faults.Fault(), times=None, account=account)
    sandbox.plan(REFUSAL, times=None)
    run()
    assert Credential.objects.filter(application=second, generation=2).count() == 5
