"""Alert mails to operators: sent once, in time, about problems that require action."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.mail import EmailMessage
from django.core.mail.backends.locmem import EmailBackend
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation

from django_infusionsoft.choices import Reason, Status
from django_infusionsoft.exceptions import (
    ClientRejected,
    ReauthorizationRequired,
    TemporarilyUnavailable,
)
from django_infusionsoft.models import Application, Credential, WorkerState
from django_infusionsoft.monitoring import alerts, heartbeat
from django_infusionsoft.sandbox import Sandbox, faults
from tests.mails import mailing_by
from tests.support import keap_with, row, run, threads

pytestmark = pytest.mark.django_db

Outbox = list[EmailMessage]
SITE = "https://site.example"
MINUTE = timedelta(minutes=1)
MANY = tuple(f"ef{number}" for number in range(100, 145))


@pytest.fixture(autouse=True)
def recipients() -> Iterator[list[str]]:
    ops = ["ops@site.example", "boss@site.example"]
    with (
        mailing_by(),
        override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=ops, INFUSIONSOFT_SITE_URL=SITE),
    ):
        yield ops


@pytest.fixture
def healthy(credential: Credential) -> Credential:
    """A connected account of a site whose worker is running."""
    run()
    return credential


def backdate_last_mail() -> None:
    """Backdate the last mail so that the next one may be sent."""
    WorkerState.objects.update(mailed_at=timezone.now() - 11 * MINUTE, mail_locked_until=None)


def revoke(credential: Credential, sandbox: Sandbox) -> None:
    """Revoke the grant at Keap, and let a refresh find that out."""
    sandbox.revoke(str(credential.account))
    credential.refresh_from_db()
    with pytest.raises(ReauthorizationRequired):
        credential.refresh()


def reconnect(credential: Credential, sandbox: Sandbox) -> None:
    reply = sandbox.issue(str(credential.account))
    Credential.objects.import_tokens(
        account=str(credential.account),
        access_token=reply["access_token"],
        refresh_token=reply["refresh_token"],
        expires_at=timezone.now() + timedelta(days=1),
    )


def make_lost(count: int, **columns: Any) -> list[Credential]:
    """Create accounts that must be reconnected, without calling Keap."""
    now = timezone.now()
    times = {"issued_at": now, "expires_at": now, "connected_at": now}
    facts: dict[str, Any] = {
        "status": Status.REAUTHORIZATION_REQUIRED,
        "reason": Reason.REVOKED,
        **times,
        **columns,
    }
    return Credential.objects.bulk_create(
        [Credential(account=f"lost{number:03}", **facts) for number in range(count)]
    )


def send() -> bool:
    return alerts.send_pending("default")


# Accounts that must be reconnected


def test_lost_account_is_reported_at_once_with_its_link(
    healthy: Credential, sandbox: Sandbox, mailoutbox: Outbox, recipients: list[str]
) -> None:
    revoke(healthy, sandbox)
    (mail,) = mailoutbox
    assert mail.to == recipients
    assert mail.subject == "[Keap] 1 account needs attention"
    assert mail.body == (
        "Accounts to reconnect:\n\n"
        "* ab123\n"
        "  Keap reports that the grant is no longer valid\n"
        f"  {SITE}/infusionsoft/authorize/?credential={healthy.pk}\n"
    )
    assert mail.extra_headers == {"Auto-Submitted": "auto-generated"}


def test_lost_account_is_reported_at_once_by_a_reader(
    expired: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    run()
    Credential.objects.update(expires_at=timezone.now() - MINUTE)
    sandbox.revoke("ab123")
    with pytest.raises(ReauthorizationRequired):
        row(expired).get_access_token()
    assert [mail.subject for mail in mailoutbox] == ["[Keap] 1 account needs attention"]


def test_link_leads_to_the_reconnect_page(
    healthy: Credential, sandbox: Sandbox, mailoutbox: Outbox, admin_user: User
) -> None:
    revoke(healthy, sandbox)
    url = mailoutbox[0].body.split()[-1].removeprefix(SITE)
    site = Client(SERVER_NAME="localhost")
    site.force_login(admin_user)
    assert "ab123" in site.get(url).content.decode()


def test_thirty_accounts_lost_in_one_run_are_reported_in_one_mail(mailoutbox: Outbox) -> None:
    with keap_with(MANY[:30]) as sandbox:
        for account in MANY[:30]:
            reply = sandbox.issue(account)
            Credential.objects.import_tokens(
                account=account,
                access_token=reply["access_token"],
                refresh_token=reply["refresh_token"],
                expires_at=timezone.now() + 60 * MINUTE,
            )
            sandbox.revoke(account)
        Credential.objects.update(refresh_at=timezone.now() - MINUTE)
        assert run() == {"rejected": 30}
    assert [mail.subject for mail in mailoutbox] == ["[Keap] 30 accounts need attention"]


def test_mail_lists_twenty_accounts_and_counts_the_rest(mailoutbox: Outbox) -> None:
    make_lost(45)
    assert send()
    (mail,) = mailoutbox
    assert mail.body.count("/infusionsoft/authorize/?credential=") == 20
    assert mail.body.endswith(
        "* and 25 more\n  https://site.example/admin/django_infusionsoft/credential/\n"
    )
    assert not Credential.objects.filter(is_alerted=False).exists()


def test_lost_account_is_reported_once(mailoutbox: Outbox) -> None:
    make_lost(2)
    assert send()
    backdate_last_mail()
    assert not send()
    assert run() == {}
    assert len(mailoutbox) == 1


def test_next_mail_is_delayed_until_the_pause_is_over(mailoutbox: Outbox) -> None:
    make_lost(1)
    assert send()
    make_lost(3, application=Application.objects.create(name="x", client_id="x"))
    run()
    assert len(mailoutbox) == 1
    backdate_last_mail()
    run()
    assert [mail.subject for mail in mailoutbox[1:]] == ["[Keap] 3 accounts need attention"]


def test_temporary_failure_sends_no_mail(
    healthy: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    sandbox.plan(faults.error_503())
    with pytest.raises(TemporarilyUnavailable):
        healthy.refresh()
    assert mailoutbox == []


# Resolved problems


def test_reconnected_account_is_reported_as_resolved(
    healthy: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    revoke(healthy, sandbox)
    reconnect(healthy, sandbox)
    run()
    assert len(mailoutbox) == 1  # ten minutes have not passed
    backdate_last_mail()
    run()
    assert mailoutbox[1].subject == "[Keap] All problems are resolved"
    assert mailoutbox[1].body == "Resolved:\n\n* ab123: connected\n"
    backdate_last_mail()
    assert not send()


def test_disconnected_account_is_reported_as_resolved(
    healthy: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    revoke(healthy, sandbox)
    healthy.disconnect()
    backdate_last_mail()
    run()
    assert mailoutbox[1].body == "Resolved:\n\n* ab123: disconnected\n"


def test_deleted_account_sends_no_mail(
    healthy: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    revoke(healthy, sandbox)
    healthy.delete()
    backdate_last_mail()
    assert not send()


def test_account_reconnected_before_its_mail_sends_no_mail(
    healthy: Credential, mailoutbox: Outbox, sandbox: Sandbox
) -> None:
    # Another process is sending a mail.
    heartbeat.lock_mail("default", seconds=60, pause_seconds=0)
    revoke(healthy, sandbox)
    reconnect(healthy, sandbox)
    backdate_last_mail()
    assert not send()
    assert mailoutbox == []


def test_account_lost_again_before_the_resolved_mail_is_reported_again(
    healthy: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    revoke(healthy, sandbox)
    reconnect(healthy, sandbox)
    revoke(healthy, sandbox)
    assert len(mailoutbox) == 1
    backdate_last_mail()
    run()
    assert mailoutbox[1].subject == "[Keap] 1 account needs attention"


def test_account_is_not_resolved_while_a_refresh_is_running(mailoutbox: Outbox) -> None:
    make_lost(1)
    send()
    later = timezone.now() + 2 * MINUTE
    Credential.objects.update(status=Status.CONNECTED, lease_until=later, refresh_at=later)
    backdate_last_mail()
    assert not send()


def test_account_is_not_resolved_when_its_last_attempt_failed(mailoutbox: Outbox) -> None:
    make_lost(1)
    send()
    Credential.objects.update(status=Status.CONNECTED, failures=1)
    backdate_last_mail()
    assert not send()


class ReconnectingBackend(EmailBackend):
    """A mail backend during whose sending all accounts are reconnected."""

    def send_messages(self, messages: Any) -> int:
        Credential.objects.update(status=Status.CONNECTED)
        return super().send_messages(messages)


def test_account_reconnected_while_its_mail_is_sent_is_reported_as_resolved_later(
    mailoutbox: Outbox,
) -> None:
    make_lost(1)
    with mailing_by("tests.monitoring.test_alerts.ReconnectingBackend"):
        assert send()
    assert row(Credential.objects.get()).is_alerted
    backdate_last_mail()
    assert send()
    assert "Resolved" in mailoutbox[-1].body


# Clients


def test_rejected_client_is_reported_once_and_when_it_is_accepted_again(
    healthy: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    run()
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        with pytest.raises(ClientRejected):
            healthy.refresh()
        backdate_last_mail()
        run()
    (mail,) = mailoutbox
    assert mail.subject == "[Keap] Keap rejects the client"
    assert "client in the settings" in mail.body
    run()
    backdate_last_mail()
    run()
    assert mailoutbox[1].subject == "[Keap] All problems are resolved"
    assert mailoutbox[1].body == "The client can be used again: client in the settings.\n"
    assert len(mailoutbox) == 2


# Workers


@pytest.fixture
def overdue(healthy: Credential) -> Credential:
    """An account that has been due for an hour, with no worker run since."""
    hour_ago = timezone.now() - 60 * MINUTE
    Credential.objects.update(refresh_at=hour_ago, connected_at=hour_ago)
    WorkerState.objects.update(run_seen_at=hour_ago)
    return row(healthy)


def test_health_view_reports_once_that_no_worker_is_running(
    overdue: Credential, mailoutbox: Outbox, client: Client
) -> None:
    for _ in range(3):
        assert client.get("/infusionsoft/health/").status_code == 503
        backdate_last_mail()
    (mail,) = mailoutbox
    assert mail.subject == "[Keap] Refreshes are overdue"
    assert mail.body.startswith("No worker run has been recorded since ")
    assert "\n1 account is waiting to be refreshed. Expired access tokens: 0.\n" in mail.body
    assert "Without a refresh, the first account will be lost on " in mail.body
    assert "Start Celery's worker and beat, or the cron job." in mail.body


def test_overdue_refreshes_are_reported_again_after_a_day(
    overdue: Credential, mailoutbox: Outbox
) -> None:
    assert send()
    backdate_last_mail()
    assert not send()
    WorkerState.objects.update(overdue_mailed_at=timezone.now() - timedelta(hours=25))
    assert send()


def test_reader_reports_that_no_worker_is_running_when_the_refresh_is_overdue(
    overdue: Credential, mailoutbox: Outbox, sandbox: Sandbox
) -> None:
    Credential.objects.update(expires_at=timezone.now() - MINUTE)
    assert row(overdue).get_access_token()
    (mail,) = mailoutbox
    assert mail.subject == "[Keap] Refreshes are overdue"


def test_reader_does_not_query_the_worker_state_when_the_refresh_is_not_overdue(
    credential: Credential, mailoutbox: Outbox, sandbox: Sandbox
) -> None:
    Credential.objects.update(
        expires_at=timezone.now() - MINUTE, refresh_at=timezone.now() - 5 * MINUTE
    )
    with CaptureQueriesContext(connection) as queries:
        assert row(credential).get_access_token()
    assert not [each for each in queries if "worker_state" in each["sql"]]


def test_missing_worker_is_reported_only_after_the_overdue_time(
    credential: Credential, mailoutbox: Outbox
) -> None:
    assert not send()
    Credential.objects.update(connected_at=timezone.now() - 60 * MINUTE)
    assert send()
    assert mailoutbox[0].body.startswith("No worker run has ever been recorded.")


def test_overdue_refreshes_are_reported_when_the_worker_is_running(
    healthy: Credential, mailoutbox: Outbox
) -> None:
    Credential.objects.update(refresh_at=timezone.now() - 60 * MINUTE)
    assert send()
    assert mailoutbox[0].body.startswith(
        "The worker is running, but refreshes have been due since "
    )
    assert "Start Celery's worker" not in mailoutbox[0].body


def test_run_reports_that_refreshes_are_no_longer_overdue(
    overdue: Credential, mailoutbox: Outbox
) -> None:
    send()
    backdate_last_mail()
    assert run() == {"refreshed": 1}
    assert mailoutbox[1].subject == "[Keap] All problems are resolved"
    assert mailoutbox[1].body == "Refreshes are no longer overdue.\n"
    backdate_last_mail()
    assert not send()


# Sending


class FailingBackend(EmailBackend):
    """A mail server that is down."""

    def send_messages(self, messages: Any) -> int:
        raise OSError("the mail server is down")


def test_mail_is_sent_later_when_the_mail_server_fails(
    healthy: Credential,
    sandbox: Sandbox,
    mailoutbox: Outbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with mailing_by("tests.monitoring.test_alerts.FailingBackend"):
        revoke(healthy, sandbox)  # the refresh raises as usual
    assert "alert_not_sent" in caplog.text
    assert mailoutbox == []
    WorkerState.objects.update(mail_locked_until=timezone.now() - MINUTE)
    run()
    assert len(mailoutbox) == 1


def test_next_process_sends_the_mail_when_the_lock_has_expired(mailoutbox: Outbox) -> None:
    make_lost(1)
    heartbeat.lock_mail("default", seconds=60, pause_seconds=0)
    assert not send()
    WorkerState.objects.update(mail_locked_until=timezone.now() - timedelta(seconds=1))
    assert send()


@pytest.mark.django_db(transaction=True)
def test_concurrent_threads_send_one_mail(database_url: str, mailoutbox: Outbox) -> None:
    make_lost(3)
    barrier = Barrier(4)

    def send_together() -> bool:
        barrier.wait(60)
        return send()

    with threads(4) as start:
        sent = [start(send_together) for _ in range(4)]
    assert sum(each.result() for each in sent) == 1
    assert len(mailoutbox) == 1


def test_no_query_is_made_without_recipients() -> None:
    make_lost(1)
    with (
        override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=[]),
        CaptureQueriesContext(connection) as queries,
    ):
        assert not send()
    assert len(queries) == 0


def test_mail_uses_the_sites_language_and_time_zone_instead_of_the_visitors(
    mailoutbox: Outbox, tmp_path: Path
) -> None:
    template = tmp_path / "django_infusionsoft" / "mail" / "alert.txt"
    template.parent.mkdir(parents=True)
    template.write_text(
        "{% load i18n tz %}{% get_current_language as language %}"
        "{% get_current_timezone as zone %}{{ language }} {{ zone }}"
    )
    make_lost(1)
    with (
        override_settings(
            TEMPLATES=[{**settings.TEMPLATES[0], "DIRS": [tmp_path]}], TIME_ZONE="Europe/Paris"
        ),
        translation.override("de"),
        timezone.override("Asia/Tokyo"),
    ):
        assert send()
        assert translation.get_language() == "de"
    assert mailoutbox[0].body == "en-us Europe/Paris\n"


def test_broken_template_is_only_logged(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    template = tmp_path / "django_infusionsoft" / "mail" / "alert.txt"
    template.parent.mkdir(parents=True)
    template.write_text("{% nonsense %}")
    make_lost(1)
    with override_settings(TEMPLATES=[{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]):
        assert not send()
    assert "alert_not_sent" in caplog.text


@pytest.mark.parametrize(
    ("site_url", "redirect_uri", "start"),
    [
        (SITE, "https://other.example/infusionsoft/callback/", SITE),
        ("", "https://other.example/infusionsoft/callback/", "https://other.example"),
        ("", "", ""),
    ],
)
def test_links_are_absolute_when_the_site_url_is_known(
    mailoutbox: Outbox, site_url: str, redirect_uri: str, start: str
) -> None:
    (lost,) = make_lost(1)
    with override_settings(INFUSIONSOFT_SITE_URL=site_url, INFUSIONSOFT_REDIRECT_URI=redirect_uri):
        send()
    assert f"\n  {start}/infusionsoft/authorize/?credential={lost.pk}\n" in mailoutbox[0].body


@override_settings(ROOT_URLCONF="django.conf.urls.i18n")
def test_mail_has_no_links_when_the_site_lacks_our_urls(mailoutbox: Outbox) -> None:
    make_lost(21)
    assert send()
    assert mailoutbox[0].body.endswith(
        "* lost019\n  Keap reports that the grant is no longer valid\n* and 1 more\n"
    )
    assert "http" not in mailoutbox[0].body


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Acme & <b>Sons</b>", "Acme & <b>Sons</b>"),
        ("Žižek 株式会社", "Žižek 株式会社"),
        ("a\r\nBcc: x@evil.example\n\n* b", "a Bcc: x@evil.example * b"),
        ("a\x1b[31m\u2028b\u202ec", "a [31m b c"),
    ],
)
def test_line_breaks_and_control_characters_in_names_are_removed(
    mailoutbox: Outbox, name: str, shown: str
) -> None:
    make_lost(1, account_name=name)
    send()
    (mail,) = mailoutbox
    assert f"\n* lost000 ({shown})\n" in mail.body
    assert b"\nBcc:" not in mail.message().as_bytes()


def test_mail_and_log_contain_no_secret(
    healthy: Credential,
    sandbox: Sandbox,
    mailoutbox: Outbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = [healthy.access_token, healthy.refresh_token, settings.INFUSIONSOFT_CLIENT_SECRET]
    revoke(healthy, sandbox)
    shown = mailoutbox[0].message().as_string() + caplog.text
    assert (
        "alert_sent lost=1 failing=0 resolved=0 rejected=0 accepted=0 overdue=0 up_to_date=0"
        in shown
    )
    assert [secret for secret in secrets if secret in shown] == []
