"""A pair comes in by the will of a person, and wins over what is there."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, InterfaceError, connection, transaction
from django.utils import timezone

from django_infusionsoft import leases, signals
from django_infusionsoft.models import Application, Credential, CredentialEvent
from django_infusionsoft.oauth import TokenPair
from django_infusionsoft.sandbox import Sandbox
from tests.support import received, threads

Connect = Callable[..., Credential]


def pair(number: int = 1, *, account: str | None = "ab123") -> TokenPair:
    return TokenPair(f"access-{number}", f"refresh-{number}", 86_400, account)


def connected(number: int = 1, *, account: str | None = "ab123", **given: Any) -> Credential:
    return Credential.objects.connect(
        pair(number, account=account), application=given.pop("application", None), **given
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


def test_new_account_gets_a_row_of_the_first_generation(db: None) -> None:
    credential = connected()
    stored = row(credential)
    assert (stored.account, stored.access_token, stored.refresh_token, stored.generation) == (
        "ab123",
        "access-1",
        "refresh-1",
        1,
    )
    assert (stored.status, stored.application, stored.lease_until) == ("connected", None, None)


def test_times_of_a_new_credential_count_from_now(db: None) -> None:
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


def test_connection_is_told_by_event_and_signal(user: User) -> None:
    with received(signals.credential_connected) as calls:
        credential = connected(user=user)
    (event,) = credential.events.all()
    assert (event.kind, event.user, event.generation) == ("connected", user, 1)
    (call,) = calls
    assert (call["credential"], call["created"], call["user"]) == (credential, True, user)
    assert call["sender"] is Credential


def test_user_who_connects_is_recorded(user: User) -> None:
    assert row(connected(user=user)).authorized_by == user


def test_no_user_is_recorded_when_the_next_one_is_not_known(user: User) -> None:
    connected(user=user)
    again = connected(2)
    assert row(again).authorized_by is None
    assert again.events.get(kind="reconnected").user is None


@pytest.mark.parametrize("error", [IntegrityError("full"), InterfaceError("gone")])
def test_pair_is_stored_when_the_event_cannot_be_written(
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


def test_pair_is_stored_when_a_receiver_raises(db: None) -> None:
    def receiver(**kwargs: Any) -> None:
        raise RuntimeError("mine")

    signals.credential_connected.connect(receiver)
    try:
        credential = connected()
    finally:
        signals.credential_connected.disconnect(receiver)
    assert row(credential).access_token == "access-1"


# The same account again


def test_known_account_takes_the_pair_into_its_row(db: None) -> None:
    first = connected()
    with received(signals.credential_connected) as calls:
        again = connected(2)
    assert (again.pk, again.generation, again.access_token) == (first.pk, 2, "access-2")
    assert calls[0]["created"] is False
    assert kinds(again) == ["connected", "reconnected"]


def test_row_forgets_its_troubles_when_a_person_connects_again(db: None) -> None:
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


def test_names_stay_when_a_person_connects_again(db: None) -> None:
    first = connected()
    Credential.objects.filter(pk=first.pk).update(account_name="Acme", keap_user="ana@x.test")
    stored = row(connected(2))
    assert (stored.account_name, stored.keap_user) == ("Acme", "ana@x.test")


def test_lease_of_a_refresh_under_way_ends_when_a_person_connects_again(db: None) -> None:
    first = connected()
    claimed = leases.claim(first)
    assert claimed is not None
    again = connected(2)
    assert not leases.held(first, claimed.lease.id, first.generation).exists()
    assert leases.claim(again) is not None


def test_instance_that_was_loaded_before_takes_over_the_new_pair(
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


# Accounts that nobody knows


def test_account_that_is_not_told_gets_a_row_of_its_own_each_time(db: None) -> None:
    first, second = connected(account=None), connected(2, account=None)
    assert first.pk != second.pk
    assert row(first).access_token == "access-1"
    assert row(second).account is None


def test_account_that_is_not_told_leaves_the_known_ones_alone(db: None) -> None:
    known = connected()
    connected(2, account=None)
    assert row(known).access_token == "access-1"


# Connecting one credential again


def test_expected_row_takes_the_pair_when_neither_account_is_known(db: None) -> None:
    nameless = connected(account=None)
    again = connected(2, account=None, expected=nameless)
    assert (again.pk, again.generation, again.access_token) == (nameless.pk, 2, "access-2")


def test_expected_row_is_untouched_when_another_account_was_chosen(db: None) -> None:
    expected = connected()
    other = connected(2, account="cd456", expected=expected)
    assert (other.account, other.pk == expected.pk) == ("cd456", False)
    assert (row(expected).access_token, row(expected).generation) == ("access-1", 1)


def test_expected_row_is_untouched_when_the_account_is_not_told(db: None) -> None:
    expected = connected()
    assert connected(2, account=None, expected=expected).pk != expected.pk
    assert row(expected).access_token == "access-1"


def test_expected_row_is_untouched_when_the_account_is_told_at_last(db: None) -> None:
    nameless = connected(account=None)
    told = connected(2, expected=nameless)
    assert (told.account, told.pk == nameless.pk) == ("ab123", False)
    assert row(nameless).access_token == "access-1"


def test_expected_row_is_untouched_when_it_is_another_applications(
    application: Application,
) -> None:
    nameless = connected(account=None)
    other = connected(2, account=None, application=application, expected=nameless)
    assert (other.pk == nameless.pk, other.application) == (False, application)
    assert row(nameless).access_token == "access-1"


def test_pair_gets_a_new_row_when_the_expected_one_was_deleted(db: None) -> None:
    nameless = connected(account=None)
    gone = row(nameless)
    nameless.delete()
    assert connected(2, account=None, expected=gone).access_token == "access-2"
    assert Credential.objects.count() == 1


# Transactions


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_pair_is_kept_when_the_caller_rolls_back(
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

    def look(**kwargs: Any) -> None:
        with threads(1) as start:
            seen.append(start(lambda: Credential.objects.get().access_token).result())

    signals.credential_connected.connect(look)
    try:
        connected()
    finally:
        signals.credential_connected.disconnect(look)
    assert seen == ["access-1"]


def test_one_row_comes_of_many_callbacks_for_one_new_account(transactional_db: None) -> None:
    with received(signals.credential_connected) as calls, threads(8) as start:
        tasks = [start(lambda number=number: connected(number)) for number in range(8)]  # type: ignore[misc]
    credentials = [task.result() for task in tasks]
    stored = Credential.objects.get()
    assert {credential.pk for credential in credentials} == {stored.pk}
    assert stored.generation == 8
    assert sum(call["created"] for call in calls) == 1
    assert sorted(kinds(stored)) == ["connected", *["reconnected"] * 7]


def test_later_callback_wins_when_the_first_has_just_made_the_row(transactional_db: None) -> None:
    """The second finds no row, and its insert meets the first's, committed meanwhile."""

    def be_faster(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith("INSERT") and Credential._meta.db_table in sql and not others:
            others.append(None)
            with threads(1) as start:
                others[0] = start(lambda: connected(1)).result().pk
        return execute(sql, *rest)

    others: list[Any] = []
    if connection.vendor == "sqlite":
        pytest.skip("SQLite lets one writer in at a time")
    with connection.execute_wrapper(be_faster):
        credential = connected(2)
    assert (credential.pk, row(credential).access_token) == (others[0], "access-2")
    assert credential.generation == 2


# What the database itself refuses


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
def test_database_refuses_a_second_row_of_an_account(
    application: Application, has_application: bool
) -> None:
    own = application if has_application else None
    Credential.objects.create(**fields(application=own))
    with pytest.raises(IntegrityError), transaction.atomic():
        Credential.objects.create(**fields(application=own))


def test_database_takes_an_account_once_for_each_application(application: Application) -> None:
    other = Application.objects.create(name="Other", client_id="other", client_secret="secret")
    for own in (None, application, other):
        Credential.objects.create(**fields(application=own))
    assert Credential.objects.count() == 3


def test_database_takes_many_rows_whose_account_is_not_known(application: Application) -> None:
    for own in (None, None, application, application):
        Credential.objects.create(**fields(application=own, account=None))
    assert Credential.objects.count() == 4


def test_import_belongs_to_the_callers_transaction(deferred: None, sandbox: Sandbox) -> None:
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


def test_import_is_undone_when_the_caller_rolls_back(deferred: None, sandbox: Sandbox) -> None:
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
