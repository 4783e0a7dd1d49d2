"""Database connections that a refresh opens inside a caller's transaction."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.core import mail
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.signals import connection_created
from django.test import override_settings

from django_infusionsoft import signals
from django_infusionsoft.exceptions import (
    ClientRejected,
    DatabaseBusy,
    ReauthorizationRequired,
    RefreshInProgress,
)
from django_infusionsoft.models import Credential
from django_infusionsoft.refresh import leases
from django_infusionsoft.sandbox import Sandbox
from django_infusionsoft.storage import database
from tests.mails import mailing_by, wait_for_mails
from tests.support import receiver, row, threads

WRONG = {"INFUSIONSOFT_CLIENT_SECRET": "wrong"}


class Opened:
    """The connections that one thread opens or lets others open, and the times."""

    def __init__(self) -> None:
        self.thread: int | None = threading.get_ident()
        self.connections: list[Any] = []
        self.at: list[float] = []

    def __call__(self, *, connection: Any, **kwargs: Any) -> None:
        is_second = threading.current_thread().name == database.BEGIN_THREAD
        if is_second or threading.get_ident() == self.thread:
            self.connections.append(connection)
            self.at.append(time.monotonic())

    @property
    def are_closed(self) -> bool:
        return all(each.connection is None for each in self.connections)


@pytest.fixture
def opened(deferred: None) -> Iterator[Opened]:
    counter = Opened()
    connection_created.connect(counter)
    yield counter
    connection_created.disconnect(counter)


@pytest.fixture
def in_atomic(opened: Opened) -> Callable[[Callable[[], Any]], Any]:
    """Call a function inside a transaction; the transaction's own connection is not counted."""

    def call(function: Callable[[], Any]) -> Any:
        opened.thread = None
        callers_connection: Any = connections["default"]
        callers_connection.ensure_connection()  # this sets the mode; as `deferred`, in any thread
        callers_connection.transaction_mode = "DEFERRED"
        with transaction.atomic():
            Group.objects.count()
            opened.thread = threading.get_ident()
            return function()

    return call


InAtomic = Callable[[Callable[[], Any]], Any]


def becomes_true(condition: Callable[[], bool], *, seconds: float) -> bool:
    ends_at = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends_at:
        time.sleep(0.01)
    return condition()


# How many


@pytest.mark.parametrize("way", ["refresh", "get_access_token"])
def test_refresh_opens_two_connections(
    in_atomic: InAtomic, opened: Opened, expired: Credential, way: str
) -> None:
    in_atomic(getattr(expired, way))
    assert row(expired).generation == 2
    assert len(opened.connections) == 2
    assert opened.are_closed


def test_session_opens_two_connections_when_the_access_token_is_rejected(
    in_atomic: InAtomic, opened: Opened, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke_access_tokens("ab123")
    with credential.session() as session:
        response = in_atomic(lambda: session.get("v2/contacts"))
    assert response.status_code == 200
    assert len(opened.connections) == 2


def test_lost_account_opens_two_connections_with_its_mail(
    in_atomic: InAtomic, opened: Opened, sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.revoke("ab123")
    with (
        mailing_by(),
        override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"]),
    ):
        with pytest.raises(ReauthorizationRequired):
            in_atomic(expired.get_access_token)
        wait_for_mails()  # the thread that sends it has a connection of its own
    assert len(mail.outbox) == 1
    assert row(expired).is_alerted
    assert len(opened.connections) == 2


def test_no_connection_is_opened_when_there_is_no_transaction(
    opened: Opened, credential: Credential
) -> None:
    credential.refresh()
    assert opened.connections == []


# During a call to Keap


def test_no_connection_is_held_while_keap_is_asked(
    in_atomic: InAtomic, opened: Opened, sandbox: Sandbox, expired: Credential
) -> None:
    gate = sandbox.hold("after", endpoint="refresh")
    with threads(1) as start:
        asking = start(lambda: in_atomic(expired.refresh))
        gate.wait_until_processed()
        assert len(opened.connections) == 1
        assert opened.are_closed
        gate.release()
        asking.result()


def test_no_connection_is_held_while_keap_is_probed(
    in_atomic: InAtomic, opened: Opened, sandbox: Sandbox, expired: Credential
) -> None:
    attempt, probe = (sandbox.hold("after", endpoint="refresh") for _ in range(2))
    with override_settings(**WRONG), threads(1) as start:
        asking = start(lambda: in_atomic(expired.refresh))
        attempt.release()
        probe.wait_until_processed()
        assert len(opened.connections) == 2
        assert opened.are_closed
        probe.release()
        with pytest.raises(ClientRejected):
            asking.result()


# While waiting for another refresh


def test_waiting_caller_checks_once_a_second_and_a_last_time_at_the_end(
    in_atomic: InAtomic, opened: Opened, expired: Credential
) -> None:
    assert leases.claim(row(expired))
    started = time.monotonic()
    with override_settings(INFUSIONSOFT_WAIT_SECONDS=2.5), pytest.raises(RefreshInProgress):
        in_atomic(expired.get_access_token)
    assert time.monotonic() - started >= 2.5
    intervals = [later - earlier for earlier, later in zip(opened.at, opened.at[1:], strict=False)]
    assert len(intervals) in (1, 2)
    assert min(intervals) >= 1


def test_waiting_caller_holds_no_connection_and_continues_when_a_thread_has_refreshed(
    in_atomic: InAtomic,
    opened: Opened,
    sandbox: Sandbox,
    expired: Credential,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_infusionsoft.refresh.single.POLL_SECONDS", 30)
    gate = sandbox.hold("after", endpoint="refresh")
    with threads(2) as start:
        refreshing = start(row(expired).refresh)
        gate.wait_until_processed()
        waiting = start(lambda: in_atomic(row(expired).get_access_token))
        assert becomes_true(lambda: bool(opened.connections) and opened.are_closed, seconds=20)
        gate.release()
        refreshing.result()
        assert waiting.result(timeout=20) == row(expired).access_token


# The caller's connection


def test_receivers_write_over_the_callers_connection(
    in_atomic: InAtomic, opened: Opened, expired: Credential
) -> None:
    used: list[Any] = []
    with receiver(signals.credential_refreshed, lambda **_: used.append(connections["default"])):
        in_atomic(expired.refresh)
    assert used == [connections["default"]]


# No connection is available


@pytest.fixture
def pool_of_one(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A connection pool of one, whose connection is in use."""
    if connection.vendor != "postgresql":
        pytest.skip("Django pools connections of PostgreSQL only")
    pytest.importorskip("psycopg_pool", reason="psycopg_pool is not installed here")
    Group.objects.count()  # before the settings name a pool
    one = {"pool": {"min_size": 1, "max_size": 1, "timeout": 20}}
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "OPTIONS", one)
        pooled: Any = connections.create_connection("default")
        try:
            with closing(pooled), pooled.cursor():
                yield
        finally:
            pooled.close_pool()


def test_nothing_is_sent_when_the_pool_is_exhausted(
    sandbox: Sandbox, expired: Credential, pool_of_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "CONNECTION_TIMEOUT_SECONDS", 0.2)
    with transaction.atomic():
        with pytest.raises(DatabaseBusy, match=r"No database connection is available.*max_size"):
            expired.refresh()
        assert Group.objects.count() == 0  # the transaction can still be used
    assert sandbox.token_requests == []
    assert row(expired).lease_until is None


def test_pair_is_stored_when_no_connection_was_free_at_first(
    opened: Opened, sandbox: Sandbox, expired: Credential
) -> None:
    def refuse(**kwargs: Any) -> None:
        if len(opened.connections) == 2:
            raise OperationalError("too many clients already")

    connection_created.connect(refuse)
    transaction.set_autocommit(False)
    callers_connection = connection.connection
    try:
        expired.refresh()
        assert connection.connection is callers_connection
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
        connection_created.disconnect(refuse)
    (grant,) = sandbox.live_grants
    assert row(expired).refresh_token == grant.refresh_token
