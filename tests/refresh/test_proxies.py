"""Proxies between the app and Keap: a lost reply costs no more grants than without them."""

import json
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.keap.oauth import NO_TOKEN
from django_infusionsoft.models import ApplicationState, Credential
from tests.keap.endpoints import REFUSED, read_request, route_to_keap, without_proxies
from tests.support import run

pytestmark = pytest.mark.django_db

# Only for requests that get no reply: a slow machine must not lose another one.
SHORT = {"INFUSIONSOFT_READ_TIMEOUT_SECONDS": 0.2}
LONG = {"INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS": 30.0, "INFUSIONSOFT_READ_TIMEOUT_SECONDS": 10.0}


class Keap:
    """A token endpoint that uses up a refresh token before it loses the reply."""

    def __init__(self) -> None:
        self.used: list[str] = []
        self._over = threading.Event()
        self.answers_left = 0
        self.must_wait = False
        """Whether a connection without an answer stays open for a while."""

    def serve(self, connection: socket.socket) -> None:
        refresh_token = parse_qs(read_request(connection).decode())["refresh_token"][0]
        is_valid = refresh_token != NO_TOKEN and refresh_token not in self.used
        if refresh_token != NO_TOKEN:
            self.used.append(refresh_token)
        if self.answers_left <= 0:
            self._over.wait(10 if self.must_wait else 0)
            return
        self.answers_left -= is_valid
        connection.sendall(self._pair(refresh_token) if is_valid else REFUSED)

    def end(self) -> None:
        self._over.set()

    def _pair(self, refresh_token: str) -> bytes:
        pair = {
            "access_token": f"access-{refresh_token}",
            "refresh_token": f"next-{refresh_token}",
            "expires_in": 86_400,
        }
        body = json.dumps(pair).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.fixture
def keap() -> Iterator[Keap]:
    keap = Keap()
    yield keap
    keap.end()


@pytest.fixture
def route(
    request: pytest.FixtureRequest, keap: Keap, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    environment = without_proxies(monkeypatch)
    with (
        route_to_keap(request.param, keap.serve, environment, tmp_path),
        override_settings(**LONG),
    ):
        yield request.param


def connect_due(count: int) -> None:
    for number in range(count):
        Credential.objects.import_tokens(
            account=f"acc{number:02}",
            access_token=f"access-{number}",
            refresh_token=f"refresh-{number}",
            expires_at=timezone.now() - timedelta(seconds=1),
        )
    end_delays()


def end_delays() -> None:
    past = timezone.now() - timedelta(seconds=1)
    Credential.objects.filter(refresh_at__isnull=False).update(refresh_at=past)
    ApplicationState.objects.update(probe_at=past)


def run_during_outage() -> None:
    for _ in range(3):
        run()
        end_delays()


@pytest.mark.parametrize(
    ("route", "count", "must_wait"),
    [
        ("forwarding proxy", 60, False),
        ("forwarding proxy", 10, True),
        ("tunnel", 10, False),
        ("tunnel", 10, True),
    ],
    indirect=["route"],
)
def test_one_account_is_lost_when_keap_uses_up_tokens_without_a_reply(
    route: str, keap: Keap, count: int, must_wait: bool
) -> None:
    """Both if connections are closed and if they stay open."""
    keap.must_wait = must_wait
    connect_due(count)
    with override_settings(**SHORT if must_wait else LONG):
        run_during_outage()
    keap.answers_left = count
    run()
    (lost,) = Credential.objects.needs_reauthorization()
    assert (lost.reason, lost.unanswered_attempts) == ("rotation_lost", 1)
    assert keap.used.count(lost.refresh_token) == 2
    assert Credential.objects.filter(status="connected", generation=2).count() == count - 1
