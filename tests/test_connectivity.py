"""Does Keap's API take an account's access token? Asked once, and written down."""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import override_settings

from django_infusionsoft import connectivity
from django_infusionsoft.choices import Outcome
from django_infusionsoft.exceptions import (
    ConfigurationError,
    DecryptionError,
    InfusionsoftError,
    ReauthorizationRequired,
    TemporarilyUnavailable,
)
from django_infusionsoft.models import Credential, CredentialEvent
from django_infusionsoft.profiles import Profile
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import row
from tests.visits import OTHER_KEY

Connect = Callable[..., Credential]
NOWHERE = "http://127.0.0.1:1/"
ANA = Profile(account="ab123", keap_user="ana@example.test", keap_user_is_admin=True)


@pytest.fixture
def ann(db: None) -> User:
    return User.objects.create_user("ann")


def told(credential: Credential) -> CredentialEvent:
    """Return the one event that a test has left, in which no secret is."""
    event = credential.events.get(kind="tested")
    text = " ".join(str(value) for value in event.__dict__.values())
    stored = row(credential)
    for secret in (credential.access_token, credential.refresh_token, "sandbox-secret"):
        assert not secret or secret not in text
    for secret in (stored.access_token, stored.refresh_token):
        assert not secret or secret not in text
    return event


# It works


def test_answer_tells_whose_account_it_is(credential: Credential, ann: User) -> None:
    answer = credential.test_connection(user=ann)
    assert (answer.is_ok, answer.status_code, answer.outcome) == (True, 200, Outcome.OK)
    assert answer.profile == ANA


def test_test_is_told_by_an_event(credential: Credential, ann: User) -> None:
    answer = credential.test_connection(user=ann)
    event = told(credential)
    assert (event.outcome, event.user, event.generation) == ("ok", ann, 1)
    assert (event.duration_ms, event.detail) == (
        answer.duration_ms,
        "Keap's API answered HTTP 200.",
    )


def test_test_by_a_program_names_nobody(credential: Credential) -> None:
    credential.test_connection()
    assert told(credential).user is None


def test_test_changes_nothing_of_the_credential(sandbox: Sandbox, credential: Credential) -> None:
    before = Credential.objects.values().get()
    credential.test_connection()
    assert Credential.objects.values().get() == before
    assert sandbox.token_requests == []


def test_answer_tells_how_long_the_api_took(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.plan(faults.latency(0.2), endpoint="api")
    assert 200 <= credential.test_connection().duration_ms < 5000


@pytest.mark.parametrize(
    "fault",
    [faults.html(), faults.empty(), faults.answer(200, "[1, 2]"), faults.answer(200, b"\xff")],
    ids=["html", "empty", "list", "bytes"],
)
def test_access_token_that_is_taken_works_whatever_the_answer_holds(
    sandbox: Sandbox, credential: Credential, fault: faults.Fault
) -> None:
    sandbox.plan(fault, endpoint="api")
    answer = credential.test_connection()
    assert (answer.is_ok, answer.profile) == (True, Profile())
    assert told(credential).outcome == "ok"


# A new access token for it


def test_access_token_that_has_ended_is_refreshed(
    sandbox: Sandbox, expired: Credential, ann: User
) -> None:
    sandbox.plan(faults.latency(0.5), endpoint="refresh")
    answer = expired.test_connection(user=ann)
    assert answer.is_ok
    assert answer.duration_ms < 500  # which is the API's time alone
    event = told(expired)
    assert (event.outcome, event.generation, row(expired).generation) == ("ok", 2, 2)


def test_access_token_that_the_api_refuses_once_is_refreshed(
    sandbox: Sandbox, credential: Credential, ann: User
) -> None:
    sandbox.revoke_access_tokens("ab123")
    assert credential.test_connection(user=ann).is_ok
    assert (told(credential).outcome, row(credential).generation) == ("ok", 2)
    assert len(sandbox.token_requests) == 1


# It does not work


@pytest.mark.parametrize("status", [401, 403])
def test_access_token_that_the_api_refuses_is_told(
    sandbox: Sandbox, credential: Credential, ann: User, status: int
) -> None:
    sandbox.plan(faults.answer(status, {}), endpoint="api", times=None)
    answer = credential.test_connection(user=ann)
    assert (answer.is_ok, answer.status_code) == (False, status)
    assert answer.outcome == Outcome.REJECTED
    event = told(credential)
    assert (event.outcome, event.user) == ("rejected", ann)
    assert event.detail == f"Keap's API answered HTTP {status}."
    assert row(credential).status == "connected"


def test_access_token_that_the_api_goes_on_refusing_costs_one_refresh(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.answer(401, {}), endpoint="api", times=None)
    credential.test_connection()
    assert len(sandbox.token_requests) == 1


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (faults.error_500(), 500),
        (faults.error_502(), 502),
        (faults.error_503(), 503),
        (faults.error_596(), 596),
        (faults.throttled(), 429),
        (faults.answer(404, {}), 404),
        (faults.answer(204), 204),
    ],
)
def test_api_that_is_not_itself_is_told(
    sandbox: Sandbox, credential: Credential, ann: User, fault: faults.Fault, status: int
) -> None:
    sandbox.plan(fault, endpoint="api", times=None)
    answer = credential.test_connection(user=ann)
    assert (answer.is_ok, answer.status_code) == (False, status)
    assert answer.outcome == Outcome.UNAVAILABLE
    event = told(credential)
    assert (event.outcome, event.user, event.duration_ms) == (
        "unavailable",
        ann,
        answer.duration_ms,
    )
    assert str(status) in event.detail
    assert sandbox.token_requests == []


def test_redirect_is_not_followed(sandbox: Sandbox, credential: Credential) -> None:
    away = faults.answer(302, headers={"Location": f"{sandbox.api_url}v1/account/profile"})
    sandbox.plan(away, endpoint="api")
    assert credential.test_connection().status_code == 302
    assert told(credential).outcome == "unavailable"


def test_api_that_cannot_be_reached_is_told(credential: Credential, ann: User) -> None:
    with (
        override_settings(INFUSIONSOFT_API_URL=NOWHERE),
        pytest.raises(TemporarilyUnavailable, match=r"cannot be reached \(ConnectionError\)\.$"),
    ):
        credential.test_connection(user=ann)
    event = told(credential)
    assert (event.outcome, event.user, event.duration_ms) == ("unavailable", ann, None)
    assert event.detail == "Keap's API cannot be reached (ConnectionError)."


@pytest.mark.parametrize("fault", [faults.drop_before(), faults.drop_midway()], ids=str)
def test_answer_that_is_lost_is_told(
    sandbox: Sandbox, credential: Credential, fault: faults.Fault
) -> None:
    sandbox.plan(fault, endpoint="api", times=None)
    with pytest.raises(TemporarilyUnavailable, match="cannot be reached"):
        credential.test_connection()
    assert told(credential).outcome == "unavailable"


def test_person_does_not_wait_longer_than_for_a_profile(
    sandbox: Sandbox, credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connectivity, "TIMEOUT_SECONDS", 0.1)
    sandbox.plan(faults.latency(5), endpoint="api", times=None)
    with pytest.raises(TemporarilyUnavailable, match="ReadTimeout"):
        credential.test_connection()


# There is no access token to ask with


def test_account_that_has_to_be_connected_again_is_told(
    sandbox: Sandbox, expired: Credential, ann: User
) -> None:
    sandbox.revoke("ab123")
    with pytest.raises(ReauthorizationRequired):
        expired.test_connection(user=ann)
    event = told(expired)
    assert (event.outcome, event.user, event.duration_ms) == ("rejected", ann, None)
    assert "must be connected again" in event.detail


def test_grant_that_has_ended_is_noticed_while_the_access_token_seems_fresh(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke("ab123")
    with pytest.raises(ReauthorizationRequired):
        credential.test_connection()
    assert told(credential).outcome == "rejected"
    assert row(credential).status == "reauthorization_required"


def test_disconnected_account_is_told(sandbox: Sandbox, credential: Credential) -> None:
    credential.disconnect()
    with pytest.raises(ReauthorizationRequired):
        credential.test_connection()
    assert told(credential).outcome == "rejected"
    assert sandbox.token_requests == []


def test_keap_that_does_not_refresh_is_told(sandbox: Sandbox, expired: Credential) -> None:
    sandbox.plan(faults.error_503(), times=None)
    with pytest.raises(TemporarilyUnavailable):
        expired.test_connection()
    assert told(expired).outcome == "unavailable"


def test_lost_answer_to_a_refresh_is_told(sandbox: Sandbox, expired: Credential) -> None:
    sandbox.plan(faults.drop_after(), times=None)
    with pytest.raises(InfusionsoftError):
        expired.test_connection()
    assert told(expired).outcome == "unknown"


def test_missing_client_is_told(expired: Credential) -> None:
    with (
        override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET=""),
        pytest.raises(ConfigurationError),
    ):
        expired.test_connection()
    assert told(expired).outcome == "misconfigured"


def test_token_that_no_key_opens_is_told(credential: Credential) -> None:
    with (
        override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]),
        pytest.raises(DecryptionError),
    ):
        row(credential).test_connection()
    assert told(credential).outcome == "unreadable"


# Whatever the caller does


def test_event_outlives_the_callers_rollback(deferred: None, credential: Credential) -> None:
    with transaction.atomic():
        credential.test_connection()
        transaction.set_rollback(True)
    assert told(credential).outcome == "ok"
