"""Alerts inside a caller's transaction that is rolled back."""

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.exceptions import ReauthorizationRequired
from django_infusionsoft.models import Credential, WorkerState
from django_infusionsoft.monitoring import alerts, heartbeat
from django_infusionsoft.sandbox import Sandbox
from tests.mails import mailing_by, wait_for_mails
from tests.support import row, run, thread_limit

if TYPE_CHECKING:
    from django.core.mail import EmailMessage


@override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"])
def test_lost_account_is_reported_once_when_the_caller_rolls_back(
    deferred: None, credential: Credential, sandbox: Sandbox, mailoutbox: "list[EmailMessage]"
) -> None:
    run()
    sandbox.revoke("ab123")
    with mailing_by():
        with transaction.atomic():
            with pytest.raises(ReauthorizationRequired):
                credential.refresh()
            transaction.set_rollback(True)
        wait_for_mails()
        assert len(mailoutbox) == 1
        assert row(credential).is_alerted
        WorkerState.objects.update(mailed_at=timezone.now() - timedelta(minutes=11))
        assert not alerts.send_pending("default")


@override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"])
def test_lost_account_is_reported_by_the_next_run_when_no_thread_can_be_started_for_the_mail(
    transactional_db: None,
    credential: Credential,
    sandbox: Sandbox,
    mailoutbox: "list[EmailMessage]",
    caplog: pytest.LogCaptureFixture,
) -> None:
    run()
    sandbox.revoke("ab123")
    with mailing_by():
        with thread_limit("infusionsoft-mail"), pytest.raises(ReauthorizationRequired):
            credential.refresh()
        assert mailoutbox == []
        assert "alert_not_sent" in caplog.text
        run()
        assert len(mailoutbox) == 1


def test_mail_lock_is_kept_when_the_caller_rolls_back(deferred: None) -> None:
    with transaction.atomic():
        assert heartbeat.lock_mail("default", seconds=60, pause_seconds=600)
        transaction.set_rollback(True)
    assert WorkerState.objects.get().mail_locked_until is not None
