"""The connection test: one API call with the account's access token, recorded as an event."""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import override_settings

from django_infusionsoft.choices import Outcome
from django_infusionsoft.connect import connection_check
from django_infusionsoft.connect.profiles import Profile
from django_infusionsoft.exceptions import (
    ConfigurationError,
    DecryptionError,
    InfusionsoftError,
    ReauthorizationRequired,
    TemporarilyUnavailable,
)
from django_infusionsoft.models import Credential, CredentialEvent
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import row
from tests.web import OTHER_KEY

Connect = Callable[..., Credential]
NOWHERE = "http://127.0.0.1:1/"
ANA = Profile(account="ab123", keap_user="ana@example.test", keap_user_is_admin=True)


@pytest.fixture
def ann(db: None) -> User:
    return User.objects.create_user("ann")


def recorded_event(credential: Credential) -> CredentialEvent:
    """Return the one event of the connection test, after checking that it contains no secret."""
    event = credential.events.get(kind="tested")
    text = " ".join(str(value) for value in event.__dict__.values())
    stored = row(credential)
    for secret in (credential.access_token, credential.refresh_token, "sandbox-secret"):
        assert not secret or secret not in text
    for secret in (stored.access_token, stored.refresh_token):
        assert not secret or secret not in text
    return event


# Success


def test_result_names_the_account_and_the_user(credential: Credential, ann: User) -> None:
    result = credential.test_connection(user=ann)
    assert (result.is_ok, result.status_code, result.outcome) == (True, 200, Outcome.OK)
    assert result.profile == ANA


def test_test_is_recorded_as_an_event(credential: Credential, ann: User) -> None:
    result = credential.test_connection(user=ann)
    event = recorded_event(credential)
    assert (event.outcome, event.user, event.generation) == ("ok", ann, 1)
    assert (event.duration_ms, event.detail) == (
        result.duration_ms,
        "Keap's API responded with HTTP 200.",
    )


def test_event_has_no_user_when_none_is_given(credential: Credential) -> None:
    credential.test_connection()
    assert recorded_event(credential).user is None


def test_test_does_not_change_the_credential(sandbox: Sandbox, credential: Credential) -> None:
    before = Credential.objects.values().get()
    credential.test_connection()
    assert Credential.objects.values().get() == before
    assert sandbox.token_requests == []


def test_result_contains_the_duration_of_the_api_call(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.latency(0.2), endpoint="api")
    assert 200 <= credential.test_connection().duration_ms < 5000


@pytest.mark.parametrize(
    "fault",
    [faults.html(), faults.empty(), faults.answer(200, "[1, 2]"), faults.answer(200, b"\xff")],
    ids=["html", "empty", "list", "bytes"],
)
def test_test_succeeds_when_the_response_body_is_invalid(
    sandbox: Sandbox, credential: Credential, fault: faults.Fault
) -> None:
    sandbox.plan(fault, endpoint="api")
    result = credential.test_connection()
    assert (result.is_ok, result.profile) == (True, Profile())
    assert recorded_event(credential).outcome == "ok"


# Refreshes


def test_expired_access_token_is_refreshed(
    sandbox: Sandbox, expired: Credential, ann: User
) -> None:
    sandbox.plan(faults.latency(0.5), endpoint="refresh")
    result = expired.test_connection(user=ann)
    assert result.is_ok
    assert result.duration_ms < 500  # the API's time only
    event = recorded_event(expired)
    assert (event.outcome, event.generation, row(expired).generation) == ("ok", 2, 2)


def test_access_token_is_refreshed_when_the_api_rejects_it_once(
    sandbox: Sandbox, credential: Credential, ann: User
) -> None:
    sandbox.revoke_access_tokens("ab123")
    assert credential.test_connection(user=ann).is_ok
    assert (recorded_event(credential).outcome, row(credential).generation) == ("ok", 2)
    assert len(sandbox.token_requests) == 1


# Failures of the API


@pytest.mark.parametrize("status", [401, 403])
def test_test_fails_when_the_api_rejects_the_access_token(
    sandbox: Sandbox, credential: Credential, ann: User, status: int
) -> None:
    sandbox.plan(faults.answer(status, {}), endpoint="api", times=None)
    result = credential.test_connection(user=ann)
    assert (result.is_ok, result.status_code) == (False, status)
    assert result.outcome == Outcome.REJECTED
    event = recorded_event(credential)
    assert (event.outcome, event.user) == ("rejected", ann)
    assert event.detail == f"Keap's API responded with HTTP {status}."
    assert row(credential).status == "connected"


def test_access_token_is_refreshed_once_when_the_api_always_rejects_it(
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
def test_test_fails_when_the_api_returns_an_error(
    sandbox: Sandbox, credential: Credential, ann: User, fault: faults.Fault, status: int
) -> None:
    sandbox.plan(fault, endpoint="api", times=None)
    result = credential.test_connection(user=ann)
    assert (result.is_ok, result.status_code) == (False, status)
    assert result.outcome == Outcome.UNAVAILABLE
    event = recorded_event(credential)
    assert (event.outcome, event.user, event.duration_ms) == (
        "unavailable",
        ann,
        result.duration_ms,
    )
    assert str(status) in event.detail
    assert sandbox.token_requests == []


def test_redirect_is_not_followed(sandbox: Sandbox, credential: Credential) -> None:
    away = faults.answer(302, headers={"Location": f"{sandbox.api_url}v1/account/profile"})
    sandbox.plan(away, endpoint="api")
    assert credential.test_connection().status_code == 302
    assert recorded_event(credential).outcome == "unavailable"


def test_test_raises_when_the_api_cannot_be_reached(credential: Credential, ann: User) -> None:
    with (
        override_settings(INFUSIONSOFT_API_URL=NOWHERE),
        pytest.raises(TemporarilyUnavailable, match=r"cannot be reached \(ConnectionError\)\.$"),
    ):
        credential.test_connection(user=ann)
    event = recorded_event(credential)
    assert (event.outcome, event.user, event.duration_ms) == ("unavailable", ann, None)
    assert event.detail == "Keap's API cannot be reached (ConnectionError)."


@pytest.mark.parametrize("fault", [faults.drop_before(), faults.drop_midway()], ids=str)
def test_test_raises_when_the_response_is_lost(
    sandbox: Sandbox, credential: Credential, fault: faults.Fault
) -> None:
    sandbox.plan(fault, endpoint="api", times=None)
    with pytest.raises(TemporarilyUnavailable, match="did not answer"):
        credential.test_connection()
    assert recorded_event(credential).outcome == "unavailable"


def test_test_ends_after_its_own_timeout(
    sandbox: Sandbox, credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_check, "TIMEOUT_SECONDS", 0.1)
    sandbox.plan(faults.latency(5), endpoint="api", times=None)
    with pytest.raises(TemporarilyUnavailable, match="ReadTimeout"):
        credential.test_connection()


# No valid access token


def test_test_raises_when_the_account_must_be_reconnected(
    sandbox: Sandbox, expired: Credential, ann: User
) -> None:
    sandbox.revoke("ab123")
    with pytest.raises(ReauthorizationRequired):
        expired.test_connection(user=ann)
    event = recorded_event(expired)
    assert (event.outcome, event.user, event.duration_ms) == ("rejected", ann, None)
    assert "must be reconnected" in event.detail


def test_revoked_grant_is_detected_when_the_access_token_seems_valid(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke("ab123")
    with pytest.raises(ReauthorizationRequired):
        credential.test_connection()
    assert recorded_event(credential).outcome == "rejected"
    assert row(credential).status == "reauthorization_required"


def test_test_raises_when_the_account_is_disconnected(
    sandbox: Sandbox, credential: Credential
) -> None:
    credential.disconnect()
    with pytest.raises(ReauthorizationRequired):
        credential.test_connection()
    assert recorded_event(credential).outcome == "rejected"
    assert sandbox.token_requests == []


def test_test_raises_when_the_refresh_fails(sandbox: Sandbox, expired: Credential) -> None:
    sandbox.plan(faults.error_503(), times=None)
    with pytest.raises(TemporarilyUnavailable):
        expired.test_connection()
    assert recorded_event(expired).outcome == "unavailable"


def test_outcome_is_unknown_when_the_reply_to_the_refresh_is_lost(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(faults.drop_after(), times=None)
    with pytest.raises(InfusionsoftError):
        expired.test_connection()
    assert recorded_event(expired).outcome == "unknown"


def test_test_raises_when_no_client_is_configured(expired: Credential) -> None:
    with (
        override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET=""),
        pytest.raises(ConfigurationError),
    ):
        expired.test_connection()
    assert recorded_event(expired).outcome == "misconfigured"


def test_test_raises_when_no_key_decrypts_the_access_token(credential: Credential) -> None:
    with (
        override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]),
        pytest.raises(DecryptionError),
    ):
        row(credential).test_connection()
    assert recorded_event(credential).outcome == "unreadable"


# The caller's transaction


def test_event_is_kept_when_the_caller_rolls_back(deferred: None, credential: Credential) -> None:
    with transaction.atomic():
        credential.test_connection()
        transaction.set_rollback(True)
    assert recorded_event(credential).outcome == "ok"
