"""The actions of the admin's list: a few accounts at once, many by the next run."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.test import Client
from django.utils import timezone

from django_infusionsoft.admin import verbs
from django_infusionsoft.models import Credential, CredentialEvent
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import row
from tests.visits import (
    DISCONNECTED,
    LEASED,
    LIST,
    LOST,
    MAY,
    REVOKE,
    account,
    act,
    links,
    many,
    messages_of,
    page,
    page_of,
    plain,
    question,
    user_who_may,
    visitor,
    who_did,
)

pytestmark = pytest.mark.django_db

Connect = Callable[..., Credential]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a request could refresh two accounts."""
    monkeypatch.setattr(verbs, "MOST_REFRESHED_AT_ONCE", 2)


# Refresh selected


def test_action_refreshes_what_is_selected(
    operator: Client, sandbox: Sandbox, connect: Connect
) -> None:
    first, second, third = connect("ab123"), connect("cd456"), connect("ef789")
    response = act(operator, "refresh_selected", first, third)
    assert response.status_code == 302
    assert messages_of(response) == [
        "success: Account ab123 has a new access token.",
        "success: Account ef789 has a new access token.",
    ]
    assert [row(each).generation for each in (first, second, third)] == [2, 1, 2]
    assert who_did("refreshed") == ["operator"] * 2


def test_action_goes_on_after_an_account_that_keap_refuses(
    operator: Client, sandbox: Sandbox, connect: Connect
) -> None:
    first, second = connect("ab123"), connect("cd456")
    sandbox.revoke("ab123")
    messages = messages_of(act(operator, "refresh_selected", first, second))
    assert [each.partition(":")[0] for each in messages] == ["error", "success"]


def test_action_ends_where_keap_is_down(
    operator: Client, sandbox: Sandbox, connect: Connect
) -> None:
    credentials = [connect(account) for account in ("ab123", "cd456", "ef789")]
    sandbox.plan(faults.error_503(), times=None)
    messages = messages_of(act(operator, "refresh_selected", *credentials))
    assert messages[1:] == ["warning: 2 more accounts were left as they are."]
    assert len(sandbox.token_requests) == 1


def test_action_that_fails_for_the_last_account_leaves_none_out(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.error_503())
    assert len(messages_of(act(operator, "refresh_selected", credential))) == 1


@pytest.mark.django_db(transaction=True)
def test_action_is_outside_atomic_requests(
    operator: Client, credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    response = act(operator, "refresh_selected", credential)
    assert messages_of(response) == ["success: Account ab123 has a new access token."]


def test_many_are_left_to_the_next_run(
    operator: Client, sandbox: Sandbox, django_assert_max_num_queries: Any
) -> None:
    many(21)
    Credential.objects.update(refresh_at=timezone.now() + timedelta(hours=9))
    began = timezone.now()
    with django_assert_max_num_queries(20):
        response = act(operator, "refresh_selected", *Credential.objects.all())
    assert messages_of(response) == [
        "success: 21 accounts are refreshed by the next run of the worker."
    ]
    assert sandbox.token_requests == []
    assert Credential.objects.due().count() == 21
    earliest = min(each.refresh_at for each in Credential.objects.all() if each.refresh_at)
    assert earliest > began - timedelta(seconds=5)
    assert who_did("refresh_requested") == ["operator"] * 21


def test_twenty_are_refreshed_at_once() -> None:
    assert (verbs.MOST_REFRESHED_AT_ONCE, verbs.MOST_SELECTED) == (20, 500)


def test_run_refreshes_what_it_was_left(
    at_once: None, operator: Client, sandbox: Sandbox, connect: Connect
) -> None:
    credentials = [connect(account) for account in ("ab123", "cd456", "ef789")]
    act(operator, "refresh_selected", *credentials)
    assert Credential.objects.refresh_due().refreshed == 3
    assert [row(each).generation for each in credentials] == [2, 2, 2]
    assert "The next run was asked to refresh it" in page(operator, page_of(credentials[0]))


def test_many_are_left_to_the_next_run_but_for_those_that_it_cannot_refresh(
    at_once: None, operator: Client
) -> None:
    credentials = [
        account("idle", failures=2),
        account("leased", **LEASED),
        account("lost", **{**LOST, "refresh_at": None}),
        account("gone", **DISCONNECTED),
    ]
    response = act(operator, "refresh_selected", *credentials)
    assert messages_of(response) == [
        "success: 1 account is refreshed by the next run of the worker."
    ]
    assert [each.account for each in Credential.objects.due()] == ["idle"]
    assert [each.credential.account for each in CredentialEvent.objects.all()] == ["idle"]
    for credential in credentials[1:]:
        assert row(credential).refresh_at == credential.refresh_at


def test_what_is_not_selected_is_not_left_to_the_next_run(at_once: None, operator: Client) -> None:
    credentials = [account(name) for name in ("ab123", "cd456", "ef789", "gh012")]
    act(operator, "refresh_selected", *credentials[:3])
    assert [each.account for each in Credential.objects.due()] == ["ab123", "cd456", "ef789"]


def test_all_that_a_search_finds_can_be_left_to_the_next_run(
    at_once: None, operator: Client
) -> None:
    for number in range(4):
        account(f"x{number}", account_name="mine")
    account("other")
    form = {"action": "refresh_selected", "_selected_action": [Credential.objects.all()[0].pk]}
    operator.post(f"{LIST}?q=mine", {**form, "select_across": "1"})
    assert Credential.objects.due().count() == 4


@pytest.mark.django_db(transaction=True)
def test_next_run_is_asked_outside_atomic_requests(
    at_once: None, operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = [account(name) for name in ("ab123", "cd456", "ef789")]
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    act(operator, "refresh_selected", *credentials)
    assert who_did("refresh_requested") == ["operator"] * 3


@pytest.mark.parametrize("action", ["refresh_selected", "disconnect_selected"])
def test_action_refuses_more_than_a_request_can_take(
    at_once: None,
    operator: Client,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
) -> None:
    monkeypatch.setattr(verbs, "MOST_SELECTED", 3)
    credentials = [account(name) for name in ("ab123", "cd456", "ef789", "gh012")]
    response = act(operator, action, *credentials, confirmed="yes")
    assert messages_of(response) == ["error: Select at most 3 accounts at once."]
    assert sandbox.token_requests == []
    assert not CredentialEvent.objects.exists()
    assert not Credential.objects.due().exists()
    act(operator, action, *credentials[:3], confirmed="yes")
    assert CredentialEvent.objects.count() == 3


@pytest.mark.parametrize("action", ["refresh_selected", "disconnect_selected"])
def test_action_needs_its_permission(at_once: None, sandbox: Sandbox, action: str) -> None:
    everything_else = {"view_credential", "connect_credential", "delete_credential", *MAY.values()}
    mine = MAY[action.partition("_")[0]]
    client = visitor(user_who_may(*everything_else - {mine}))
    credentials = [account(name) for name in ("ab123", "cd456", "ef789")]
    for count in (1, 3):
        act(client, action, *credentials[:count], confirmed="yes")
    assert sandbox.token_requests == []
    assert not CredentialEvent.objects.exists()


# Disconnect selected


def test_action_asks_before_it_disconnects(operator: Client) -> None:
    first, second = account("ab123", account_name="Acme Bakery"), account("cd456")
    html = act(operator, "disconnect_selected", first, second).content.decode()
    assert "<h1>Disconnect 2 Keap accounts?</h1>" in html
    assert "ab123: Acme Bakery" in plain(html)
    assert REVOKE in html
    assert (LIST, "No, go back") in links(html)
    form = question(html)
    assert form["_selected_action"] == [str(first.pk), str(second.pk)]
    assert (form["action"], form["confirmed"]) == (["disconnect_selected"], ["yes"])
    assert Credential.objects.connected().count() == 2
    assert not CredentialEvent.objects.exists()


def test_action_disconnects_once_it_is_confirmed(operator: Client) -> None:
    first, second, other = (account(name) for name in ("ab123", "cd456", "ef789"))
    html = act(operator, "disconnect_selected", first, second).content.decode()
    response = operator.post(LIST, question(html))
    assert response.status_code == 302
    (message,) = messages_of(response)
    assert message.startswith(
        "success: 2 accounts are disconnected: their tokens are forgotten here. Keap has no way"
    )
    assert REVOKE in message
    assert [each.account for each in Credential.objects.connected()] == ["ef789"]
    assert row(first).refresh_token == ""
    assert row(other).refresh_token == "refresh-of-a-row"
    assert who_did("disconnected") == ["operator"] * 2


def test_action_leaves_out_what_is_disconnected_already(operator: Client) -> None:
    gone, lost = account("ab123", **DISCONNECTED), account("cd456", **LOST)
    html = act(operator, "disconnect_selected", gone, lost).content.decode()
    assert question(html)["_selected_action"] == [str(lost.pk)]
    act(operator, "disconnect_selected", gone, lost, confirmed="yes")
    assert (row(gone).generation, row(lost).status) == (1, "disconnected")
    assert [each.credential for each in CredentialEvent.objects.all()] == [lost]


def test_action_does_not_ask_where_all_are_disconnected(operator: Client) -> None:
    response = act(operator, "disconnect_selected", account(**DISCONNECTED))
    assert response.status_code == 302
    assert not CredentialEvent.objects.exists()


def test_question_names_some_of_many(operator: Client) -> None:
    many(23)
    html = act(operator, "disconnect_selected", *Credential.objects.all()).content.decode()
    named = re.findall(r"<li>(x\d+)</li>", html)
    assert named == [f"x{number:04}" for number in range(verbs.MOST_NAMED)]
    assert "and 3 more" in plain(html)
    assert len(question(html)["_selected_action"]) == 23


def test_action_disconnects_all_that_a_search_finds(operator: Client) -> None:
    for number in range(3):
        account(f"x{number}", account_name="mine")
    account("other")
    form = {"action": "disconnect_selected", "_selected_action": [Credential.objects.all()[0].pk]}
    html = operator.post(f"{LIST}?q=mine", {**form, "select_across": "1"}).content.decode()
    operator.post(f"{LIST}?q=mine", question(html))
    assert [each.account for each in Credential.objects.connected()] == ["other"]


@pytest.mark.django_db(transaction=True)
def test_action_disconnects_outside_atomic_requests(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential = account()
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    act(operator, "disconnect_selected", credential, confirmed="yes")
    assert row(credential).status == "disconnected"
    assert who_did("disconnected") == ["operator"]


def test_as_many_as_can_be_selected_can_be_disconnected(operator: Client) -> None:
    many(verbs.MOST_SELECTED)
    form = {"action": "disconnect_selected", "_selected_action": [Credential.objects.all()[0].pk]}
    html = operator.post(LIST, {**form, "select_across": "1"}).content.decode()
    response = operator.post(LIST, question(html))
    assert response.status_code == 302
    assert not Credential.objects.connected().exists()
