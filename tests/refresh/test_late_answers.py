"""An answer that drips byte by byte: no caller waits beyond the lease, but it is still stored."""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from subprocess import PIPE
from typing import Any
from urllib.parse import parse_qs

import pytest
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import (
    OutcomeUnknown,
    ReauthorizationRequired,
    TemporarilyUnavailable,
)
from django_infusionsoft.keap import transport
from django_infusionsoft.models import ApplicationState, Credential
from django_infusionsoft.sandbox import Sandbox
from tests.keap.endpoints import ANSWER, REFUSED, listening, read_request
from tests.processes import started
from tests.support import row, threads

pytestmark = pytest.mark.django_db(transaction=True)

# A lease of two seconds.
SHORT_LEASE = {
    "INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS": 0.2,
    "INFUSIONSOFT_READ_TIMEOUT_SECONDS": 0.4,
}


class DrippingKeap:
    """Answers each refresh token once, byte by byte until ``finish()``; then rejects it.

    With ``drips_always``, every answer to a refresh token drips.
    """

    def __init__(self) -> None:
        self.presented: Counter[str] = Counter()
        self.drips_always = False
        self._should_continue = threading.Event()
        self._is_closed = False

    def finish(self) -> None:
        self._should_continue.set()

    def close(self) -> None:
        """Close the open requests without an answer."""
        self._is_closed = True
        self._should_continue.set()

    def serve(self, connection: socket.socket) -> None:
        (refresh_token,) = parse_qs(read_request(connection).decode())["refresh_token"]
        self.presented[refresh_token] += 1
        is_probe = refresh_token.startswith("django-infusionsoft")
        if is_probe or (self.presented[refresh_token] > 1 and not self.drips_always):
            connection.sendall(REFUSED)
            return
        head, rest = ANSWER.split(b"\r\n", 1)
        connection.sendall(head + b"\r\nX: ")
        while not self._should_continue.wait(0.05):
            connection.sendall(b"x")
        if not self._is_closed:
            connection.sendall(b"\r\n" + rest)


@pytest.fixture
def keap(sandbox: Sandbox) -> Iterator[DrippingKeap]:
    """Replace the token endpoint of the sandbox, which has the accounts."""
    endpoint = DrippingKeap()
    with listening(endpoint.serve) as port:
        url = f"http://127.0.0.1:{port}/token"
        with override_settings(INFUSIONSOFT_TOKEN_URL=url, **SHORT_LEASE):
            yield endpoint
        endpoint.close()


def end_delays() -> None:
    """End every delay."""
    past = timezone.now() - timedelta(seconds=1)
    Credential.objects.filter(refresh_at__isnull=False).update(refresh_at=past)
    ApplicationState.objects.update(probe_at=past)


def wait_until(condition: Callable[[], object]) -> None:
    ends_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def kinds(credential: Credential) -> str:
    return " ".join(event.kind for event in credential.events.order_by("pk"))


def test_caller_gets_an_error_when_the_lease_expires(
    keap: DrippingKeap, expired: Credential
) -> None:
    started_at = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        expired.get_access_token()
    assert time.monotonic() - started_at < 2.5
    after = row(expired)
    assert (after.unanswered_attempts, after.lease_until) == (1, None)


def test_run_ends_when_the_lease_expires(keap: DrippingKeap, expired: Credential) -> None:
    started_at = time.monotonic()
    assert Credential.objects.refresh_due().as_dict()["unknown"] == 1
    assert time.monotonic() - started_at < 4


def test_process_exits_while_an_answer_drips(
    keap: DrippingKeap, sandbox: Sandbox, expired: Credential, database_url: str
) -> None:
    settings = {**sandbox.settings, "INFUSIONSOFT_TOKEN_URL": conf.TOKEN_URL, **SHORT_LEASE}
    with started(
        "-m",
        "tests.system.interrupted_process",
        "refresh",
        database_url=database_url,
        settings=settings,
        stdout=PIPE,
    ) as process:
        assert process.stdout
        assert process.stdout.readline().strip() == "OutcomeUnknown"
        # WNOWAIT: the process can still be waited for, so its ID is not reused.
        state = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert state
        assert state.si_code == os.CLD_EXITED  # not killed by its alarm


@pytest.mark.parametrize("has_spool", [True, False])
def test_late_answer_is_stored(keap: DrippingKeap, expired: Credential, has_spool: bool) -> None:
    with override_settings(**{} if has_spool else {"INFUSIONSOFT_SPOOL_DIR": ""}):
        with pytest.raises(OutcomeUnknown):
            expired.refresh()
        keap.finish()
        wait_until(lambda: kinds(expired) == "imported refresh_failed refreshed")
    after = row(expired)
    assert (after.refresh_token, after.generation) == ("new-refresh", 2)
    assert (after.status, after.failures, after.unanswered_attempts) == ("connected", 0, 0)


def test_late_answer_restores_the_grant_when_the_repeat_was_rejected(
    keap: DrippingKeap, expired: Credential
) -> None:
    presented = expired.refresh_token
    with pytest.raises(OutcomeUnknown):
        expired.refresh()
    end_delays()
    assert Credential.objects.refresh_due().as_dict()["rejected"] == 1
    assert row(expired).reason == "rotation_lost"
    keap.finish()
    wait_until(lambda: kinds(expired).endswith("reauthorization_required refreshed"))
    assert (row(expired).status, row(expired).refresh_token) == ("connected", "new-refresh")
    assert keap.presented[presented] == 2


def test_late_answer_is_dropped_when_the_account_was_reconnected(
    keap: DrippingKeap, sandbox: Sandbox, expired: Credential
) -> None:
    with pytest.raises(OutcomeUnknown):
        expired.refresh()
    again = sandbox.issue("ab123")
    Credential.objects.import_tokens(
        account="ab123",
        access_token=again["access_token"],
        refresh_token=again["refresh_token"],
        expires_at=timezone.now() + timedelta(hours=1),
    )
    keap.finish()
    wait_until(lambda: kinds(expired).endswith("late_reply_dropped"))
    assert row(expired).refresh_token == again["refresh_token"]


def test_refresh_token_is_presented_at_most_twice_when_every_answer_drips(
    keap: DrippingKeap, expired: Credential
) -> None:
    presented, keap.drips_always = expired.refresh_token, True
    with pytest.raises(OutcomeUnknown):
        expired.refresh()
    for expected in ("unknown", "rejected"):
        end_delays()
        assert Credential.objects.refresh_due().as_dict()[expected] == 1
    assert row(expired).reason == "unanswered"
    with pytest.raises(ReauthorizationRequired):
        row(expired).get_access_token()
    assert keap.presented[presented] == 2


def test_nothing_is_sent_when_the_name_server_answers_after_the_lease_has_expired(
    keap: DrippingKeap, expired: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, may_answer = socket.getaddrinfo, threading.Event()

    def answer_late(*args: Any, **kwargs: Any) -> Any:
        may_answer.wait(20)
        return look_up(*args, **kwargs)

    monkeypatch.setattr(transport, "MAX_AGE_SECONDS", -1)
    monkeypatch.setattr(socket, "getaddrinfo", answer_late)
    with pytest.raises(TemporarilyUnavailable, match="nothing was sent"):
        expired.refresh()
    may_answer.set()
    # The abandoned thread ends.
    wait_until(lambda: all(each.name != "infusionsoft" for each in threading.enumerate()))
    assert not keap.presented
    after = row(expired)
    assert (after.unanswered_attempts, after.lease_until) == (0, None)


def test_valid_access_token_is_returned_while_an_answer_drips(
    keap: DrippingKeap, connect: Callable[..., Credential]
) -> None:
    credential = connect(seconds_left=200)
    issued_at = timezone.now() - timedelta(hours=23)
    Credential.objects.update(issued_at=issued_at, refresh_at=timezone.now())
    assert row(credential).get_access_token() == credential.access_token


# The caller is interrupted


class Interrupted(Exception):
    """Raised by a signal handler, as Celery's soft time limit is."""


# With a direct call instead of a thread, the exception would discard the answer.
def test_pair_is_stored_when_a_signal_interrupts_the_caller_while_keap_answers(
    sandbox: Sandbox, expired: Credential
) -> None:
    gate, was_interrupted = sandbox.hold("after"), threading.Event()
    main = threading.get_ident()

    def raise_interrupted(*args: Any) -> None:
        was_interrupted.set()
        raise Interrupted

    def interrupt() -> None:
        gate.wait_until_processed()
        signal.pthread_kill(main, signal.SIGUSR1)
        was_interrupted.wait(10)
        gate.release()

    before = signal.signal(signal.SIGUSR1, raise_interrupted)
    try:
        with threads(1) as start:
            interrupting = start(interrupt)
            with pytest.raises(Interrupted):
                expired.get_access_token()
            interrupting.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    (grant,) = sandbox.live_grants
    assert row(expired).refresh_token == grant.refresh_token
    assert kinds(expired) == "imported refreshed"
