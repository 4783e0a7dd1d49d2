"""An API that rejects access tokens which Keap has just issued."""

import threading
from datetime import timedelta

import pytest
from django.utils import timezone

from django_infusionsoft.exceptions import InfusionsoftError, ReplacedRecently
from django_infusionsoft.models import Credential
from django_infusionsoft.refresh import single
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import row, threads

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)


def reject_all(sandbox: Sandbox) -> None:
    sandbox.plan(faults.answer(401, {}), endpoint="api", times=None)


def rotations(sandbox: Sandbox) -> int:
    return sum(request.outcome == "rotated" for request in sandbox.token_requests)


def call(credential: Credential) -> int | str:
    """Call the API as another process does; return the status or the name of the exception."""
    try:
        with row(credential).session() as session:
            return session.get("v2/contacts").status_code
    except InfusionsoftError as error:
        return type(error).__name__


def issue_earlier(seconds: float) -> None:
    issued_at = timezone.now() - timedelta(seconds=seconds)
    Credential.objects.update(issued_at=issued_at)


def test_access_token_is_replaced_once_when_many_calls_are_rejected(
    sandbox: Sandbox, credential: Credential
) -> None:
    reject_all(sandbox)
    assert {call(credential) for _ in range(30)} == {401}
    assert rotations(sandbox) == 1
    sandbox.clear_plan()
    assert call(credential) == 200


def test_access_token_of_a_moment_ago_is_not_replaced(
    sandbox: Sandbox, credential: Credential
) -> None:
    credential.refresh()
    reject_all(sandbox)
    assert {call(credential) for _ in range(3)} == {401}
    assert rotations(sandbox) == 1


def test_pause_doubles_up_to_an_hour_while_new_access_tokens_are_rejected(
    sandbox: Sandbox, credential: Credential
) -> None:
    reject_all(sandbox)
    call(credential)
    for number, minutes in enumerate([1, 2, 4, 8, 16, 32, 60, 60], start=1):
        issue_earlier(60 * minutes - 5)
        call(credential)
        assert rotations(sandbox) == number
        issue_earlier(60 * minutes)
        call(credential)
        assert rotations(sandbox) == number + 1


def test_pause_is_a_minute_again_after_a_regular_refresh(
    sandbox: Sandbox, credential: Credential
) -> None:
    reject_all(sandbox)
    for _ in range(4):
        issue_earlier(3600)
        call(credential)
    row(credential).refresh()
    issue_earlier(61)
    before = rotations(sandbox)
    call(credential)
    assert rotations(sandbox) == before + 1


def test_error_says_how_long_the_access_token_is_not_replaced(
    sandbox: Sandbox, credential: Credential
) -> None:
    credential.refresh()
    issue_earlier(20)
    stale = row(credential)
    with pytest.raises(ReplacedRecently) as caught:
        stale.access_token_instead_of(stale.access_token)
    assert caught.value.retry_after == pytest.approx(40, abs=15)
    assert stale.access_token not in str(caught.value)
    assert stale.access_token_instead_of("an older one") == stale.access_token


def test_access_token_is_replaced_when_the_clock_was_wrong(
    sandbox: Sandbox, credential: Credential
) -> None:
    Credential.objects.update(issued_at=timezone.now() + 10 * MINUTE)
    reject_all(sandbox)
    call(credential)
    assert rotations(sandbox) == 1


@pytest.mark.parametrize("fault", [faults.error_503(), faults.answer(400, {})])
def test_account_is_usable_at_once_after_an_outage_of_api_and_token_endpoint(
    sandbox: Sandbox, credential: Credential, fault: faults.Fault
) -> None:
    sandbox.revoke_access_tokens("ab123")
    sandbox.plan(fault, endpoint="token", times=None)
    before = row(credential)
    assert {call(credential) for _ in range(12)} == {"TemporarilyUnavailable"}
    after = row(credential)
    assert (after.failures, after.refresh_at) == (0, before.refresh_at)
    assert after.condition == before.condition
    sandbox.clear_plan()
    assert call(credential) == 200


def test_lost_reply_counts_as_usual(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.revoke_access_tokens("ab123")
    sandbox.plan(faults.drop_after(), endpoint="token")
    assert call(credential) == "OutcomeUnknown"
    assert (row(credential).failures, row(credential).unanswered_attempts) == (1, 1)


@pytest.mark.django_db(transaction=True)
def test_waiting_calls_send_nothing_when_the_replacement_fails(
    sandbox: Sandbox, credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.revoke_access_tokens("ab123")
    gate = faults.Gate("before")
    sandbox.plan(faults.hold(gate) | faults.error_503(), endpoint="token", times=None)
    waiting, all_wait = set(), threading.Event()

    def note(alias: str) -> None:
        """Called before each wait, for Keap or for another thread."""
        waiting.add(threading.get_ident())
        if len(waiting) == 4:
            all_wait.set()

    monkeypatch.setattr(single, "close_own_connection", note)
    with threads(4) as start:
        calls = [start(lambda: call(credential)) for _ in range(4)]
        assert all_wait.wait(30)
        gate.release()
        results = sorted(str(each.result(timeout=30)) for each in calls)
    assert results == ["401", "401", "401", "TemporarilyUnavailable"]
    assert len(sandbox.token_requests) == 1
