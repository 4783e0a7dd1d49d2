"""New grants: a token pair connected by a user replaces the stored one."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, InterfaceError, connection, transaction
from django.utils import timezone

from django_infusionsoft import signals
from django_infusionsoft.keap.oauth import TokenPair
from django_infusionsoft.models import Application, Credential, CredentialEvent
from django_infusionsoft.refresh import leases
from django_infusionsoft.sandbox import Sandbox
from tests.support import received, threads

Connect = Callable[..., Credential]


def pair(number: int = 1, *, account: str | None = "ab123") -> TokenPair:
    return TokenPair(f"access-{number}", f"refresh-{number}", 86_400, account)


def connected(number: int = 1, *, account: str | None = "ab123", **options: Any) -> Credential:
    return Credential.objects.connect(
        pair(number, account=account), application=options.pop("application", None), **options
    )


def row(credential: Credential) -> Credential:
    return Credential.objects.get(pk=credential.pk)


def kinds(credential: Credential) -> list[str]:
    return [event.kind for event in credential.events.order_by("pk")]


@pytest.fixture
def application(db: None) -> Application:
    return Application.objects.create(name="First", client_id="first", client_secret="secret")


@pytest.fixture
def user(db: None) -> User:
    return User.objects.create(username="ana")


# A new account


def test_new_account_gets_a_row_with_generation_1(db: None) -> None:
    credential = connected()
    stored = row(credential)
    assert (stored.account, stored.access_token, stored.refresh_token, stored.generation) == (
        "ab123",
        "access-1",
        "refresh-1",
        1,
    )
    assert (stored.status, stored.application, stored.lease_until) == ("connected", None, None)


def test_times_of_a_new_credential_start_now(db: None) -> None:
    stored = row(connected())
    now = timezone.now()
    for moment in (stored.connected_at, stored.issued_at, stored.expires_at - timedelta(days=1)):
        assert abs(moment - now) < timedelta(seconds=5)
    assert now < (stored.refresh_at or now) < stored.expires_at


def test_returned_credential_can_be_used_without_a_query(
    application: Application, django_assert_num_queries: Any
) -> None:
    credential = connected(application=application)
    with django_assert_num_queries(0):
        assert credential.get_access_token() == "access-1"
        assert credential.client.client_id == "first"


def test_connection_writes_an_event_and_sends_a_signal(user: User) -> None:
    with received(signals.credential_connected) as calls:
        credential = connected(user=user)
    (event,) = credential.events.all()
    assert (event.kind, event.user, event.generation) == ("connected", user, 1)
    (call,) = calls
    assert (call["credential"], call["created"], call["user"]) == (credential, True, user)
    assert call["sender"] is Credential


def test_user_who_connects_is_recorded(user: User) -> None:
    assert row(connected(user=user)).authorized_by == user


def test_recorded_user_is_cleared_when_the_next_user_is_unknown(user: User) -> None:
    connected(user=user)
    again = connected(2)
    assert row(again).authorized_by is None
    assert again.events.get(kind="reconnected").user is None


@pytest.mark.parametrize("error", [IntegrityError("full"), InterfaceError("gone")])
def test_token_pair_is_stored_when_the_event_cannot_be_written(
    db: None, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if CredentialEvent._meta.db_table in sql:
            raise error
        return execute(sql, *rest)

    with connection.execute_wrapper(fail):
        credential = connected()
    assert row(credential).access_token == "access-1"
    assert "event_not_written" in caplog.text


def test_token_pair_is_stored_when_a_receiver_raises(db: None) -> None:
    def receiver(**kwargs: Any) -> None:
        raise RuntimeError("from the receiver")

    signals.credential_connected.connect(receiver)
    try:
        credential = connected()
    finally:
        signals.credential_connected.disconnect(receiver)
    assert row(credential).access_token == "access-1"


# A known account


def test_token_pair_of_a_known_account_is_stored_in_its_row(db: None) -> None:
    first = connected()
    with received(signals.credential_connected) as calls:
        again = connected(2)
    assert (again.pk, again.generation, again.access_token) == (first.pk, 2, "access-2")
    assert calls[0]["created"] is False
    assert kinds(again) == ["connected", "reconnected"]


def test_failures_are_cleared_when_the_account_is_reconnected(db: None) -> None:
    first = connected()
    Credential.objects.filter(pk=first.pk).update(
        status="reauthorization_required",
        reason="revoked",
        failures=3,
        unanswered_attempts=2,
        last_error="Keap refused",
        refresh_at=None,
    )
    stored = row(connected(2))
    assert (stored.status, stored.reason, stored.last_error) == ("connected", "", "")
    assert (stored.failures, stored.unanswered_attempts) == (0, 0)
    assert stored.refresh_at is not None


def test_names_are_kept_when_the_account_is_reconnected(db: None) -> None:
    first = connected()
    Credential.objects.filter(pk=first.pk).update(account_name="Acme", keap_user="ana@x.test")
    stored = row(connected(2))
    assert (stored.account_name, stored.keap_user) == ("Acme", "ana@x.test")


def test_lease_of_a_running_refresh_is_released_when_the_account_is_reconnected(db: None) -> None:
    first = connected()
    claimed = leases.claim(first)
    assert claimed is not None
    again = connected(2)
    assert not leases.held(first, claimed.lease.id, first.generation).exists()
    assert leases.claim(again) is not None


def test_instance_loaded_before_uses_the_new_token_pair(
    sandbox: Sandbox, expired: Credential
) -> None:
    connected(2)
    assert expired.get_access_token() == "access-2"
    assert sandbox.token_requests == []


def test_account_has_one_row_for_each_application(application: Application) -> None:
    rows = {connected().pk, connected(2, application=application).pk}
    assert len(rows) == 2
    assert connected(3).pk in rows
    assert connected(4, application=application).pk in rows
    assert Credential.objects.count() == 2


# Unidentified accounts


def test_unidentified_account_gets_a_new_row_each_time(db: None) -> None:
    first, second = connected(account=None), connected(2, account=None)
    assert first.pk != second.pk
    assert row(first).access_token == "access-1"
    assert row(second).account is None


def test_unidentified_account_does_not_change_known_accounts(db: None) -> None:
    known = connected()
    connected(2, account=None)
    assert row(known).access_token == "access-1"


# Reconnecting an expected credential


def test_expected_row_is_updated_when_neither_account_is_known(db: None) -> None:
    unidentified = connected(account=None)
    again = connected(2, account=None, expected=unidentified)
    assert (again.pk, again.generation, again.access_token) == (unidentified.pk, 2, "access-2")


def test_expected_row_is_unchanged_when_another_account_was_chosen(db: None) -> None:
    expected = connected()
    other = connected(2, account="cd456", expected=expected)
    assert (other.account, other.pk == expected.pk) == ("cd456", False)
    assert (row(expected).access_token, row(expected).generation) == ("access-1", 1)


def test_expected_row_is_unchanged_when_the_new_account_is_unidentified(db: None) -> None:
    expected = connected()
    assert connected(2, account=None, expected=expected).pk != expected.pk
    assert row(expected).access_token == "access-1"


def test_unidentified_expected_row_is_unchanged_when_the_new_account_is_known(db: None) -> None:
    unidentified = connected(account=None)
    identified = connected(2, expected=unidentified)
    assert (identified.account, identified.pk == unidentified.pk) == ("ab123", False)
    assert row(unidentified).access_token == "access-1"


def test_expected_row_is_unchanged_when_it_belongs_to_another_application(
    application: Application,
) -> None:
    unidentified = connected(account=None)
    other = connected(2, account=None, application=application, expected=unidentified)
    assert (other.pk == unidentified.pk, other.application) == (False, application)
    assert row(unidentified).access_token == "access-1"


def test_new_row_is_created_when_the_expected_one_was_deleted(db: None) -> None:
    unidentified = connected(account=None)
    deleted = row(unidentified)
    unidentified.delete()
    assert connected(2, account=None, expected=deleted).access_token == "access-2"
    assert Credential.objects.count() == 1


# Transactions


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_token_pair_is_kept_when_the_caller_rolls_back(
    deferred: None, known: bool, nested: bool
) -> None:
    if known:
        connected()
    with transaction.atomic():
        assert not User.objects.exists()
        with transaction.atomic() if nested else nullcontext():
            connected(2)
        transaction.set_rollback(True)
    stored = Credential.objects.get(account="ab123")
    assert (stored.access_token, stored.generation) == ("access-2", 2 if known else 1)
    assert kinds(stored)[-1] == ("reconnected" if known else "connected")


def test_signal_is_sent_after_the_commit(transactional_db: None) -> None:
    seen: list[str] = []

    def read_in_another_connection(**kwargs: Any) -> None:
        with threads(1) as start:
            seen.append(start(lambda: Credential.objects.get().access_token).result())

    signals.credential_connected.connect(read_in_another_connection)
    try:
        connected()
    finally:
        signals.credential_connected.disconnect(read_in_another_connection)
    assert seen == ["access-1"]


def test_concurrent_callbacks_for_a_new_account_create_one_row(transactional_db: None) -> None:
    with received(signals.credential_connected) as calls, threads(8) as start:
        tasks = [start(lambda number=number: connected(number)) for number in range(8)]  # type: ignore[misc]
    credentials = [task.result() for task in tasks]
    stored = Credential.objects.get()
    assert {credential.pk for credential in credentials} == {stored.pk}
    assert stored.generation == 8
    assert sum(call["created"] for call in calls) == 1
    assert sorted(kinds(stored)) == ["connected", *["reconnected"] * 7]


def test_later_callback_wins_when_the_first_has_just_created_the_row(
    transactional_db: None,
) -> None:
    """The second finds no row, and its insert conflicts with the first's, just committed."""

    def insert_first(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith("INSERT") and Credential._meta.db_table in sql and not others:
            others.append(None)
            with threads(1) as start:
                others[0] = start(lambda: connected(1)).result().pk
        return execute(sql, *rest)

    others: list[Any] = []
    if connection.vendor == "sqlite":
        pytest.skip("SQLite lets one writer in at a time")
    with connection.execute_wrapper(insert_first):
        credential = connected(2)
    assert (credential.pk, row(credential).access_token) == (others[0], "access-2")
    assert credential.generation == 2


# Constraints of the database


def fields(**changes: Any) -> dict[str, Any]:
    now = timezone.now()
    return {
        "account": "ab123",
        "access_token": "access",
        "refresh_token": "refresh",
        "issued_at": now,
        "expires_at": now,
        "connected_at": now,
    } | changes


@pytest.mark.parametrize("has_application", [False, True])
def test_database_rejects_a_second_row_for_an_account(
    application: Application, has_application: bool
) -> None:
    account_application = application if has_application else None
    Credential.objects.create(**fields(application=account_application))
    with pytest.raises(IntegrityError), transaction.atomic():
        Credential.objects.create(**fields(application=account_application))


def test_database_accepts_an_account_once_for_each_application(application: Application) -> None:
    other = Application.objects.create(name="Other", client_id="other", client_secret="secret")
    for account_application in (None, application, other):
        Credential.objects.create(**fields(application=account_application))
    assert Credential.objects.count() == 3


def test_database_accepts_many_unidentified_accounts(application: Application) -> None:
    for account_application in (None, None, application, application):
        Credential.objects.create(**fields(application=account_application, account=None))
    assert Credential.objects.count() == 4


def test_import_runs_in_the_callers_transaction(deferred: None, sandbox: Sandbox) -> None:
    reply = sandbox.issue("ab123")
    with transaction.atomic():
        application = Application.objects.create(name="new", client_id="new", client_secret="new")
        credential = Credential.objects.import_tokens(
            account="ab123",
            access_token=reply["access_token"],
            refresh_token=reply["refresh_token"],
            expires_at=timezone.now(),
            application=application,
        )
    assert [event.kind for event in credential.events.all()] == ["imported"]


def test_import_is_rolled_back_with_the_callers_transaction(
    deferred: None, sandbox: Sandbox
) -> None:
    reply = sandbox.issue("ab123")
    with transaction.atomic():
        Credential.objects.import_tokens(
            account="ab123",
            access_token=reply["access_token"],
            refresh_token=reply["refresh_token"],
            expires_at=timezone.now(),
        )
        transaction.set_rollback(True)
    assert not Credential.objects.exists()
