"""Keys instead of OAuth: stored, used, never refreshed, and watched."""

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.api.sdk import api_client
from django_infusionsoft.choices import Condition, Reason, Status
from django_infusionsoft.exceptions import (
    ConfigurationError,
    ImportRejected,
    InfusionsoftError,
    ReauthorizationRequired,
    TemporarilyUnavailable,
)
from django_infusionsoft.models import Credential, WorkerState
from django_infusionsoft.monitoring import alerts
from django_infusionsoft.monitoring.health import HealthStatus, health_of
from django_infusionsoft.sandbox import Sandbox, faults
from django_infusionsoft.signals import reauthorization_required
from tests.mails import mailing_by
from tests.support import received, row, run, threads
from tests.web import change_url

pytestmark = pytest.mark.django_db

Connect = Callable[..., Credential]

HEADERS = ["Authorization", "X-Keap-API-Key"]


@pytest.fixture
def keyed(sandbox: Sandbox) -> Credential:
    """An account with a key."""
    return Credential.objects.add_key(key=sandbox.issue_key("ab123"))


@pytest.fixture
def outbox(mailoutbox: list[Any]) -> Iterator[list[Any]]:
    """The alerts that are sent."""
    recipients = override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"])
    with mailing_by(), recipients:
        yield mailoutbox


def test_account_and_names_are_those_that_keap_says(sandbox: Sandbox) -> None:
    ana = User.objects.create_user("ana")
    key = sandbox.issue_key("ab123")
    added = Credential.objects.add_key(key=f" {key}\n", name="The bakery", user=ana)
    assert (added.account, added.account_name) == ("ab123", "The bakery")
    assert (added.keap_user, added.keap_user_is_admin) == ("ana@example.test", True)
    assert (added.access_token, added.authorized_by, added.is_key) == (key, ana, True)
    (event,) = added.events.all()
    assert (event.kind, event.user) == ("connected", ana)
    assert key not in str(vars(added))


@pytest.mark.parametrize("header", HEADERS)
def test_api_is_called_with_the_key(sandbox: Sandbox, keyed: Credential, header: str) -> None:
    with override_settings(INFUSIONSOFT_KEY_HEADER=header):
        response = row(keyed).session().get("v2/contacts")
        assert response.ok
        assert keyed.access_token in response.request.headers[header]
        assert row(keyed).test_connection().is_ok
    assert sandbox.token_requests == []


@pytest.mark.parametrize("header", HEADERS)
def test_async_code_and_the_sdk_use_the_key(keyed: Credential, header: str) -> None:
    keap = pytest.importorskip("keap_core_v2_client")

    async def call() -> int:
        async with keyed.asession() as session:
            return (await session.get("v2/contacts")).status_code

    with override_settings(INFUSIONSOFT_KEY_HEADER=header):
        assert asyncio.run(call()) == 200
        assert keap.ContactApi(api_client(keyed)).list_contacts().contacts


def test_another_header_is_a_configuration_error(keyed: Credential) -> None:
    with (
        override_settings(INFUSIONSOFT_KEY_HEADER="X-Key"),
        pytest.raises(ConfigurationError, match="INFUSIONSOFT_KEY_HEADER"),
    ):
        row(keyed).session().get("v2/contacts")


def test_key_is_never_refreshed(sandbox: Sandbox, keyed: Credential) -> None:
    assert Credential.objects.due().count() == 0
    assert Credential.objects.connected().request_refresh() == 0
    assert run() == {}
    for attempt in (keyed.refresh, row(keyed).refresh):
        with pytest.raises(ConfigurationError, match="add_key"):
            attempt()
    assert not keyed.may_be_refreshed
    assert sandbox.token_requests == []
    assert row(keyed).condition == Condition.CONNECTED


def test_site_with_keys_alone_needs_no_worker(keyed: Credential, outbox: list[Any]) -> None:
    long_ago = timezone.now() - timedelta(days=1)
    Credential.objects.update(connected_at=long_ago, issued_at=long_ago)
    assert health_of("default").status == HealthStatus.OK
    assert not alerts.send_pending("default")
    assert outbox == []


def test_key_gives_the_worker_of_a_new_grant_no_less_time(
    keyed: Credential, connect: Connect, outbox: list[Any]
) -> None:
    Credential.objects.update(connected_at=timezone.now() - timedelta(days=1))
    connect("cd456")
    assert not alerts.send_pending("default")
    assert outbox == []


def test_run_leaves_a_key_alone_when_the_clock_has_stepped_back(keyed: Credential) -> None:
    ahead = timezone.now() + timedelta(hours=6)
    Credential.objects.update(issued_at=ahead)
    WorkerState.objects.update_or_create(pk=1, defaults={"run_seen_at": ahead})
    assert run() == {}
    assert row(keyed).refresh_at is None


def test_refresh_of_all_accounts_counts_and_lists_no_keys(
    sandbox: Sandbox, keyed: Credential, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect("cd456")
    sandbox.revoke_key(keyed.access_token)
    with pytest.raises(ReauthorizationRequired):
        keyed.session().get("v2/contacts")
    Credential.objects.add_key(key=sandbox.issue_key("ef789"))
    questions: list[str] = []

    def say_yes(question: str) -> str:
        questions.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", say_yes)
    output = StringIO()
    call_command("infusionsoft_refresh", "--all", stdout=output, stderr=StringIO())
    assert "all 1 connected accounts" in questions[0]
    assert "ab123" not in output.getvalue()


def test_status_shows_that_a_key_does_not_expire(keyed: Credential) -> None:
    output = StringIO()
    call_command("infusionsoft_status", "--json", stdout=output)
    (facts,) = json.loads(output.getvalue())["accounts"]
    assert (facts["kind"], facts["expires_at"], facts["refresh_at"]) == ("key", None, None)
    output = StringIO()
    call_command("infusionsoft_status", stdout=output)
    assert "9999" not in output.getvalue()


def test_mail_about_a_rejected_key_leads_to_its_page(
    sandbox: Sandbox, keyed: Credential, outbox: list[Any]
) -> None:
    sandbox.revoke_key(keyed.access_token)
    with pytest.raises(ReauthorizationRequired):
        keyed.session().get("v2/contacts")
    (mail,) = outbox
    assert "Keap rejects the key" in mail.body
    assert mail.body.split()[-1].endswith(change_url(keyed))


def test_rejected_key_needs_attention_after_keap_has_confirmed_it(
    sandbox: Sandbox, keyed: Credential
) -> None:
    sandbox.revoke_key(keyed.access_token)
    stale = row(keyed)
    with received(reauthorization_required) as signals:
        for _ in range(2):
            with pytest.raises(ReauthorizationRequired, match="Keap rejects the key"):
                keyed.session().get("v2/contacts")
    assert len(signals) == 1
    found = row(keyed)
    assert (found.status, found.reason) == (Status.REAUTHORIZATION_REQUIRED, Reason.KEY_REJECTED)
    assert found.condition == Condition.NEEDS_ATTENTION
    assert found.events.all()[0].kind == "reauthorization_required"
    for credential in (found, stale):
        with pytest.raises(ReauthorizationRequired):
            credential.session().get("v2/contacts")
    with pytest.raises(ReauthorizationRequired):
        found.get_access_token()
    assert sandbox.token_requests == []


def test_key_stays_valid_when_keap_accepts_it(sandbox: Sandbox, keyed: Credential) -> None:
    sandbox.plan(faults.answer(401, {}), endpoint="api")
    assert keyed.session().get("v2/contacts").status_code == 401
    assert row(keyed).condition == Condition.CONNECTED
    assert keyed.session().get("v2/contacts").status_code == 200


def test_keap_is_asked_about_a_key_once_a_minute(sandbox: Sandbox, keyed: Credential) -> None:
    def answers(path: str) -> list[int]:
        """Let the API reject a request, and return all answers."""
        before = len(sandbox.api_requests)
        sandbox.plan(faults.answer(401, {}), endpoint="api")
        assert keyed.session().get(path).status_code == 401
        return [each.status for each in sandbox.api_requests][before:]

    assert answers("v2/contacts") == [401, 200]
    assert answers("v2/contacts") == [401]
    minute_ago = timezone.now() - timedelta(minutes=1)
    Credential.objects.update(presented_again_at=minute_ago)
    assert answers("v2/contacts") == [401, 200]
    sandbox.revoke_key(keyed.access_token)
    renewed = Credential.objects.add_key(key=sandbox.issue_key("ab123"))
    sandbox.revoke_key(renewed.access_token)
    with pytest.raises(ReauthorizationRequired):
        renewed.session().get("v2/contacts")


@pytest.mark.django_db(transaction=True)
def test_key_that_is_added_while_keap_is_asked_about_the_old_one_is_used(
    sandbox: Sandbox, keyed: Credential
) -> None:
    sandbox.revoke_key(keyed.access_token)
    sandbox.plan(faults.answer(401, {}), endpoint="api")
    gate = sandbox.hold(endpoint="api")
    with threads(1) as start:
        status = start(lambda: row(keyed).session().get("v2/contacts").status_code)
        gate.wait_until_processed()
        Credential.objects.add_key(key=sandbox.issue_key("ab123"))
        gate.release()
        assert status.result() == 200
    assert row(keyed).condition == Condition.CONNECTED


def test_test_of_the_connection_takes_a_key_back_that_was_rejected_by_mistake(
    sandbox: Sandbox, keyed: Credential
) -> None:
    sandbox.plan(faults.answer(401, {}), endpoint="api", times=3)
    with pytest.raises(ReauthorizationRequired):
        keyed.session().get("v2/contacts")
    with pytest.raises(ReauthorizationRequired):
        row(keyed).test_connection()
    assert row(keyed).condition == Condition.NEEDS_ATTENTION
    user = User.objects.create_user("ana")
    assert row(keyed).test_connection(user=user).is_ok
    assert row(keyed).condition == Condition.CONNECTED
    assert row(keyed).session().get("v2/contacts").ok
    kinds = [(each.kind, each.user) for each in keyed.events.all()[:2]]
    assert kinds == [("tested", user), ("reconnected", user)]


def test_new_key_takes_the_place_of_the_old_one(sandbox: Sandbox, keyed: Credential) -> None:
    sandbox.revoke_key(keyed.access_token)
    with pytest.raises(ReauthorizationRequired):
        row(keyed).session().get("v2/contacts")
    replaced = Credential.objects.add_key(key=sandbox.issue_key("ab123"), account="AB123")
    assert replaced.pk == keyed.pk
    assert keyed.session().get("v2/contacts").ok  # by an instance that was read before
    assert (replaced.condition, replaced.events.all()[0].kind) == (
        Condition.CONNECTED,
        "reconnected",
    )


def test_key_that_keap_does_not_take_is_not_stored(sandbox: Sandbox) -> None:
    revoked = sandbox.issue_key("ab123")
    sandbox.revoke_key(revoked)
    for key in (revoked, "two words", ""):
        with pytest.raises(ImportRejected):
            Credential.objects.add_key(key=key)
    with pytest.raises(ImportRejected, match="for account ab123, not for cd456"):
        Credential.objects.add_key(key=sandbox.issue_key("ab123"), account="cd456")
    with pytest.raises(ValueError, match="account name"):
        Credential.objects.add_key(key=sandbox.issue_key("ab123"), account="no name")
    sandbox.plan(faults.error_503(), endpoint="api", times=None)
    with pytest.raises(TemporarilyUnavailable):
        Credential.objects.add_key(key=sandbox.issue_key("ab123"))
    assert not Credential.objects.exists()


def test_account_must_be_given_when_keap_does_not_name_it(sandbox: Sandbox) -> None:
    sandbox.switches.tenant_id, sandbox.switches.quota_headers = "absent", "off"
    key = sandbox.issue_key("ab123")
    with pytest.raises(ImportRejected, match="specify the account"):
        Credential.objects.add_key(key=key)
    assert Credential.objects.add_key(key=key, account="ab123").account == "ab123"


def test_account_that_is_connected_with_oauth_keeps_its_grant(
    sandbox: Sandbox, credential: Credential
) -> None:
    with pytest.raises(ImportRejected, match="Disconnect it first"):
        Credential.objects.add_key(key=sandbox.issue_key("ab123"))
    assert not row(credential).is_key
    credential.disconnect()
    assert Credential.objects.add_key(key=sandbox.issue_key("ab123")).pk == credential.pk


def test_grant_takes_the_place_of_a_key(sandbox: Sandbox, keyed: Credential) -> None:
    reply = sandbox.issue("ab123")
    imported = Credential.objects.import_tokens(
        account="ab123",
        access_token=reply["access_token"],
        refresh_token=reply["refresh_token"],
        expires_at=timezone.now() + timedelta(days=1),
    )
    assert (imported.pk, imported.is_key) == (keyed.pk, False)
    keyed.refresh_from_db()
    keyed.refresh()
    assert len(sandbox.token_requests) == 1


def test_disconnected_key_is_deleted(keyed: Credential) -> None:
    keyed.disconnect()
    assert row(keyed).access_token == ""
    with pytest.raises(InfusionsoftError):
        row(keyed).get_access_token()
