"""What is mailed and known although the caller's transaction comes to nothing."""

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft import alarms, upkeep
from django_infusionsoft.exceptions import ReauthorizationRequired
from django_infusionsoft.models import Credential, Upkeep
from django_infusionsoft.sandbox import Sandbox
from tests.mails import mailing_by
from tests.support import row, run

if TYPE_CHECKING:
    from django.core.mail import EmailMessage


@override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"])
def test_loss_inside_a_transaction_that_rolls_back_is_told_once(
    deferred: None, credential: Credential, sandbox: Sandbox, mailoutbox: "list[EmailMessage]"
) -> None:
    run()
    sandbox.revoke("ab123")
    with mailing_by():
        with transaction.atomic():
            with pytest.raises(ReauthorizationRequired):
                credential.refresh()
            transaction.set_rollback(True)
        assert len(mailoutbox) == 1
        assert row(credential).is_alerted
        Upkeep.objects.update(mailed_at=timezone.now() - timedelta(minutes=11))
        assert not alarms.tell("default")


def test_right_to_mail_outlives_the_callers_rollback(deferred: None) -> None:
    with transaction.atomic():
        assert upkeep.take_mail("default", seconds=60, pause_seconds=600)
        transaction.set_rollback(True)
    assert Upkeep.objects.get().mail_until is not None
