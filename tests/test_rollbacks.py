"""Refreshes inside a caller's transaction, in requests and in test cases."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, TestCase, TransactionTestCase, override_settings
from django.urls import path
from django.utils import timezone

from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox

ACCOUNT = "ab123"


class Failure(Exception):
    """What the views raise once they have done their work."""


def use(way: str) -> None:
    match way:
        case "refresh":
            Credential.objects.for_account(ACCOUNT).refresh()
        case "get_access_token":
            Credential.objects.for_account(ACCOUNT).get_access_token()
        case "session":
            with Credential.objects.for_account(ACCOUNT).session() as session:
                session.get("v2/contacts").raise_for_status()
        case "refresh_due":
            Credential.objects.refresh_due()


def fail(request: HttpRequest, way: str) -> HttpResponse:
    use(way)
    raise Failure


def use_two(request: HttpRequest) -> HttpResponse:
    """As parts of a site do that know nothing of each other."""
    Credential.objects.for_account(ACCOUNT).refresh()
    return HttpResponse(Credential.objects.for_account(ACCOUNT).get_access_token())


urlpatterns = [path("fail/<way>/", fail), path("use-two/", use_two)]

WAYS = ["refresh", "get_access_token", "session", "refresh_due"]


def check_grant_is_alive(sandbox: Sandbox) -> None:
    """Let the row hold what works next, and try it."""
    (grant,) = sandbox.live_grants
    credential = Credential.objects.get()
    assert credential.refresh_token == grant.refresh_token
    credential.refresh()
    assert sandbox.replays == 0


# Requests


@pytest.fixture
def site(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Client:
    """The views above, each in a transaction of its own."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    monkeypatch.setattr("django_infusionsoft.database.LOCK_TIMEOUT_SECONDS", 1)
    return Client()


@pytest.mark.parametrize("way", WAYS)
@override_settings(ROOT_URLCONF=__name__)
def test_new_pair_is_stored_when_the_view_fails_afterwards(
    site: Client, deferred: None, sandbox: Sandbox, expired: Credential, way: str
) -> None:
    with pytest.raises(Failure):
        site.get(f"/fail/{way}/")
    assert len(sandbox.token_requests) == 1
    assert Credential.objects.get().generation == 2
    assert Credential.objects.get().events.filter(kind="refreshed").exists()
    check_grant_is_alive(sandbox)


@override_settings(ROOT_URLCONF=__name__)
def test_rest_of_the_request_gets_the_new_access_token(
    site: Client, deferred: None, sandbox: Sandbox, expired: Credential
) -> None:
    """Its transaction may see the row as it was, and the access token that has ended."""
    response = site.get("/use-two/")
    assert response.content.decode() == Credential.objects.get().access_token
    assert len(sandbox.token_requests) == 1


@pytest.mark.parametrize("way", WAYS)
@override_settings(ROOT_URLCONF=__name__)
def test_nothing_is_sent_when_the_request_holds_the_write_lock(
    site: Client, sandbox: Sandbox, expired: Credential, way: str
) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("SQLite alone has one write lock for all")
    with pytest.raises(DatabaseBusy, match="before the transaction"):
        site.get(f"/fail/{way}/")
    assert sandbox.token_requests == []
    check_grant_is_alive(sandbox)


# Blocks


def test_new_pair_is_stored_when_an_inner_block_is_rolled_back(
    deferred: None, sandbox: Sandbox, expired: Credential
) -> None:
    with transaction.atomic(), pytest.raises(Failure), transaction.atomic():
        use("refresh")
        raise Failure
    check_grant_is_alive(sandbox)


def test_new_pair_is_stored_when_the_caller_rolls_back_without_autocommit(
    deferred: None, sandbox: Sandbox, expired: Credential
) -> None:
    transaction.set_autocommit(False)
    try:
        use("refresh")
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    check_grant_is_alive(sandbox)


# Test cases of a site


@pytest.mark.parametrize("way", WAYS)
def test_refresh_works_in_a_test_of_pytest(
    db: None, sandbox: Sandbox, expired: Credential, way: str
) -> None:
    use(way)
    check_grant_is_alive(sandbox)


@pytest.mark.parametrize("way", WAYS)
def test_refresh_works_in_a_test_of_pytest_with_transactions(
    transactional_db: None, sandbox: Sandbox, expired: Credential, way: str
) -> None:
    use(way)
    check_grant_is_alive(sandbox)


class Refreshes:
    """Tests as a site writes them."""

    sandbox: Sandbox

    def setUp(self: Any) -> None:
        self.sandbox = self.enterContext(Sandbox())
        self.enterContext(override_settings(**self.sandbox.settings))
        reply = self.sandbox.issue(ACCOUNT)
        Credential.objects.import_tokens(
            account=ACCOUNT,
            access_token=reply["access_token"],
            refresh_token=reply["refresh_token"],
            expires_at=timezone.now() - timedelta(seconds=1),
        )

    def test_pair_is_rotated(self) -> None:
        use("refresh")
        check_grant_is_alive(self.sandbox)

    def test_access_token_that_has_ended_is_refreshed(self) -> None:
        use("get_access_token")
        check_grant_is_alive(self.sandbox)

    def test_session_works(self) -> None:
        use("session")
        check_grant_is_alive(self.sandbox)

    def test_run_refreshes_what_is_due(self) -> None:
        use("refresh_due")
        check_grant_is_alive(self.sandbox)


class InTestCase(Refreshes, TestCase):
    """Each test in a transaction, and all of them in another."""

    def test_pair_of_the_other_tests_was_rolled_back(self) -> None:
        assert Credential.objects.get().generation == 1


class InTransactionTestCase(Refreshes, TransactionTestCase):
    """No transaction around a test."""
