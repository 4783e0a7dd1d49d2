"""Tests whether Keap's API accepts an account's access token, with one call as a site makes it."""

from contextlib import suppress
from dataclasses import dataclass

import requests
from django.contrib.auth.base_user import AbstractBaseUser
from django.db import Error

from django_infusionsoft import elapsed
from django_infusionsoft.api.session import CredentialSession
from django_infusionsoft.choices import EventKind, Outcome, Status
from django_infusionsoft.connect.profiles import TIMEOUT_SECONDS, Profile, profile_in
from django_infusionsoft.exceptions import InfusionsoftError, TemporarilyUnavailable
from django_infusionsoft.keap import userinfo
from django_infusionsoft.monitoring import history
from django_infusionsoft.refresh import keys, single
from django_infusionsoft.refresh.storing import outcome_of
from django_infusionsoft.storage.credentials import CredentialRow


@dataclass(frozen=True, slots=True)
class Answer:
    """The response of Keap's API."""

    status_code: int
    """The HTTP status."""
    duration_ms: int
    profile: Profile
    """The account and its user, as far as Keap names them."""

    @property
    def is_ok(self) -> bool:
        """Whether Keap accepted the access token."""
        return self.status_code == 200

    @property
    def outcome(self) -> Outcome:
        """The outcome for the history."""
        if self.is_ok:
            return Outcome.OK
        return Outcome.REJECTED if self.status_code in (401, 403) else Outcome.UNAVAILABLE


def test(credential: CredentialRow, *, user: AbstractBaseUser | None) -> Answer:
    """Call the API, record the outcome in the history, and return the response.

    :raises InfusionsoftError: there is no valid access token, or the API cannot be reached.
    """
    try:
        if credential.is_key:
            keys.ask_again(credential, user=user)
        answer = _ask(credential)
    except InfusionsoftError as error:
        outcome, detail = outcome_of(error), str(error)
        history.record(credential, EventKind.TESTED, user=user, outcome=outcome, detail=detail)
        raise
    history.record(
        credential,
        EventKind.TESTED,
        user=user,
        outcome=answer.outcome,
        duration_ms=answer.duration_ms,
        detail=f"Keap's API responded with HTTP {answer.status_code}.",
    )
    return answer


def recheck(credential: CredentialRow, *, user: AbstractBaseUser | None) -> None:
    """Find out whether a connected grant still works; if it does not, the history says so.

    Keap may end a grant when the account is authorized again.
    """
    generation = credential.generation
    if credential.status != Status.CONNECTED:
        return
    with suppress(InfusionsoftError, Error):
        answer = test(credential, user=user)
        # Unless the test has refreshed it, only a refresh shows whether the grant has ended.
        if answer.status_code == 401 and credential.generation == generation:
            single.refresh(credential, after_401=True, user=user)


def _ask(credential: CredentialRow) -> Answer:
    # Before the clock starts: the duration is that of Keap's API, without a refresh.
    single.get_access_token(credential)
    started_at = elapsed.monotonic()
    try:
        timeout = userinfo.timeout(TIMEOUT_SECONDS)
        session = CredentialSession(credential, repeats=False)
        response = session.get(userinfo.USER_PATH, timeout=timeout, allow_redirects=False)
    except requests.RequestException as error:
        kind = type(error).__name__
        raise TemporarilyUnavailable(f"Keap's API cannot be reached ({kind}).") from error
    duration_ms = round((elapsed.monotonic() - started_at) * 1000)
    return Answer(response.status_code, duration_ms, profile_in(response))
