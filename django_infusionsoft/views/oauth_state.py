"""The ``state`` of an authorization request (RFC 6749 section 10.12), stored in the session.

A state is bound to the session and its user, and valid once, for ten minutes. Several can be
pending, one for each browser tab.
"""

import secrets
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from django.contrib.sessions.backends.base import UpdateError
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare

# Increment the number when PendingAuthorization's fields change: sessions outlive a deployment.
SESSION_KEY: Final = "_infusionsoft_states_1"
LIFETIME_SECONDS: Final = 600
MAX_PENDING: Final = 10


class StateError(Exception):
    """The state belongs to no pending request of this session and user."""


@dataclass(frozen=True, slots=True)
class PendingAuthorization:
    """An authorization request that Keap has not answered yet."""

    user_id: str
    redirect_uri: str
    application_id: int | None = None
    credential_id: int | None = None
    next_url: str = ""
    created_at: float = field(default_factory=time.time)


def begin(request: HttpRequest, pending: PendingAuthorization) -> str:
    """Store the request in the session, and return its state: 256 random bits."""
    state = secrets.token_urlsafe(32)
    others = _pending(request)[1 - MAX_PENDING :]
    request.session[SESSION_KEY] = [*others, [state, asdict(pending)]]
    return state


def is_pending(request: HttpRequest, state: str) -> bool:
    """Whether the state is in the session."""
    return any(constant_time_compare(known, state) for known, _ in _pending(request))


def consume(request: HttpRequest, state: str) -> PendingAuthorization:
    """Remove the state from the session, and return its request.

    :raises StateError: the state is unknown, used, expired, or another user's.
    """
    found, rest = None, []
    for known, pending in _pending(request):
        if constant_time_compare(known, state):
            found = PendingAuthorization(**pending)
        else:
            rest.append([known, pending])
    if found is None:
        raise StateError
    request.session[SESSION_KEY] = rest
    _save(request)
    if found.user_id != user_id_of(request):
        raise StateError
    return found


def user_id_of(request: HttpRequest) -> str:
    """Return the user's primary key as a string, which sessions can store as JSON."""
    return str(request.user.pk)


def _pending(request: HttpRequest) -> list[Any]:
    oldest = time.time() - LIFETIME_SECONDS
    states = request.session.get(SESSION_KEY, [])
    return [entry for entry in states if entry[1]["created_at"] > oldest]


def _save(request: HttpRequest) -> None:
    """Save the session before the code is exchanged, so that the state stays used."""
    try:
        request.session.save()
    except UpdateError:  # the user logged out in another tab
        request.session.modified = False
        raise StateError from None
