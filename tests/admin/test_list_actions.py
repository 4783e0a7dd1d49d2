"""The list actions: a few accounts are refreshed at once, many in the next worker run."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.test import Client
from django.utils import timezone

from django_infusionsoft import waiting
from django_infusionsoft.admin import actions
from django_infusionsoft.models import Credential, CredentialEvent
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import row
from tests.web import (
    DISCONNECTED,
    LEASED,
    LIST,
    LOST,
    MAY,
    REVOKE,
    account,
    change_url,
    client_for,
    confirmation_form,
    links,
    many,
    messages_of,
    page,
    plain,
    run_action,
    user_who_may,
    users_of_events,
)

pytestmark = pytest.mark.django_db

Connect = Callable[..., Credential]


@pytest.fixture
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit a request to refreshing two accounts."""
    monkeypatch.setattr(actions, "MAX_REFRESHED_AT_ONCE", 2)


# Refresh selected


def test_action_refreshes_the_selected_accounts(
    operator: Client, sandbox: Sandbox, connect: Connect
) -> None:
    first, second, third = connect("ab123"), connect("cd456"), connect("ef789")
    response = run_action(operator, "refresh_selected", first, third)
    assert response.status_code == 302
    assert messages_of(response) == [
        "success: Account ab123 has a new access token.",
        "success: Account ef789 has a new access token.",
    ]
    assert [row(each).generation for each in (first, second, third)] == [2, 1, 2]
    assert users_of_events("refreshed") == ["operator"] * 2


def test_action_continues_after_a_rejected_account(
    operator: Client, sandbox: Sandbox, connect: Connect
) -> None:
    first, second = connect("ab123"), connect("cd456")
    sandbox.revoke("ab123")
    messages = messages_of(run_action(operator, "refresh_selected", first, second))
    assert [each.partition(":")[0] for each in messages] == ["error", "success"]


def test_action_stops_when_keap_is_down(
    operator: Client, sandbox: Sandbox, connect: Connect
) -> None:
    credentials = [connect(account) for account in ("ab123", "cd456", "ef789")]
    sandbox.plan(faults.error_503(), times=None)
    messages = messages_of(run_action(operator, "refresh_selected", *credentials))
    assert messages[1:] == ["warning: 2 other accounts were skipped."]
    assert len(sandbox.token_requests) == 1


def test_action_reports_no_skipped_accounts_when_only_the_last_one_fails(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.error_503())
    assert len(messages_of(run_action(operator, "refresh_selected", credential))) == 1


@pytest.mark.django_db(transaction=True)
def test_action_runs_outside_atomic_requests(
    operator: Client, credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    response = run_action(operator, "refresh_selected", credential)
    assert messages_of(response) == ["success: Account ab123 has a new access token."]


def test_many_accounts_are_left_to_the_next_run(
    operator: Client, sandbox: Sandbox, django_assert_max_num_queries: Any
) -> None:
    many(21)
    Credential.objects.update(refresh_at=timezone.now() + timedelta(hours=9))
    began = timezone.now()
    with django_assert_max_num_queries(20):
        response = run_action(operator, "refresh_selected", *Credential.objects.all())
    assert messages_of(response) == ["success: The next worker run will refresh 21 accounts."]
    assert sandbox.token_requests == []
    assert Credential.objects.due().count() == 21
    earliest = min(each.refresh_at for each in Credential.objects.all() if each.refresh_at)
    assert earliest > began - timedelta(seconds=5)
    assert users_of_events("refresh_requested") == ["operator"] * 21


def test_accounts_are_left_to_the_next_run_when_the_first_have_taken_long(
    operator: Client, sandbox: Sandbox, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = [connect(account) for account in ("ab123", "cd456", "ef789")]
    monkeypatch.setattr(waiting, "seconds_left", lambda: 0.0)
    messages = messages_of(run_action(operator, "refresh_selected", *credentials))
    assert messages[1:] == ["success: The next worker run will refresh 2 accounts."]
    assert len(sandbox.token_requests) == 1


def test_twenty_accounts_are_refreshed_at_once() -> None:
    assert (actions.MAX_REFRESHED_AT_ONCE, actions.MAX_SELECTED) == (20, 500)


def test_next_run_refreshes_the_requested_accounts(
    two_at_once: None, operator: Client, sandbox: Sandbox, connect: Connect
) -> None:
    credentials = [connect(account) for account in ("ab123", "cd456", "ef789")]
    run_action(operator, "refresh_selected", *credentials)
    assert Credential.objects.refresh_due().refreshed == 3
    assert [row(each).generation for each in credentials] == [2, 2, 2]
    assert "Refresh requested for the next run" in page(operator, change_url(credentials[0]))


def test_only_accounts_that_can_be_refreshed_are_left_to_the_next_run(
    two_at_once: None, operator: Client
) -> None:
    credentials = [
        account("idle", failures=2),
        account("leased", **LEASED),
        account("lost", **{**LOST, "refresh_at": None}),
        account("gone", **DISCONNECTED),
    ]
    response = run_action(operator, "refresh_selected", *credentials)
    assert messages_of(response) == ["success: The next worker run will refresh 1 account."]
    assert [each.account for each in Credential.objects.due()] == ["idle"]
    assert [each.credential.account for each in CredentialEvent.objects.all()] == ["idle"]
    for credential in credentials[1:]:
        assert row(credential).refresh_at == credential.refresh_at


def test_only_selected_accounts_are_left_to_the_next_run(
    two_at_once: None, operator: Client
) -> None:
    credentials = [account(name) for name in ("ab123", "cd456", "ef789", "gh012")]
    run_action(operator, "refresh_selected", *credentials[:3])
    assert [each.account for each in Credential.objects.due()] == ["ab123", "cd456", "ef789"]


def test_all_search_results_can_be_left_to_the_next_run(
    two_at_once: None, operator: Client
) -> None:
    for number in range(4):
        account(f"x{number}", account_name="match")
    account("other")
    form = {"action": "refresh_selected", "_selected_action": [Credential.objects.all()[0].pk]}
    operator.post(f"{LIST}?q=match", {**form, "select_across": "1"})
    assert Credential.objects.due().count() == 4


@pytest.mark.django_db(transaction=True)
def test_next_run_is_requested_outside_atomic_requests(
    two_at_once: None, operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = [account(name) for name in ("ab123", "cd456", "ef789")]
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    run_action(operator, "refresh_selected", *credentials)
    assert users_of_events("refresh_requested") == ["operator"] * 3


def test_all_accounts_across_pages_are_left_to_the_next_run(operator: Client) -> None:
    many(actions.MAX_SELECTED + 1)
    Credential.objects.update(refresh_at=timezone.now() + timedelta(hours=9))
    form = {"action": "refresh_selected", "_selected_action": [Credential.objects.all()[0].pk]}
    response = operator.post(LIST, {**form, "select_across": "1"})
    assert messages_of(response) == ["success: The next worker run will refresh 501 accounts."]
    assert Credential.objects.due().count() == 501
    assert users_of_events("refresh_requested") == ["operator"] * 501


def test_action_disconnects_no_more_than_the_maximum_selected(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "MAX_SELECTED", 3)
    credentials = [account(name) for name in ("ab123", "cd456", "ef789", "gh012")]
    response = run_action(operator, "disconnect_selected", *credentials, confirmed="yes")
    assert messages_of(response) == ["error: Select at most 3 accounts at a time."]
    assert not CredentialEvent.objects.exists()
    run_action(operator, "disconnect_selected", *credentials[:3], confirmed="yes")
    assert CredentialEvent.objects.count() == 3


@pytest.mark.parametrize("action", ["refresh_selected", "disconnect_selected"])
def test_action_requires_its_permission(two_at_once: None, sandbox: Sandbox, action: str) -> None:
    other_permissions = {
        "view_credential",
        "connect_credential",
        "delete_credential",
        *MAY.values(),
    }
    permission = MAY[action.partition("_")[0]]
    client = client_for(user_who_may(*other_permissions - {permission}))
    credentials = [account(name) for name in ("ab123", "cd456", "ef789")]
    for count in (1, 3):
        run_action(client, action, *credentials[:count], confirmed="yes")
    assert sandbox.token_requests == []
    assert not CredentialEvent.objects.exists()


# Disconnect selected


def test_action_asks_for_confirmation_before_disconnecting(operator: Client) -> None:
    first, second = account("ab123", account_name="Acme Bakery"), account("cd456")
    html = run_action(operator, "disconnect_selected", first, second).content.decode()
    assert "<h1>Disconnect 2 Keap accounts?</h1>" in html
    assert "ab123: Acme Bakery" in plain(html)
    assert REVOKE in html
    assert (LIST, "No, go back") in links(html)
    form = confirmation_form(html)
    assert form["_selected_action"] == [str(first.pk), str(second.pk)]
    assert (form["action"], form["confirmed"]) == (["disconnect_selected"], ["yes"])
    assert Credential.objects.connected().count() == 2
    assert not CredentialEvent.objects.exists()


def test_action_disconnects_when_confirmed(operator: Client) -> None:
    first, second, other = (account(name) for name in ("ab123", "cd456", "ef789"))
    html = run_action(operator, "disconnect_selected", first, second).content.decode()
    response = operator.post(LIST, confirmation_form(html))
    assert response.status_code == 302
    (message,) = messages_of(response)
    assert message.startswith(
        "success: 2 accounts have been disconnected. Their tokens have been deleted from "
        "this site. Keap has no API"
    )
    assert REVOKE in message
    assert [each.account for each in Credential.objects.connected()] == ["ef789"]
    assert row(first).refresh_token == ""
    assert row(other).refresh_token == "refresh-of-a-row"
    assert users_of_events("disconnected") == ["operator"] * 2


def test_action_skips_accounts_that_are_already_disconnected(operator: Client) -> None:
    disconnected, lost = account("ab123", **DISCONNECTED), account("cd456", **LOST)
    html = run_action(operator, "disconnect_selected", disconnected, lost).content.decode()
    assert confirmation_form(html)["_selected_action"] == [str(lost.pk)]
    run_action(operator, "disconnect_selected", disconnected, lost, confirmed="yes")
    assert (row(disconnected).generation, row(lost).status) == (1, "disconnected")
    assert [each.credential for each in CredentialEvent.objects.all()] == [lost]


def test_action_asks_nothing_when_all_accounts_are_disconnected(operator: Client) -> None:
    response = run_action(operator, "disconnect_selected", account(**DISCONNECTED))
    assert response.status_code == 302
    assert not CredentialEvent.objects.exists()


def test_confirmation_lists_only_the_first_accounts(operator: Client) -> None:
    many(23)
    html = run_action(operator, "disconnect_selected", *Credential.objects.all()).content.decode()
    named = re.findall(r"<li>(x\d+)</li>", html)
    assert named == [f"x{number:04}" for number in range(actions.MAX_NAMED)]
    assert "and 3 more" in plain(html)
    assert len(confirmation_form(html)["_selected_action"]) == 23


def test_action_disconnects_all_search_results(operator: Client) -> None:
    for number in range(3):
        account(f"x{number}", account_name="match")
    account("other")
    form = {"action": "disconnect_selected", "_selected_action": [Credential.objects.all()[0].pk]}
    html = operator.post(f"{LIST}?q=match", {**form, "select_across": "1"}).content.decode()
    operator.post(f"{LIST}?q=match", confirmation_form(html))
    assert [each.account for each in Credential.objects.connected()] == ["other"]


@pytest.mark.django_db(transaction=True)
def test_action_disconnects_outside_atomic_requests(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential = account()
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    run_action(operator, "disconnect_selected", credential, confirmed="yes")
    assert row(credential).status == "disconnected"
    assert users_of_events("disconnected") == ["operator"]


def test_the_maximum_selected_can_be_disconnected(operator: Client) -> None:
    many(actions.MAX_SELECTED)
    form = {"action": "disconnect_selected", "_selected_action": [Credential.objects.all()[0].pk]}
    html = operator.post(LIST, {**form, "select_across": "1"}).content.decode()
    response = operator.post(LIST, confirmation_form(html))
    assert response.status_code == 302
    assert not Credential.objects.connected().exists()
