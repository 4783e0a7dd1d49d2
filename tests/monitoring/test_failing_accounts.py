"""An account that cannot be refreshed is reported, by every part of the app in the same way."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.checks import Tags, run_checks
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.test import Client, override_settings
from django.utils import timezone

from django_infusionsoft.choices import Condition
from django_infusionsoft.models import Application, Credential, WorkerState
from django_infusionsoft.monitoring import alerts
from django_infusionsoft.sandbox import Sandbox, faults
from tests.mails import mailing_by
from tests.support import row, run
from tests.web import change_url, page, plain

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
OTHER_KEY = Fernet.generate_key().decode()


@pytest.fixture(autouse=True)
def recipients() -> Iterator[None]:
    with mailing_by(), override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"]):
        yield


def with_other_key() -> Any:
    return override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY])


def status() -> tuple[str, int]:
    """Return the status that the command prints, and its exit code."""
    output, code = StringIO(), 0
    try:
        call_command("infusionsoft_status", "--json", stdout=output)
    except SystemExit as end:
        code = int(end.code or 0)
    return json.loads(output.getvalue())["status"], code


def assert_reported(credential: Credential, operator: Client, status_: str, word: str) -> None:
    assert status() == (status_, 1)
    response = operator.get("/infusionsoft/health/")
    assert (response.status_code, response.json()["status"]) == (503, status_)
    condition = row(credential).condition
    assert str(condition.label) == word
    assert [each["account"] for each in response.json()[condition.value]] == ["ab123"]
    text = plain(page(operator, change_url(credential)))
    assert word in text
    assert "Nothing to do" not in text
    assert f"1 {word}" in plain(page(operator, "/admin/django_infusionsoft/credential/"))


def test_missing_key_requires_action(
    expired: Credential, operator: Client, mailoutbox: list[EmailMessage]
) -> None:
    with with_other_key():
        assert run() == {"unreadable": 1}
    (mail,) = mailoutbox
    assert mail.subject == "[Keap] 1 account needs attention"
    missing = f"django_infusionsoft.Credential.refresh_token of row {expired.pk}: put back the key"
    for text in (mail.body, row(expired).last_error, page(operator, change_url(expired))):
        assert missing in text
    assert_reported(expired, operator, "action_required", "needs attention")


def test_missing_client_requires_action(
    expired: Credential, operator: Client, mailoutbox: list[EmailMessage]
) -> None:
    with override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET=""):
        assert run() == {"misconfigured": 1, "stopped": 1}
    assert "Set INFUSIONSOFT_CLIENT_ID" in mailoutbox[0].body
    assert_reported(expired, operator, "action_required", "needs attention")


def test_account_is_failing_when_its_access_token_has_expired(
    expired: Credential, sandbox: Sandbox, operator: Client, mailoutbox: list[EmailMessage]
) -> None:
    sandbox.plan(faults.error_503())
    assert run() == {"unavailable": 1}
    assert_reported(expired, operator, "failing", "failing")
    (mail,) = mailoutbox
    assert "Accounts whose refreshes fail:\n\n* ab123\n" in mail.body
    assert "HTTP 503" in mail.body


def test_account_is_failing_when_it_has_failed_for_longer_than_the_setting(
    due: Callable[..., Credential], sandbox: Sandbox, operator: Client
) -> None:
    credential = due("ab123")
    sandbox.plan(faults.error_503())
    run()
    assert status() == ("ok", 0)
    assert row(credential).condition == Condition.RETRYING
    Credential.objects.update(failing_since=timezone.now() - HOUR)
    assert_reported(credential, operator, "failing", "failing")


def test_time_of_the_first_failure_is_kept_until_a_refresh_succeeds(
    due: Callable[..., Credential], sandbox: Sandbox
) -> None:
    credential = due("ab123")
    sandbox.plan(faults.error_503(), times=2)
    run()
    hour_ago = timezone.now() - HOUR
    Credential.objects.update(failing_since=hour_ago, refresh_at=hour_ago)
    run()
    assert (row(credential).failures, row(credential).failing_since) == (2, hour_ago)
    Credential.objects.update(refresh_at=hour_ago)
    run()
    assert row(credential).failing_since is None
    assert (row(credential).failed_outcome, status()) == ("", ("ok", 0))


def test_account_of_a_blocked_client_is_failing_when_its_access_token_has_expired(
    expired: Credential, operator: Client
) -> None:
    run()
    Credential.objects.update(refresh_at=timezone.now() - HOUR, expires_at=timezone.now() - HOUR)
    assert row(expired).condition == Condition.FAILING
    assert status() == ("behind", 2)


def test_failing_account_is_failing_while_it_is_refreshed(expired: Credential) -> None:
    later = timezone.now() + timedelta(minutes=1)
    Credential.objects.update(failures=1, lease_until=later, refresh_at=later)
    WorkerState.objects.create(run_seen_at=timezone.now())
    assert row(expired).condition == Condition.FAILING
    assert status() == ("failing", 1)


def test_failing_account_is_mailed_once_and_when_it_is_resolved(
    expired: Credential, sandbox: Sandbox, mailoutbox: list[EmailMessage]
) -> None:
    sandbox.plan(faults.error_503())
    run()
    WorkerState.objects.update(mailed_at=None)
    assert not alerts.send_pending("default")
    Credential.objects.update(refresh_at=timezone.now() - HOUR)
    run()
    assert "Resolved:\n\n* ab123: connected\n" in mailoutbox[-1].body
    assert len(mailoutbox) == 2


# The check of stored values


def database_ids() -> list[str]:
    found = run_checks(tags=[Tags.database], databases=["default"])
    return [f"{each.id}: {each.msg}" for each in found if str(each.id).endswith("W020")]


def test_check_reports_that_the_key_of_a_token_pair_is_missing(credential: Credential) -> None:
    assert database_ids() == []
    with with_other_key():
        (found,) = database_ids()
    assert (
        f"ab123: No key in INFUSIONSOFT_ENCRYPTION_KEYS can decrypt {'django_infusionsoft'}"
        in found
    )
    assert f"of row {credential.pk}: " in found


def test_check_reports_the_missing_key_of_the_only_older_token_pair(
    connect: Callable[..., Credential],
) -> None:
    older = connect("ab123")
    Credential.objects.filter(pk=older.pk).update(issued_at=timezone.now() - 3 * HOUR)
    with with_other_key():
        connect("cd456")
        (found,) = database_ids()
    assert ": ab123: " in found


def test_check_reports_that_the_key_of_a_client_secret_is_missing(second: Application) -> None:
    with with_other_key():
        (found,) = database_ids()
    assert "Application.client_secret of row" in found


def test_check_accepts_a_lost_key_of_a_disconnected_account(credential: Credential) -> None:
    Credential.objects.update(status="reauthorization_required")
    with with_other_key():
        assert database_ids() == []
