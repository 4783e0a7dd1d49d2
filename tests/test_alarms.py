"""Mails to those who run the site: once, in time, and about what needs somebody."""

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

from django_infusionsoft import alarms, upkeep
from django_infusionsoft.choices import Reason, Status
from django_infusionsoft.exceptions import (
    ClientRejected,
    ReauthorizationRequired,
    TemporarilyUnavailable,
)
from django_infusionsoft.models import Application, Credential, Upkeep
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
def watched(credential: Credential) -> Credential:
    """A connected account of a site whose worker runs."""
    run()
    return credential


def pass_time() -> None:
    """Let the last mail be so long ago that the next one may be sent."""
    Upkeep.objects.update(mailed_at=timezone.now() - 11 * MINUTE, mail_until=None)


def lose(credential: Credential, sandbox: Sandbox) -> None:
    """Let Keap end a grant, and a reader come upon it."""
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


def mark_lost(count: int, **columns: Any) -> list[Credential]:
    """Make rows of accounts that are lost, without asking Keap."""
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


def tell() -> bool:
    return alarms.tell("default")


# What is lost


def test_account_that_is_lost_is_told_at_once_with_its_link(
    watched: Credential, sandbox: Sandbox, mailoutbox: Outbox, recipients: list[str]
) -> None:
    lose(watched, sandbox)
    (mail,) = mailoutbox
    assert mail.to == recipients
    assert mail.subject == "[Keap] 1 account needs attention"
    assert mail.body == (
        "To be connected again:\n\n"
        "* ab123\n"
        "  Keap says that the grant has ended\n"
        f"  {SITE}/infusionsoft/authorize/?credential={watched.pk}\n"
    )
    assert mail.extra_headers == {"Auto-Submitted": "auto-generated"}


def test_account_that_is_lost_by_a_reader_is_told_at_once(
    expired: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    run()
    Credential.objects.update(expires_at=timezone.now() - MINUTE)
    sandbox.revoke("ab123")
    with pytest.raises(ReauthorizationRequired):
        row(expired).get_access_token()
    assert [mail.subject for mail in mailoutbox] == ["[Keap] 1 account needs attention"]


def test_link_leads_to_the_page_that_connects_the_account_again(
    watched: Credential, sandbox: Sandbox, mailoutbox: Outbox, admin_user: User
) -> None:
    lose(watched, sandbox)
    url = mailoutbox[0].body.split()[-1].removeprefix(SITE)
    site = Client(SERVER_NAME="localhost")
    site.force_login(admin_user)
    assert "ab123" in site.get(url).content.decode()


def test_thirty_lost_in_one_run_are_one_mail(mailoutbox: Outbox) -> None:
    with keap_with(MANY[:30]) as sandbox:
        for account in MANY[:30]:
            reply = sandbox.issue(account)
            Credential.objects.import_tokens(
                account=account,
                access_token=reply["access_token"],
                refresh_token=reply["refresh_token"],
                expires_at=timezone.now() - MINUTE,
            )
            sandbox.revoke(account)
        assert run() == {"rejected": 30}
    assert [mail.subject for mail in mailoutbox] == ["[Keap] 30 accounts need attention"]


def test_twenty_are_named_and_the_rest_is_counted(mailoutbox: Outbox) -> None:
    mark_lost(45)
    assert tell()
    (mail,) = mailoutbox
    assert mail.body.count("/infusionsoft/authorize/?credential=") == 20
    assert mail.body.endswith(
        "* and 25 more\n  https://site.example/admin/django_infusionsoft/credential/\n"
    )
    assert not Credential.objects.filter(is_alerted=False).exists()


def test_nothing_is_told_twice(mailoutbox: Outbox) -> None:
    mark_lost(2)
    assert tell()
    pass_time()
    assert not tell()
    assert run() == {}
    assert len(mailoutbox) == 1


def test_next_mail_is_held_back_and_the_next_run_tells(mailoutbox: Outbox) -> None:
    mark_lost(1)
    assert tell()
    mark_lost(3, application=Application.objects.create(name="x", client_id="x"))
    run()
    assert len(mailoutbox) == 1
    pass_time()
    run()
    assert [mail.subject for mail in mailoutbox[1:]] == ["[Keap] 3 accounts need attention"]


def test_temporary_failure_is_no_news(
    watched: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    sandbox.plan(faults.error_503())
    with pytest.raises(TemporarilyUnavailable):
        watched.refresh()
    assert mailoutbox == []


# What was mended


def test_account_that_was_mended_is_told(
    watched: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    lose(watched, sandbox)
    reconnect(watched, sandbox)
    run()
    assert len(mailoutbox) == 1  # ten minutes have not passed
    pass_time()
    run()
    assert mailoutbox[1].subject == "[Keap] All is well again"
    assert mailoutbox[1].body == "Mended:\n\n* ab123: connected\n"
    pass_time()
    assert not tell()


def test_account_that_was_disconnected_needs_nobody_any_more(
    watched: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    lose(watched, sandbox)
    watched.disconnect()
    pass_time()
    run()
    assert mailoutbox[1].body == "Mended:\n\n* ab123: disconnected\n"


def test_account_that_was_deleted_is_no_news(
    watched: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    lose(watched, sandbox)
    watched.delete()
    pass_time()
    assert not tell()


def test_account_that_was_mended_before_any_mail_is_no_news(
    watched: Credential, mailoutbox: Outbox, sandbox: Sandbox
) -> None:
    upkeep.take_mail("default", seconds=60, pause_seconds=0)  # somebody is sending one
    lose(watched, sandbox)
    reconnect(watched, sandbox)
    pass_time()
    assert not tell()
    assert mailoutbox == []


def test_account_that_is_lost_again_before_it_was_told_mended_is_told_again(
    watched: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    lose(watched, sandbox)
    reconnect(watched, sandbox)
    lose(watched, sandbox)
    assert len(mailoutbox) == 1
    pass_time()
    run()
    assert mailoutbox[1].subject == "[Keap] 1 account needs attention"


def test_account_is_not_mended_while_it_is_only_tried_once_more(mailoutbox: Outbox) -> None:
    mark_lost(1)
    tell()
    later = timezone.now() + 2 * MINUTE
    Credential.objects.update(status=Status.CONNECTED, lease_until=later, refresh_at=later)
    pass_time()
    assert not tell()


def test_account_is_not_mended_while_its_last_attempt_failed(mailoutbox: Outbox) -> None:
    mark_lost(1)
    tell()
    Credential.objects.update(status=Status.CONNECTED, failures=1)
    pass_time()
    assert not tell()


class ReconnectingBackend(EmailBackend):
    """Meets somebody who mends everything while the mail is sent."""

    def send_messages(self, messages: Any) -> int:
        Credential.objects.update(status=Status.CONNECTED)
        return super().send_messages(messages)


def test_what_is_mended_while_its_mail_is_sent_is_told_later(mailoutbox: Outbox) -> None:
    mark_lost(1)
    with mailing_by("tests.test_alarms.ReconnectingBackend"):
        assert tell()
    assert row(Credential.objects.get()).is_alerted
    pass_time()
    assert tell()
    assert "Mended" in mailoutbox[-1].body


# Clients


def test_client_that_keap_refuses_is_told_once_and_when_it_is_taken_again(
    watched: Credential, sandbox: Sandbox, mailoutbox: Outbox
) -> None:
    run()
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        with pytest.raises(ClientRejected):
            watched.refresh()
        pass_time()
        run()
    (mail,) = mailoutbox
    assert mail.subject == "[Keap] Keap refuses the client"
    assert "client in the settings" in mail.body
    run()
    pass_time()
    run()
    assert mailoutbox[1].subject == "[Keap] All is well again"
    assert mailoutbox[1].body == (
        "Keap does not refuse the client any more: client in the settings.\n"
    )
    assert len(mailoutbox) == 2


# Workers


@pytest.fixture
def neglected(watched: Credential) -> Credential:
    """An account that has been due for an hour, as long as no run has been seen."""
    hour_ago = timezone.now() - 60 * MINUTE
    Credential.objects.update(refresh_at=hour_ago, connected_at=hour_ago)
    Upkeep.objects.update(run_seen_at=hour_ago)
    return row(watched)


def test_health_view_tells_that_no_worker_runs(
    neglected: Credential, mailoutbox: Outbox, client: Client
) -> None:
    for _ in range(3):
        assert client.get("/infusionsoft/health/").status_code == 503
        pass_time()
    (mail,) = mailoutbox
    assert mail.subject == "[Keap] Refreshes are overdue"
    assert mail.body.startswith("No run of the worker has been seen since ")
    assert "\n1 account waits to be refreshed. Access tokens that have ended: 0.\n" in mail.body
    assert "Unless it is refreshed, the first of them is lost on " in mail.body
    assert "Start the worker and beat, or cron." in mail.body


def test_overdue_is_told_again_after_a_day(neglected: Credential, mailoutbox: Outbox) -> None:
    assert tell()
    pass_time()
    assert not tell()
    Upkeep.objects.update(overdue_mailed_at=timezone.now() - timedelta(hours=25))
    assert tell()


def test_late_reader_tells_that_no_worker_runs(
    neglected: Credential, mailoutbox: Outbox, sandbox: Sandbox
) -> None:
    Credential.objects.update(expires_at=timezone.now() - MINUTE)
    assert row(neglected).get_access_token()
    (mail,) = mailoutbox
    assert mail.subject == "[Keap] Refreshes are overdue"


def test_reader_in_time_looks_at_nothing_else(
    credential: Credential, mailoutbox: Outbox, sandbox: Sandbox
) -> None:
    Credential.objects.update(
        expires_at=timezone.now() - MINUTE, refresh_at=timezone.now() - 5 * MINUTE
    )
    with CaptureQueriesContext(connection) as queries:
        assert row(credential).get_access_token()
    assert not [each for each in queries if "upkeep" in each["sql"]]


def test_first_worker_has_time_to_be_started(credential: Credential, mailoutbox: Outbox) -> None:
    assert not tell()
    Credential.objects.update(connected_at=timezone.now() - 60 * MINUTE)
    assert tell()
    assert mailoutbox[0].body.startswith("No run of the worker has ever been seen here.")


def test_runs_tell_that_they_do_not_keep_up(watched: Credential, mailoutbox: Outbox) -> None:
    Credential.objects.update(refresh_at=timezone.now() - 60 * MINUTE)
    assert tell()
    assert mailoutbox[0].body.startswith("Runs are seen, and yet refreshes have been due since ")
    assert "Start the worker" not in mailoutbox[0].body


def test_run_tells_that_nothing_is_overdue_any_more(
    neglected: Credential, mailoutbox: Outbox
) -> None:
    tell()
    pass_time()
    assert run() == {"refreshed": 1}
    assert mailoutbox[1].subject == "[Keap] All is well again"
    assert mailoutbox[1].body == "No refresh is overdue any more.\n"
    pass_time()
    assert not tell()


# Sending


class RefusingBackend(EmailBackend):
    """A mail server that is down."""

    def send_messages(self, messages: Any) -> int:
        raise OSError("the mail server is down")


def test_what_no_mail_server_took_is_told_later(
    watched: Credential,
    sandbox: Sandbox,
    mailoutbox: Outbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with mailing_by("tests.test_alarms.RefusingBackend"):
        lose(watched, sandbox)  # which the reader is told as ever
    assert "alarm_not_sent" in caplog.text
    assert mailoutbox == []
    Upkeep.objects.update(mail_until=timezone.now() - MINUTE)
    run()
    assert len(mailoutbox) == 1


def test_process_that_dies_while_it_sends_leaves_it_to_the_next(mailoutbox: Outbox) -> None:
    mark_lost(1)
    upkeep.take_mail("default", seconds=60, pause_seconds=0)
    assert not tell()
    Upkeep.objects.update(mail_until=timezone.now() - timedelta(seconds=1))
    assert tell()


@pytest.mark.django_db(transaction=True)
def test_threads_that_come_upon_the_same_send_one_mail(
    database_url: str, mailoutbox: Outbox
) -> None:
    mark_lost(3)
    barrier = Barrier(4)

    def tell_together() -> bool:
        barrier.wait(60)
        return tell()

    with threads(4) as start:
        sent = [start(tell_together) for _ in range(4)]
    assert sum(each.result() for each in sent) == 1
    assert len(mailoutbox) == 1


def test_without_recipients_nothing_is_looked_at() -> None:
    mark_lost(1)
    with (
        override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=[]),
        CaptureQueriesContext(connection) as queries,
    ):
        assert not tell()
    assert len(queries) == 0


def test_mail_is_in_the_sites_language_and_time_and_not_a_visitors(
    mailoutbox: Outbox, tmp_path: Path
) -> None:
    template = tmp_path / "django_infusionsoft" / "mail" / "alarm.txt"
    template.parent.mkdir(parents=True)
    template.write_text(
        "{% load i18n tz %}{% get_current_language as language %}"
        "{% get_current_timezone as zone %}{{ language }} {{ zone }}"
    )
    mark_lost(1)
    with (
        override_settings(
            TEMPLATES=[{**settings.TEMPLATES[0], "DIRS": [tmp_path]}], TIME_ZONE="Europe/Paris"
        ),
        translation.override("de"),
        timezone.override("Asia/Tokyo"),
    ):
        assert tell()
        assert translation.get_language() == "de"
    assert mailoutbox[0].body == "en-us Europe/Paris\n"


def test_template_that_is_broken_breaks_nothing(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    template = tmp_path / "django_infusionsoft" / "mail" / "alarm.txt"
    template.parent.mkdir(parents=True)
    template.write_text("{% nonsense %}")
    mark_lost(1)
    with override_settings(TEMPLATES=[{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]):
        assert not tell()
    assert "alarm_not_sent" in caplog.text


@pytest.mark.parametrize(
    ("site_url", "redirect_uri", "start"),
    [
        (SITE, "https://other.example/infusionsoft/callback/", SITE),
        ("", "https://other.example/infusionsoft/callback/", "https://other.example"),
        ("", "", ""),
    ],
)
def test_links_are_as_absolute_as_can_be(
    mailoutbox: Outbox, site_url: str, redirect_uri: str, start: str
) -> None:
    (lost,) = mark_lost(1)
    with override_settings(INFUSIONSOFT_SITE_URL=site_url, INFUSIONSOFT_REDIRECT_URI=redirect_uri):
        tell()
    assert f"\n  {start}/infusionsoft/authorize/?credential={lost.pk}\n" in mailoutbox[0].body


@override_settings(ROOT_URLCONF="django.conf.urls.i18n")
def test_site_without_our_pages_gets_a_mail_without_links(mailoutbox: Outbox) -> None:
    mark_lost(21)
    assert tell()
    assert mailoutbox[0].body.endswith(
        "* lost019\n  Keap says that the grant has ended\n* and 1 more\n"
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
def test_names_of_strangers_stay_on_their_line(mailoutbox: Outbox, name: str, shown: str) -> None:
    mark_lost(1, account_name=name)
    tell()
    (mail,) = mailoutbox
    assert f"\n* lost000 ({shown})\n" in mail.body
    assert b"\nBcc:" not in mail.message().as_bytes()


def test_no_secret_is_mailed_or_logged(
    watched: Credential,
    sandbox: Sandbox,
    mailoutbox: Outbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = [watched.access_token, watched.refresh_token, settings.INFUSIONSOFT_CLIENT_SECRET]
    lose(watched, sandbox)
    shown = mailoutbox[0].message().as_string() + caplog.text
    assert "alarm_sent lost=1 mended=0 refused=0 accepted=0 overdue=0 up_to_date=0" in shown
    assert [secret for secret in secrets if secret in shown] == []
