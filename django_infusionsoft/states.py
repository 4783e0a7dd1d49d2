"""The ``state`` of an authorization request (RFC 6749 section 10.12), kept in the session.

Bound to the session and its user, good for one use and ten minutes. Several may be pending, so
that two tabs do not kill each other.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from django.contrib.sessions.backends.base import UpdateError
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare

# Its number goes up with every change of Pending's fields: sessions outlive a deployment.
SESSION_KEY: Final = "_infusionsoft_states_1"
LIFETIME_SECONDS: Final = 600
MAX_PENDING: Final = 10


class StateError(Exception):
    """The state is of no request of this session and user that still waits for its answer."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An authorization request that has been sent off."""

    user_id: str
    redirect_uri: str
    application_id: int | None = None
    credential_id: int | None = None
    next_url: str = ""
    created_at: float = field(default_factory=time.time)


def begin(request: HttpRequest, pending: Pending) -> str:
    """Remember the request and return its state: 256 random bits."""
    state = secrets.token_urlsafe(32)
    others = _alive(request)[1 - MAX_PENDING :]
    request.session[SESSION_KEY] = [*others, [state, asdict(pending)]]
    return state


def consume(request: HttpRequest, state: str) -> Pending:
    """Forget the state for good and return what was remembered with it.

    :raises StateError: it is unknown, used, too old, or somebody else's.
    """
    found, rest = None, []
    for known, pending in _alive(request):
        if constant_time_compare(known, state):
            found = Pending(**pending)
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
    """Return the user's primary key as text; sessions hold JSON."""
    return str(request.user.pk)


def _alive(request: HttpRequest) -> list[Any]:
    oldest = time.time() - LIFETIME_SECONDS
    states = request.session.get(SESSION_KEY, [])
    return [entry for entry in states if entry[1]["created_at"] > oldest]


def _save(request: HttpRequest) -> None:
    """Write the session now, and not after the response: what is consumed stays consumed."""
    try:
        request.session.save()
    except UpdateError:  # logged out meanwhile, in another tab
        request.session.modified = False
        raise StateError from None
