"""Faults on demand: planned, requested by a header, or held at a gate."""

import http.client
import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import requests

from django_infusionsoft.sandbox import Fault, Gate, Sandbox, faults

CLIENT = ("sandbox-client", "sandbox-secret")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def refresh_token(sandbox: Sandbox) -> str:
    return str(sandbox.issue("ab123")["refresh_token"])


@pytest.fixture
def in_background() -> Iterator[Callable[..., "Future[requests.Response]"]]:
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit


def refresh(
    sandbox: Sandbox, refresh_token: str, *, fault: str = "", timeout: float = 10
) -> requests.Response:
    return requests.post(
        sandbox.token_url,
        data={"grant_type": "refresh_token", "refresh_token": refresh_token},
        auth=CLIENT,
        headers={"X-Sandbox-Fault": fault} if fault else {},
        timeout=timeout,
    )


def is_used(sandbox: Sandbox, refresh_token: str) -> bool:
    return refresh(sandbox, refresh_token).status_code == 400


# Replies in place of the real one


@pytest.mark.parametrize(
    ("fault", "status", "content_type", "body"),
    [
        (faults.throttled(), 429, "application/json", '"code":"429"'),
        (faults.spike(), 429, "application/json", "policies.ratelimit.SpikeArrestViolation"),
        (faults.error_500(), 500, "application/json", '"fault"'),
        (faults.error_502(), 502, "text/html; charset=utf-8", "<h1>Bad Gateway</h1>"),
        (faults.error_503(), 503, "application/json", '"fault"'),
        (faults.error_596(), 596, "text/xml", "596"),
        (faults.html(), 200, "text/html; charset=utf-8", "<html>"),
        (faults.error_200(), 200, "application/json;charset=UTF-8", '"error"'),
    ],
    ids=str,
)
def test_fault_replies_in_place_of_the_endpoint_and_uses_no_refresh_token(
    sandbox: Sandbox,
    refresh_token: str,
    fault: Fault,
    status: int,
    content_type: str,
    body: str,
) -> None:
    sandbox.plan(fault)
    reply = refresh(sandbox, refresh_token)
    assert reply.status_code == status
    assert reply.headers["Content-Type"] == content_type
    assert body in reply.text
    assert not is_used(sandbox, refresh_token)


@pytest.mark.parametrize("status", [200, 400])
def test_empty_has_no_body(sandbox: Sandbox, refresh_token: str, status: int) -> None:
    sandbox.plan(faults.empty(status))
    reply = refresh(sandbox, refresh_token)
    assert (reply.status_code, reply.content) == (status, b"")


@pytest.mark.parametrize("make", [faults.throttled, faults.spike, faults.error_503])
def test_retry_after_is_sent_when_given(
    sandbox: Sandbox, refresh_token: str, make: Callable[..., Fault]
) -> None:
    sandbox.plan(make(7))
    assert refresh(sandbox, refresh_token).headers["Retry-After"] == "7"
    sandbox.plan(make())
    assert "Retry-After" not in refresh(sandbox, refresh_token).headers


def test_answer_sends_any_status_headers_and_body(sandbox: Sandbox, refresh_token: str) -> None:
    body = b"\xef\xbb\xbf{}"
    sandbox.plan(faults.answer(418, body, headers={"X-Tea": "pot"}))
    reply = refresh(sandbox, refresh_token)
    assert (reply.status_code, reply.content, reply.headers["X-Tea"]) == (418, body, "pot")


def test_answer_sends_a_dict_as_json(sandbox: Sandbox, refresh_token: str) -> None:
    sandbox.plan(faults.answer(200, {"access_token": None}))
    assert refresh(sandbox, refresh_token).json() == {"access_token": None}


def test_answer_sends_a_redirect(sandbox: Sandbox, refresh_token: str) -> None:
    sandbox.plan(faults.answer(307, headers={"Location": sandbox.token_url}))
    reply = refresh(sandbox, refresh_token)
    assert [each.status_code for each in reply.history] == [307]
    assert reply.status_code == 200


def test_answer_sends_ten_megabytes(sandbox: Sandbox, refresh_token: str) -> None:
    sandbox.plan(faults.answer(200, b"x" * 10_000_000))
    assert len(refresh(sandbox, refresh_token).content) == 10_000_000


def test_answer_uses_the_refresh_token_when_it_is_processed(
    sandbox: Sandbox, refresh_token: str
) -> None:
    sandbox.plan(faults.answer(200, b"<html>", is_processed=True))
    assert refresh(sandbox, refresh_token).text == "<html>"
    assert is_used(sandbox, refresh_token)


def test_edited_changes_the_real_reply(sandbox: Sandbox, refresh_token: str) -> None:
    sandbox.plan(faults.edited(lambda reply: reply.update(expires_in="soon")))
    reply = refresh(sandbox, refresh_token).json()
    assert reply["expires_in"] == "soon"
    assert not is_used(sandbox, reply["refresh_token"])


def test_edited_replaces_the_real_reply_with_its_return_value(
    sandbox: Sandbox, refresh_token: str
) -> None:
    sandbox.plan(faults.edited(lambda reply: {"access_token": reply["access_token"]}))
    assert refresh(sandbox, refresh_token).json().keys() == {"access_token"}


# Delays


def test_latency_comes_before_processing(sandbox: Sandbox, refresh_token: str) -> None:
    sandbox.plan(faults.latency(0.3))
    with pytest.raises(requests.ReadTimeout):
        refresh(sandbox, refresh_token, timeout=0.05)
    # The first request is still delayed, so this one is the first to be processed.
    assert not is_used(sandbox, refresh_token)


def test_latency_after_comes_after_processing(sandbox: Sandbox, refresh_token: str) -> None:
    sandbox.plan(faults.latency_after(60))
    with pytest.raises(requests.ReadTimeout):
        refresh(sandbox, refresh_token, timeout=0.2)
    assert is_used(sandbox, refresh_token)


def test_drip_sends_the_body_in_small_pieces(sandbox: Sandbox, refresh_token: str) -> None:
    sandbox.plan(faults.drip(0.02, size=40))
    began_at = time.monotonic()
    assert refresh(sandbox, refresh_token).json()["token_type"] == "bearer"
    assert time.monotonic() - began_at >= 0.08  # about 180 bytes


# Dropped connections


@pytest.mark.parametrize("is_reset", [False, True])
def test_drop_before_does_not_use_the_refresh_token(
    sandbox: Sandbox, refresh_token: str, is_reset: bool
) -> None:
    sandbox.plan(faults.drop_before(is_reset=is_reset))
    with pytest.raises(requests.ConnectionError):
        refresh(sandbox, refresh_token)
    assert not is_used(sandbox, refresh_token)


@pytest.mark.parametrize("is_reset", [False, True])
def test_drop_after_uses_the_refresh_token(
    sandbox: Sandbox, refresh_token: str, is_reset: bool
) -> None:
    sandbox.plan(faults.drop_after(is_reset=is_reset))
    with pytest.raises(requests.ConnectionError):
        refresh(sandbox, refresh_token)
    assert is_used(sandbox, refresh_token)


def test_drop_midway_sends_half_a_reply(sandbox: Sandbox, refresh_token: str) -> None:
    sandbox.plan(faults.drop_midway())
    connection = http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=10)
    connection.request(
        "POST",
        "/token",
        f"grant_type=refresh_token&refresh_token={refresh_token}",
        {
            "Content-Type": "application/x-www-form-urlencoded",
            "Authorization": f"Basic {b64encode(':'.join(CLIENT).encode()).decode()}",
        },
    )
    reply = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead) as caught:
        reply.read()
    connection.close()
    assert reply.status == 200
    assert caught.value.partial.startswith(b'{"access_token":')
    assert is_used(sandbox, refresh_token)


# Gates


def test_gate_before_holds_the_request_before_processing(
    sandbox: Sandbox, refresh_token: str, in_background: Callable[..., Any]
) -> None:
    gate = sandbox.hold("before")
    held = in_background(refresh, sandbox, refresh_token)
    gate.wait_until_arrived()
    assert not is_used(sandbox, refresh_token)
    gate.release()
    assert held.result(10).status_code == 400


def test_gate_after_holds_the_reply_after_processing(
    sandbox: Sandbox, refresh_token: str, in_background: Callable[..., Any]
) -> None:
    gate = sandbox.hold("after")
    held = in_background(refresh, sandbox, refresh_token)
    gate.wait_until_processed()
    assert is_used(sandbox, refresh_token)
    assert not held.done()
    gate.release()
    assert held.result(10).status_code == 200


def test_gate_holds_several_requests(sandbox: Sandbox, in_background: Callable[..., Any]) -> None:
    gate = sandbox.hold(times=3)
    tokens = [sandbox.issue("ab123")["refresh_token"] for _ in range(3)]
    held = [in_background(refresh, sandbox, each) for each in tokens]
    gate.wait_until_processed(3)
    gate.release()
    assert [each.result(10).status_code for each in held] == [200, 200, 200]


def test_gate_raises_when_no_request_arrives(sandbox: Sandbox) -> None:
    with pytest.raises(TimeoutError, match="for 1 to arrive; 0 arrived, 0 were processed"):
        sandbox.hold().wait_until_arrived(timeout=0.01)


def test_stopping_ends_a_held_reply(in_background: Callable[..., Any]) -> None:
    sandbox = Sandbox()
    sandbox.start()
    token = sandbox.issue("ab123")["refresh_token"]
    gate = sandbox.hold()
    held = in_background(refresh, sandbox, token)
    gate.wait_until_processed()
    sandbox.stop()
    with pytest.raises(requests.ConnectionError):
        held.result(10)


def test_stopping_ends_a_latency(in_background: Callable[..., Any]) -> None:
    sandbox = Sandbox()
    sandbox.start()
    gate = Gate("after")
    sandbox.plan(faults.hold(gate) | faults.latency(600))
    held = in_background(refresh, sandbox, "x")
    gate.wait_until_arrived()
    sandbox.stop()
    with pytest.raises(requests.ConnectionError):
        held.result(10)


# The plan


def test_plan_applies_to_the_given_number_of_requests(sandbox: Sandbox) -> None:
    sandbox.plan(faults.error_500(), times=2)
    assert [refresh(sandbox, "x").status_code for _ in range(3)] == [500, 500, 400]


def test_plan_without_a_number_applies_until_cleared(sandbox: Sandbox) -> None:
    sandbox.plan(faults.error_500(), times=None)
    assert [refresh(sandbox, "x").status_code for _ in range(3)] == [500, 500, 500]
    sandbox.clear_plan()
    assert refresh(sandbox, "x").status_code == 400


def test_plans_apply_in_order(sandbox: Sandbox) -> None:
    sandbox.plan(faults.error_500())
    sandbox.plan(faults.error_502())
    assert [refresh(sandbox, "x").status_code for _ in range(3)] == [500, 502, 400]


def test_plan_for_the_api_does_not_apply_to_the_token_endpoint(sandbox: Sandbox) -> None:
    sandbox.plan(faults.error_500(), endpoint="api")
    assert refresh(sandbox, "x").status_code == 400
    assert requests.get(f"{sandbox.api_url}v2/contacts", timeout=10).status_code == 500


def test_plan_for_exchanges_does_not_apply_to_refreshes(sandbox: Sandbox) -> None:
    sandbox.plan(faults.error_500(), endpoint="exchange")
    assert refresh(sandbox, "x").status_code == 400
    form = {"grant_type": "authorization_code"}
    assert requests.post(sandbox.token_url, data=form, timeout=10).status_code == 500


def test_plan_for_one_account_does_not_apply_to_others(sandbox: Sandbox) -> None:
    sandbox.plan(faults.error_500(), account="cd456")
    here, there = (sandbox.issue(each)["refresh_token"] for each in ("ab123", "cd456"))
    assert refresh(sandbox, here).status_code == 200
    assert refresh(sandbox, there).status_code == 500


def test_plan_for_one_account_applies_to_the_api(sandbox: Sandbox) -> None:
    sandbox.plan(faults.error_500(), endpoint="api", account="cd456")
    headers = {"Authorization": f"Bearer {sandbox.issue('cd456')['access_token']}"}
    reply = requests.get(f"{sandbox.api_url}v2/contacts", headers=headers, timeout=10)
    assert reply.status_code == 500


def test_plan_accepts_faults_by_name(sandbox: Sandbox) -> None:
    sandbox.plan("latency=0, throttled=3")
    assert refresh(sandbox, "x").headers["Retry-After"] == "3"


def test_plan_rejects_an_unknown_endpoint(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="Unknown endpoint 'tokens'"):
        sandbox.plan(faults.html(), endpoint="tokens")  # type: ignore[arg-type]


def test_plan_rejects_zero_times(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="times must be 1 or more"):
        sandbox.plan(faults.html(), times=0)


def test_faults_can_be_combined(sandbox: Sandbox, refresh_token: str) -> None:
    sandbox.plan(faults.latency(0.05) | faults.drop_after())
    began_at = time.monotonic()
    with pytest.raises(requests.ConnectionError):
        refresh(sandbox, refresh_token)
    assert time.monotonic() - began_at >= 0.05
    assert is_used(sandbox, refresh_token)


# The header


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("throttled", 429),
        ("spike=2", 429),
        ("error-200", 200),
        ("error-500", 500),
        ("error-502", 502),
        ("error-503=5", 503),
        ("error-596", 596),
        ("empty=400", 400),
        ("html", 200),
        ("latency=0.01", 400),
        ("latency-after=0.01", 400),
        ("drip=0.0001", 400),
    ],
)
def test_header_requests_a_fault_by_name(sandbox: Sandbox, text: str, status: int) -> None:
    assert refresh(sandbox, "x", fault=text).status_code == status


@pytest.mark.parametrize("text", ["drop-before", "drop-after", "drop-midway"])
def test_header_requests_a_dropped_connection(sandbox: Sandbox, text: str) -> None:
    broken = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
    with pytest.raises(broken):
        refresh(sandbox, "x", fault=text)


def test_header_does_not_use_up_the_plan(sandbox: Sandbox) -> None:
    sandbox.plan(faults.error_500())
    assert refresh(sandbox, "x", fault="error-502").status_code == 502
    assert refresh(sandbox, "x").status_code == 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("explode", "Unknown fault 'explode'. Known: access-token-revoked, drip, drop-after"),
        ("latency", "needs a number of seconds"),
        ("latency=soon", "needs a number of 0 or more"),
        ("html=3", "takes no number"),
    ],
)
def test_invalid_header_is_a_400(
    sandbox: Sandbox, refresh_token: str, text: str, message: str
) -> None:
    reply = refresh(sandbox, refresh_token, fault=text)
    assert reply.status_code == 400
    assert message in reply.json()["message"]
    assert not is_used(sandbox, refresh_token)


# The journal


def entry_after(sandbox: Sandbox, refresh_token: str, fault: Fault) -> tuple[Any, ...]:
    sandbox.plan(fault)
    with suppress(requests.RequestException):
        refresh(sandbox, refresh_token)
    [entry] = sandbox.token_requests
    return entry.outcome, entry.fault, entry.status, entry.is_delivered


@pytest.mark.parametrize(
    ("fault", "entry"),
    [
        (faults.NO_FAULT, ("rotated", "", 200, True)),
        (faults.drop_before(), ("not_processed", "drop-before", 0, False)),
        (faults.drop_after(), ("rotated", "drop-after", 0, False)),
        (faults.drop_midway(), ("rotated", "drop-midway", 200, False)),
        (faults.error_502(), ("not_processed", "error-502", 502, True)),
        (faults.latency(0.01) | faults.html(), ("not_processed", "latency, html", 200, True)),
    ],
    ids=str,
)
def test_journal_records_the_effect_of_a_fault(
    sandbox: Sandbox, refresh_token: str, fault: Fault, entry: tuple[Any, ...]
) -> None:
    assert entry_after(sandbox, refresh_token, fault) == entry


def test_presentations_include_unprocessed_requests(sandbox: Sandbox, refresh_token: str) -> None:
    sandbox.plan(faults.error_500())
    refresh(sandbox, refresh_token)
    refresh(sandbox, refresh_token)
    assert sandbox.presentations(refresh_token) == 2
    assert sandbox.replays == 0


def test_faults_of_concurrent_requests_are_not_mixed_up(sandbox: Sandbox) -> None:
    together = threading.Barrier(8)

    def ask(number: int) -> tuple[int, int]:
        together.wait(timeout=10)
        status = 500 if number % 2 else 502
        return status, refresh(sandbox, "x", fault=f"error-{status}").status_code

    with ThreadPoolExecutor(8) as pool:
        for expected, status in pool.map(ask, range(8)):
            assert expected == status


def test_fault_names_match_the_function_names() -> None:
    for name, make in faults.NAMED.items():
        assert make.__name__ == name.replace("-", "_")


def test_fault_bodies_are_valid_json() -> None:
    for fault in (faults.throttled(), faults.spike(), faults.error_500(), faults.error_503()):
        assert fault.reply is not None
        json.loads(fault.reply.body)
