"""Calls to the token endpoint: timeouts, forked processes and threads."""

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from django.test import override_settings

from django_infusionsoft.exceptions import OutcomeUnknown, TemporarilyUnavailable
from django_infusionsoft.keap import oauth, transport
from django_infusionsoft.keap.sent import Call, making
from django_infusionsoft.sandbox import Sandbox, faults
from tests.keap.endpoints import in_child, listening, naming
from tests.support import thread_limit

CLIENT = oauth.Client("sandbox-client", "sandbox-secret")
SHORT_TIMEOUT = override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.3)


def seconds_until_timeout(refresh_token: str) -> float:
    """Return the seconds after which a call without a reply fails."""
    started = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        oauth.refresh(CLIENT, refresh_token)
    return time.monotonic() - started


@SHORT_TIMEOUT
def test_every_call_without_a_reply_times_out(sandbox: Sandbox) -> None:
    sandbox.plan(faults.latency_after(5), times=None)
    refresh_tokens = [sandbox.issue("ab123")["refresh_token"] for _ in range(2)]
    assert all(seconds_until_timeout(refresh_token) < 4 for refresh_token in refresh_tokens)


@SHORT_TIMEOUT
def test_call_without_a_reply_times_out_in_a_forked_process(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    oauth.probe(CLIENT)  # starts a thread that the child process does not have
    sandbox.plan(faults.latency_after(5), times=None)
    refresh_token = sandbox.issue("ab123")["refresh_token"]
    child = os.fork()
    if child == 0:
        try:
            (tmp_path / "waited").write_text(str(seconds_until_timeout(refresh_token)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert float((tmp_path / "waited").read_text()) < 4


@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork])
def test_forked_process_uses_connections_of_its_own(fork: Callable[[], int]) -> None:
    """Even one that was forked without Python's knowledge, as by uWSGI."""
    with listening(naming("abc")) as port:

        def ask() -> bytes:
            with making(Call()):
                url = f"http://127.0.0.1:{port}/token"
                return transport.post(url, "", headers={}, auth=None).content

        assert [ask(), in_child(ask, fork=fork), ask()] == [b"a", b"b", b"a"]


def test_nothing_is_sent_when_no_thread_can_be_started(
    sandbox: Sandbox,
) -> None:
    with (
        thread_limit("infusionsoft-call"),
        pytest.raises(TemporarilyUnavailable, match="nothing was sent"),
    ):
        oauth.probe(CLIENT)
    assert sandbox.token_requests == []
