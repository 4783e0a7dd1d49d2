"""Does Keap's API take an account's access token? One call, as a site's own code makes it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import requests

from django_infusionsoft import history
from django_infusionsoft.attempts import outcome_of
from django_infusionsoft.choices import EventKind, Outcome
from django_infusionsoft.exceptions import InfusionsoftError, TemporarilyUnavailable
from django_infusionsoft.profiles import TIMEOUT_SECONDS, Profile, profile_in
from django_infusionsoft.sessions import USER_PATH

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

    from django_infusionsoft.models import Credential


@dataclass(frozen=True, slots=True)
class Answer:
    """What Keap's API said."""

    status_code: int
    """Of HTTP."""
    duration_ms: int
    profile: Profile
    """Whose account it is, as far as it was told."""

    @property
    def is_ok(self) -> bool:
        """Whether the access token was taken."""
        return self.status_code == 200

    @property
    def outcome(self) -> Outcome:
        """The same, as the history tells it."""
        if self.is_ok:
            return Outcome.OK
        return Outcome.REJECTED if self.status_code in (401, 403) else Outcome.UNAVAILABLE


def test(credential: Credential, *, user: AbstractBaseUser | None) -> Answer:
    """Call the API, write down that somebody did and what came of it, and return the answer.

    :raises InfusionsoftError: there is no access token that works, or the API cannot be reached.
    """
    try:
        answer = _ask(credential)
    except InfusionsoftError as error:
        _record(credential, user, outcome=outcome_of(error), detail=str(error))
        raise
    _record(
        credential,
        user,
        outcome=answer.outcome,
        duration_ms=answer.duration_ms,
        detail=f"Keap's API answered HTTP {answer.status_code}.",
    )
    return answer


def _ask(credential: Credential) -> Answer:
    # Before the clock starts: what is told is how long Keap's API takes.
    credential.get_access_token()
    started_at = time.monotonic()
    try:
        with credential.session() as session:
            response = session.get(USER_PATH, timeout=TIMEOUT_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        kind = type(error).__name__
        raise TemporarilyUnavailable(f"Keap's API cannot be reached ({kind}).") from error
    duration_ms = round((time.monotonic() - started_at) * 1000)
    return Answer(response.status_code, duration_ms, profile_in(response))


def _record(credential: Credential, user: AbstractBaseUser | None, **details: Any) -> None:
    history.record(credential, EventKind.TESTED, user=user, **details)
