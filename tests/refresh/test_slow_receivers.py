"""Slow receivers and mail servers delay no store, no lease and no reader."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.mail.backends.base import BaseEmailBackend
from django.test import override_settings

from django_infusionsoft import signals
from django_infusionsoft.exceptions import ClientRejected, ReauthorizationRequired
from django_infusionsoft.keap.oauth import TokenPair
from django_infusionsoft.models import Credential
from django_infusionsoft.refresh.sending import spool_key_of
from django_infusionsoft.refresh.spool import save
from django_infusionsoft.sandbox import Sandbox
from tests.mails import mailing_by, wait_for_mails
from tests.support import end_leases, keap_with, receiver, row, run, threads

pytestmark = pytest.mark.django_db(transaction=True)

ACCOUNTS = tuple(f"ab{number}" for number in range(100, 120))
Due = Callable[..., Credential]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with keap_with((*ACCOUNTS, "ab123", "cd456")) as running:
        yield running


@pytest.fixture
def batch(due: Due, monkeypatch: pytest.MonkeyPatch) -> list[Credential]:
    """Due credentials of a run that sends its signals often."""
    monkeypatch.setattr("django_infusionsoft.refresh.sweep.SIGNALS_WAIT_SECONDS", 0.01)
    return [due(account) for account in ACCOUNTS]


def leased() -> int:
    return Credential.objects.filter(lease_until__isnull=False).count()


@override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=4)
def test_no_lease_is_held_and_nothing_is_sent_while_receivers_run(
    sandbox: Sandbox, batch: list[Credential], spool: Path
) -> None:
    held: list[tuple[int, int]] = []
    sent: list[int] = []

    def look(**_: Any) -> None:
        before = len(sandbox.token_requests)
        time.sleep(0.03)
        held.append((leased(), len(list(spool.iterdir()))))
        sent.append(len(sandbox.token_requests) - before)

    with receiver(signals.credential_refreshed, look):
        assert run() == {"refreshed": len(batch)}
    assert held == [(0, 0)] * len(batch)
    assert sent == [0] * len(batch)


@override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=2)
def test_receivers_run_several_times_in_a_long_run(batch: list[Credential]) -> None:
    stored: list[int] = []

    def count(**_: Any) -> None:
        stored.append(Credential.objects.filter(generation=2).count())

    with receiver(signals.credential_refreshed, count):
        run()
    assert len(set(stored)) > 1


@override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=4)
def test_no_refresh_token_is_presented_twice_when_a_receiver_blocks_beyond_a_lease(
    sandbox: Sandbox, batch: list[Credential], tmp_path: Path
) -> None:
    blocked: list[bool] = []

    def block(**_: Any) -> None:
        if not blocked:
            blocked.append(True)
            end_leases()
            with threads(1) as start, override_settings(INFUSIONSOFT_SPOOL_DIR=tmp_path / "other"):
                start(run).result()  # on another machine

    with receiver(signals.credential_refreshed, block):
        run()
    assert len(sandbox.token_requests) == len(batch)
    assert not Credential.objects.exclude(generation=2).exists()


def test_reader_is_served_while_a_receiver_of_another_thread_blocks(
    sandbox: Sandbox, connect: Callable[..., Credential]
) -> None:
    expired, is_over = connect("ab123", seconds_left=-1), threading.Event()
    called = threading.Event()

    def block(**_: Any) -> None:
        called.set()
        assert is_over.wait(30)

    with receiver(signals.credential_refreshed, block), threads(2) as start:
        slow = start(row(expired).get_access_token)
        try:
            assert called.wait(30)
            served = start(expired.get_access_token).result(timeout=30)
            assert not slow.done()
        finally:
            is_over.set()
    assert served == slow.result() == row(expired).access_token


def test_lease_is_released_before_a_receiver_hears_that_the_client_is_rejected(
    sandbox: Sandbox, connect: Callable[..., Credential]
) -> None:
    credential, held = connect("ab123", seconds_left=-1), []
    with (
        override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"),
        receiver(signals.application_rejected, lambda **_: held.append(leased())),
        pytest.raises(ClientRejected),
    ):
        credential.get_access_token()
    assert held == [0]


def test_pairs_in_the_spool_are_stored_before_receivers_run(
    connect: Callable[..., Credential], spool: Path
) -> None:
    for account in ("ab123", "cd456"):
        pair = TokenPair(f"access-{account}", f"refresh-{account}", 3600, account)
        save(spool_key_of(connect(account)), pair).fsync()
    waiting: list[int] = []
    with receiver(
        signals.credential_refreshed, lambda **_: waiting.append(len(list(spool.iterdir())))
    ):
        assert run() == {"refreshed": 2}
    assert waiting == [0, 0]


def test_other_receivers_run_when_one_is_interrupted(batch: list[Credential]) -> None:
    called: list[str] = []

    def interrupt(credential: Credential, **_: Any) -> None:
        called.append(str(credential))
        if len(called) == 3:
            raise KeyboardInterrupt

    with receiver(signals.credential_refreshed, interrupt), pytest.raises(KeyboardInterrupt):
        run()
    done = Credential.objects.filter(generation=2)
    assert set(called) == {each.account for each in done}
    assert leased() == 0


class HangingBackend(BaseEmailBackend):
    """A mail server that does not reply until the test says so."""

    is_asked = threading.Event()
    may_reply = threading.Event()

    def send_messages(self, messages: Any) -> int:
        self.is_asked.set()
        assert self.may_reply.wait(30)
        return len(messages)


@override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"])
@pytest.mark.parametrize("way", ["get_access_token", "session"])
def test_caller_does_not_wait_for_the_mail_server(
    sandbox: Sandbox, connect: Callable[..., Credential], way: str
) -> None:
    expired = connect("ab123", seconds_left=-1)
    sandbox.revoke("ab123")
    HangingBackend.is_asked.clear()
    HangingBackend.may_reply.clear()
    with mailing_by(f"{__name__}.HangingBackend"):
        try:
            with pytest.raises(ReauthorizationRequired):
                if way == "session":
                    expired.session().get("v2/contacts")
                else:
                    expired.get_access_token()
            assert HangingBackend.is_asked.wait(30)
            assert not row(expired).is_alerted
        finally:
            HangingBackend.may_reply.set()
        wait_for_mails()
    assert row(expired).is_alerted
