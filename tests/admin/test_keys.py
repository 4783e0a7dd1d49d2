"""The admin's page for keys, and the pages of accounts that have one."""

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from django.utils import timezone

from django_infusionsoft.choices import BlockReason, Condition
from django_infusionsoft.exceptions import ReauthorizationRequired
from django_infusionsoft.models import Application, ApplicationState, Credential
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import row
from tests.web import LIST, change_url, client_for, messages_of, page, plain, user_who_may

pytestmark = pytest.mark.django_db

PAGE = reverse("admin:django_infusionsoft_credential_key")


@pytest.fixture
def ana() -> User:
    return User.objects.create_superuser("ana")


@pytest.fixture
def keyed(sandbox: Sandbox) -> Credential:
    return Credential.objects.add_key(key=sandbox.issue_key("ab123"))


def test_key_is_added_and_never_shown(sandbox: Sandbox, ana: User) -> None:
    client, key = client_for(ana), sandbox.issue_key("ab123")
    assert PAGE in page(client, LIST)
    assert 'type="password"' in page(client, PAGE)
    response = client.post(PAGE, {"key": key, "name": "The bakery"}, follow=True)
    added = Credential.objects.get()
    assert response.redirect_chain == [(change_url(added), 302)]
    assert messages_of(response) == ["success: Account ab123 is connected with a key."]
    assert (added.access_token, added.account_name, added.authorized_by) == (
        key,
        "The bakery",
        ana,
    )
    shown = response.content.decode() + page(client, LIST)
    assert key not in shown
    assert added.events.get().user == ana


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"key": "KeapAK-unknown"}, "Keap rejects this key"),
        ({"key": "two words"}, "not a key"),
        ({"key": "VALID", "account": "cd456"}, "for account ab123, not for cd456"),
        ({"key": "VALID", "account": "no name"}, "is not an account name"),
        ({}, "This field is required"),
    ],
)
def test_error_says_what_to_do_and_shows_no_key(
    sandbox: Sandbox, ana: User, data: dict[str, str], message: str
) -> None:
    key = sandbox.issue_key("ab123")
    values = {name: value.replace("VALID", key) for name, value in data.items()}
    response = client_for(ana).post(PAGE, values)
    text = response.content.decode()
    assert message in text
    assert values.get("key", key) not in text
    assert not Credential.objects.exists()


def test_outage_of_keap_is_named(sandbox: Sandbox, ana: User) -> None:
    sandbox.plan(faults.error_503(), endpoint="api", times=None)
    response = client_for(ana).post(PAGE, {"key": sandbox.issue_key("ab123")})
    assert "nothing was stored" in response.content.decode()


def test_key_needs_the_permission_to_connect(sandbox: Sandbox) -> None:
    viewer = client_for(user_who_may("view_credential"))
    assert viewer.get(PAGE).status_code == 403
    assert PAGE not in page(viewer, LIST)
    assert (
        client_for(user_who_may("view_credential", "connect_credential", name="bob"))
        .get(PAGE)
        .status_code
        == 200
    )


def test_page_of_a_key_offers_what_helps(keyed: Credential, ana: User) -> None:
    text = page(client_for(ana), change_url(keyed))
    assert "connected with a key, which is not refreshed" in plain(text)
    assert "Test connection" in text
    assert "Refresh now" not in text


def test_page_of_a_key_says_nothing_of_a_blocked_client(keyed: Credential, ana: User) -> None:
    now = timezone.now()
    ApplicationState.objects.create(
        block_reason=BlockReason.REJECTED, since=now, probe_at=now, notified_at=now
    )
    text = plain(page(client_for(ana), change_url(keyed)))
    assert "connected with a key, which is not refreshed" in text


def test_keys_are_not_among_the_accounts_of_the_client_in_the_settings(
    keyed: Credential, second: Application, ana: User
) -> None:
    listed = page(client_for(ana), f"{LIST}?application=settings")
    assert change_url(keyed) not in listed


def test_rejected_key_can_be_replaced(sandbox: Sandbox, keyed: Credential, ana: User) -> None:
    sandbox.revoke_key(keyed.access_token)
    with pytest.raises(ReauthorizationRequired):
        keyed.session().get("v2/contacts")
    client = client_for(ana)
    text = page(client, change_url(keyed))
    assert "Keap rejects the key of this account." in plain(text)
    assert f"{PAGE}?account=ab123" in text
    assert 'value="ab123"' in page(client, f"{PAGE}?account=ab123")
    client.post(PAGE, {"key": sandbox.issue_key("ab123"), "account": "ab123"})
    assert row(keyed).condition == Condition.CONNECTED


def test_connection_of_a_key_can_be_tested(keyed: Credential, ana: User) -> None:
    url = reverse("admin:django_infusionsoft_credential_test", args=[keyed.pk])
    response = client_for(ana).post(url, follow=True)
    assert "The connection works." in messages_of(response)[0]
