"""Repeats: only where Keap cannot have acted twice, and never for longer than ``max_wait``."""

import io
import time
from datetime import timedelta
from typing import Any

import pytest
import requests
import responses
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.api import retries
from django_infusionsoft.exceptions import (
    ApiUnavailable,
    ConfigurationError,
    RateLimited,
    TemporarilyUnavailable,
    WriteUnconfirmed,
)
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults
from tests.api.scripted import answering, reply, then_close
from tests.keap.endpoints import NOWHERE

WRITES = ["POST", "PUT", "PATCH", "DELETE"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pauses that Keap does not ask for be short."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.01)


# Answers


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_read_is_repeated_after_an_outage(
    credential: Credential, method: str, status: int
) -> None:
    busy = reply(status, b"")
    with answering(busy, busy, otherwise=reply(body=b"")) as received:
        response = credential.session().request(method, "v2/contacts")
    assert response.status_code == 200
    assert [each.status_code for each in response.history] == [status, status]
    assert received.requests == [method] * 3
    assert set(received.connections) == {1}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", WRITES)
def test_write_is_repeated_after_a_429(credential: Credential, method: str) -> None:
    with answering(reply(429)) as received:
        response = credential.session().request(method, "v2/contacts", data=io.BytesIO(b"body"))
    assert response.status_code == 200
    assert received.bodies == [b"body"] * 2


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_write_is_not_repeated_after_an_outage(
    credential: Credential, method: str, status: int
) -> None:
    with answering(reply(status), reply(status)) as received, credential.session() as session:
        assert session.request(method, "v2/orders", json={}).status_code == status
        with pytest.raises(WriteUnconfirmed) as caught:
            session.call(method, "v2/orders", json={})
    assert caught.value.status == status
    assert received.requests == [method] * 2


def test_stream_that_cannot_be_read_again_is_sent_once(credential: Credential) -> None:
    with answering(reply(429)) as received, pytest.raises(RateLimited):
        credential.session().post("v2/contacts", data=iter([]))
    assert received.requests.count("POST") == 1


def test_answer_of_a_stream_is_repeated_and_its_error_is_read(credential: Credential) -> None:
    busy = reply(429, b'{"message": "Quota Exceeded"}', Retry_After="0")
    late = reply(429, b'{"message": "Quota Exceeded"}', Retry_After="60")
    session = credential.session()
    with answering(busy, reply(body=b"whole"), late) as received:
        with session.get("v2/contacts", stream=True) as response:
            assert response.raw.read() == b"whole"
        with pytest.raises(RateLimited, match="Quota Exceeded"):
            session.get("v2/contacts", stream=True)
    assert set(received.connections) == {1}


# max_wait


def test_silent_long_sleeps_do_not_happen(credential: Credential) -> None:
    started = time.monotonic()
    with (
        answering(reply(429, Retry_After="3600")) as received,
        pytest.raises(RateLimited) as caught,
    ):
        credential.session().get("v2/contacts")
    assert time.monotonic() - started < 5
    assert (caught.value.retry_after, caught.value.status) == (3600, 429)
    assert received.requests == ["GET"]


def test_repeat_waits_as_long_as_keap_asks(credential: Credential) -> None:
    started = time.monotonic()
    with answering(reply(503, Retry_After="1")):
        assert credential.session().get("v2/contacts").ok
    assert time.monotonic() - started >= 1


def test_day_of_an_exhausted_quota_is_not_waited_for(credential: Credential) -> None:
    midnight = timezone.now() + timedelta(hours=3)
    headers: dict[str, Any] = {
        "x_keap_product_quota_available": "0",
        "x_keap_product_quota_expiry_time": str(int(midnight.timestamp() * 1000)),
    }
    with answering(reply(429, **headers)) as received, pytest.raises(RateLimited) as caught:
        credential.session().get("v2/contacts")
    assert caught.value.retry_after == pytest.approx(3 * 3600, abs=60)
    assert received.requests == ["GET"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.throttled(), RateLimited),
        (faults.error_503(), ApiUnavailable),
        (faults.drop_after(), ApiUnavailable),
        (faults.latency(20), ApiUnavailable),
        (faults.drip(0.1), ApiUnavailable),
    ],
    ids=str,
)
def test_call_takes_no_longer_than_max_wait(
    sandbox: Sandbox, credential: Credential, fault: faults.Fault, error: type[Exception]
) -> None:
    sandbox.plan(fault, endpoint="api", times=None)
    started = time.monotonic()
    with pytest.raises(error):
        credential.session(max_wait=1).get("v2/contacts")
    assert time.monotonic() - started < 4


def test_refresh_is_a_part_of_the_wait(
    transactional_db: None, sandbox: Sandbox, expired: Credential
) -> None:
    gate = faults.Gate("before")
    sandbox.plan(faults.hold(gate), endpoint="token")
    started = time.monotonic()
    with pytest.raises(TemporarilyUnavailable):
        expired.session(max_wait=0.5).get("v2/contacts")
    assert time.monotonic() - started < 4
    gate.release()
    while Credential.objects.get().generation == expired.generation:
        assert time.monotonic() - started < 30, "The late reply was not stored."
        time.sleep(0.01)


@pytest.mark.usefixtures("quick")
def test_wait_of_the_settings_is_the_default(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.plan(faults.error_503(), endpoint="api", times=None)
    started = time.monotonic()
    with override_settings(INFUSIONSOFT_MAX_WAIT_SECONDS=0.6), pytest.raises(ApiUnavailable):
        credential.session().get("v2/contacts")
    assert time.monotonic() - started < 4
    with (
        override_settings(INFUSIONSOFT_MAX_WAIT_SECONDS=0),
        pytest.raises(ConfigurationError, match="MAX_WAIT"),
    ):
        credential.session().get("v2/contacts")


def test_nothing_is_sent_too_late_to_be_answered(credential: Credential) -> None:
    with answering() as received, pytest.raises(ApiUnavailable, match="Nothing was sent"):
        credential.session(max_wait=0).post("v2/contacts", json={})
    assert received.requests == []


# Connections


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("half", [None, then_close(reply(body=b"{}" * 9)[:-5])])
def test_read_is_repeated_when_the_connection_breaks(credential: Credential, half: Any) -> None:
    with answering(half) as received:
        assert credential.session().get("v2/contacts").json() == {}
    assert received.requests == ["GET"] * 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize("half", [None, then_close(reply(body=b"{}" * 9)[:-5])])
def test_retried_posts_do_not_happen_when_the_answer_is_lost(
    credential: Credential, method: str, half: Any
) -> None:
    with answering(half) as received, pytest.raises(WriteUnconfirmed, match=method) as caught:
        credential.session().request(method, "v2/orders", json={})
    assert received.requests == [method]
    assert not isinstance(caught.value, TemporarilyUnavailable)
    assert caught.value.status is None


def test_write_is_unconfirmed_when_its_answer_takes_too_long(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.latency_after(5), endpoint="api")
    with pytest.raises(WriteUnconfirmed):
        credential.session().call("POST", "v2/contacts", json={}, timeout=0.1)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("start", [b"", reply(body=b"{}")[:-1]])
def test_read_is_not_repeated_when_its_timeout_is_over(
    credential: Credential, start: bytes
) -> None:
    with answering(start) as received, pytest.raises(ApiUnavailable, match="ReadTimeout"):
        credential.session(response_timeout=0.1).get("v2/contacts", timeout=0.1)
    assert received.requests == ["GET"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_request_that_was_not_sent_is_temporarily_unavailable(
    credential: Credential, method: str
) -> None:
    with override_settings(INFUSIONSOFT_API_URL=NOWHERE), pytest.raises(ApiUnavailable):
        credential.session(max_wait=1).request(method, "v2/contacts")


@pytest.mark.usefixtures("quick")
def test_write_is_repeated_when_nothing_was_sent(
    sandbox: Sandbox, credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def unreachable_at_first(seconds: float) -> None:
        attempts.append(seconds)
        monkeypatch.delenv("http_proxy")

    monkeypatch.setenv("http_proxy", NOWHERE)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(time, "sleep", unreachable_at_first)
    session = credential.session()
    prepared = session.prepare_request(
        requests.Request("POST", "v2/contacts", json={"email_addresses": [{"email": "a@ex.test"}]})
    )
    assert session.send(prepared).status_code == 201
    assert len(attempts) == 1


def test_write_is_sent_once_when_keap_has_closed_the_idle_connection(
    credential: Credential,
) -> None:
    with answering(then_close(reply())) as received, credential.session() as session:
        assert session.get("v2/contacts").ok
        time.sleep(0.05)
        assert session.post("v2/contacts", json={}).ok
    assert received.requests == ["GET", "POST"]
    assert received.connections == [1, 2]


def test_error_of_a_mocked_transport_does_not_prove_that_nothing_was_sent(
    credential: Credential,
) -> None:
    with responses.RequestsMock() as mocked:
        mocked.post(
            "https://api.infusionsoft.com/crm/rest/v2/orders", body=requests.ConnectionError()
        )
        with (
            override_settings(INFUSIONSOFT_API_URL="https://api.infusionsoft.com/crm/rest/"),
            pytest.raises(WriteUnconfirmed),
        ):
            credential.session().post("v2/orders", json={})
        assert len(mocked.calls) == 1


# The pauses


def test_pauses_grow_up_to_a_limit_and_are_spread() -> None:
    longest = [max(retries.pause(number, {}) for _ in range(200)) for number in range(12)]
    assert longest[0] <= 0.5 < longest[1] <= 1 < longest[2] <= 2
    assert max(longest) <= retries.LONGEST_PAUSE_SECONDS
    assert len({retries.pause(3, {}) for _ in range(9)}) > 1
    assert retries.pause(5000, {}) <= retries.LONGEST_PAUSE_SECONDS


def test_pauses_are_spread_when_keap_asks_for_one() -> None:
    pauses = {retries.pause(0, {"Retry-After": "2"}) for _ in range(9)}
    assert len(pauses) > 1
    assert min(pauses) >= 2
