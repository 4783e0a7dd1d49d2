"""Connections to the token endpoint, and who ends a wait."""

import os
import threading
import time
from pathlib import Path

import pytest
from django.test import override_settings

from django_infusionsoft import oauth
from django_infusionsoft.exceptions import OutcomeUnknown, TemporarilyUnavailable
from django_infusionsoft.sandbox import Sandbox, faults

CLIENT = oauth.Client("sandbox-client", "sandbox-secret")
IMPATIENT = override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.3)


def waited(refresh_token: str) -> float:
    """Return after how many seconds a call was given up that nobody answers."""
    started = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        oauth.refresh(CLIENT, refresh_token)
    return time.monotonic() - started


@IMPATIENT
def test_wait_is_ended_time_and_again(sandbox: Sandbox) -> None:
    sandbox.plan(faults.latency_after(5), times=None)
    refresh_tokens = [sandbox.issue("ab123")["refresh_token"] for _ in range(2)]
    assert all(waited(refresh_token) < 4 for refresh_token in refresh_tokens)


@IMPATIENT
def test_wait_is_ended_in_a_process_that_was_forked(sandbox: Sandbox, tmp_path: Path) -> None:
    oauth.probe(CLIENT)  # whose thread the child does not have
    sandbox.plan(faults.latency_after(5), times=None)
    refresh_token = sandbox.issue("ab123")["refresh_token"]
    child = os.fork()
    if child == 0:
        try:
            (tmp_path / "waited").write_text(str(waited(refresh_token)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert float((tmp_path / "waited").read_text()) < 4


def test_nothing_is_sent_when_there_is_nobody_to_end_the_wait(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def fail(self: threading.Thread) -> None:
        if not threading.current_thread().name.startswith("keap-sandbox"):  # whose are not ours
            raise RuntimeError("can't start new thread")
        start(self)

    refresh_token = sandbox.issue("ab123")["refresh_token"]
    monkeypatch.setattr("django_infusionsoft.transport.IDLE_SECONDS", 0)
    monkeypatch.setattr("django_infusionsoft.transport._watch._thread", None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(TemporarilyUnavailable, match="nothing was sent"):
            oauth.refresh(CLIENT, refresh_token)
    assert sandbox.presentations(refresh_token) == 0
    assert oauth.refresh(CLIENT, refresh_token).access_token
