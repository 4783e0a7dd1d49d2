"""Refreshes inside a caller's transaction, in requests and in test cases."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, TestCase, TransactionTestCase, override_settings
from django.urls import path
from django.utils import timezone

from django_infusionsoft.exceptions import DatabaseBusy, LockedByCaller
from django_infusionsoft.keap.oauth import TokenPair
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox

ACCOUNT = "ab123"


class Failure(Exception):
    """Raised by the views after they have used the account."""


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
    """Use the account twice, as two independent parts of a site do."""
    Credential.objects.for_account(ACCOUNT).refresh()
    return HttpResponse(Credential.objects.for_account(ACCOUNT).get_access_token())


urlpatterns = [path("fail/<way>/", fail), path("use-two/", use_two)]

WAYS = ["refresh", "get_access_token", "session", "refresh_due"]


def check_grant_is_alive(sandbox: Sandbox) -> None:
    """Check that the refresh token of the row is valid, by using it."""
    (grant,) = sandbox.live_grants
    credential = Credential.objects.get()
    assert credential.refresh_token == grant.refresh_token
    credential.refresh()
    assert sandbox.replays == 0


# Requests


@pytest.fixture
def site(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Serve the views above, each in its own transaction."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    monkeypatch.setattr("django_infusionsoft.storage.database.LOCK_TIMEOUT_SECONDS", 1)
    return Client()


@pytest.mark.parametrize("way", WAYS)
@override_settings(ROOT_URLCONF=__name__)
def test_new_pair_is_stored_when_the_view_fails_after_the_refresh(
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
    """The request's transaction may still see the old row with the expired access token."""
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


# A default SQLite, which the caller's reads lock, too


@pytest.mark.parametrize("way", WAYS[:3])  # a run reads nothing over the request's connection
@override_settings(ROOT_URLCONF=__name__)
def test_nothing_is_sent_when_the_request_has_read_without_a_write_ahead_log(
    rollback_journal: None, site: Client, sandbox: Sandbox, expired: Credential, way: str
) -> None:
    with pytest.raises(LockedByCaller, match="before the transaction"):
        site.get(f"/fail/{way}/")
    assert sandbox.token_requests == []


def test_refresh_of_another_process_is_seen_when_the_caller_has_locked_the_database(
    rollback_journal: None, sandbox: Sandbox, expired: Credential
) -> None:
    Credential.objects.get().refresh()
    with transaction.atomic():
        assert Credential.objects.exists()
        assert expired.get_access_token() == Credential.objects.get().access_token
    assert len(sandbox.token_requests) == 1


def test_valid_access_token_is_returned_when_the_caller_has_locked_the_database(
    rollback_journal: None, sandbox: Sandbox, credential: Credential
) -> None:
    """Although it is due."""
    now = timezone.now()
    Credential.objects.update(
        issued_at=now - timedelta(days=1), refresh_at=now, expires_at=now + timedelta(seconds=50)
    )
    with transaction.atomic():
        found = Credential.objects.get()
        assert not found.has_fresh_access_token
        assert found.get_access_token() == credential.access_token
    assert sandbox.token_requests == []


def test_connecting_fails_at_once_when_the_caller_has_locked_the_database(
    rollback_journal: None, caplog: pytest.LogCaptureFixture
) -> None:
    pair = TokenPair(
        access_token="access", refresh_token="refresh", expires_in=60, account=ACCOUNT
    )
    with transaction.atomic(), pytest.raises(LockedByCaller):
        assert not Credential.objects.exists()
        Credential.objects.connect(pair, application=None)
    assert not Credential.objects.exists()


def test_import_belongs_to_the_transaction_that_has_locked_the_database(
    rollback_journal: None,
) -> None:
    with transaction.atomic():
        assert not Credential.objects.exists()
        Credential.objects.import_tokens(
            account=ACCOUNT,
            access_token="access",
            refresh_token="refresh",
            expires_at=timezone.now(),
        )
    assert Credential.objects.get().events.get().kind == "imported"


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


# A site's own tests


@pytest.mark.parametrize("way", WAYS)
def test_refresh_succeeds_in_a_pytest_test(
    db: None, sandbox: Sandbox, expired: Credential, way: str
) -> None:
    use(way)
    check_grant_is_alive(sandbox)


@pytest.mark.parametrize("way", WAYS)
def test_refresh_succeeds_in_a_pytest_test_with_transactions(
    transactional_db: None, sandbox: Sandbox, expired: Credential, way: str
) -> None:
    use(way)
    check_grant_is_alive(sandbox)


class Refreshes:
    """Tests as a site would write them."""

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

    def test_access_token_is_refreshed_when_it_has_expired(self) -> None:
        use("get_access_token")
        check_grant_is_alive(self.sandbox)

    def test_session_can_call_the_api(self) -> None:
        use("session")
        check_grant_is_alive(self.sandbox)

    def test_run_refreshes_what_is_due(self) -> None:
        use("refresh_due")
        check_grant_is_alive(self.sandbox)


class InTestCase(Refreshes, TestCase):
    """Each test runs in a transaction inside the transaction of the class."""

    def test_pair_of_the_other_tests_is_rolled_back(self) -> None:
        assert Credential.objects.get().generation == 1


class InTransactionTestCase(Refreshes, TransactionTestCase):
    """Tests run without a surrounding transaction."""
