"""The state of an authorization request: one session, one user, one use, valid for ten minutes."""

from importlib import import_module

import pytest
import time_machine
from django.conf import settings
from django.contrib.auth.models import User
from django.contrib.sessions.backends.base import SessionBase
from django.http import HttpRequest
from django.test import RequestFactory

from django_infusionsoft.views import oauth_state
from django_infusionsoft.views.oauth_state import PendingAuthorization, StateError

pytestmark = pytest.mark.django_db


def session(key: str | None = None) -> SessionBase:
    store: type[SessionBase] = import_module(settings.SESSION_ENGINE).SessionStore
    return store(key)


@pytest.fixture
def request_(rf: RequestFactory) -> HttpRequest:
    """A request of a user, with a stored session."""
    request = rf.get("/")
    request.user = User(pk=7)
    request.session = session()
    request.session.create()
    return request


def begin(request: HttpRequest, **details: str) -> str:
    redirect_uri = "https://example.test/callback/"
    pending = PendingAuthorization(oauth_state.user_id_of(request), redirect_uri, **details)  # type: ignore[arg-type]
    return oauth_state.begin(request, pending)


def test_consume_returns_the_pending_authorization(request_: HttpRequest) -> None:
    state = begin(request_, next_url="/here/")
    assert oauth_state.consume(request_, state).next_url == "/here/"


def test_every_state_is_different_and_has_256_bits(request_: HttpRequest) -> None:
    found = {begin(request_) for _ in range(5)}
    assert len(found) == 5
    assert all(len(state) == 43 for state in found)  # 32 bytes in base64


def test_state_can_be_consumed_once(request_: HttpRequest) -> None:
    state = begin(request_)
    oauth_state.consume(request_, state)
    with pytest.raises(StateError):
        oauth_state.consume(request_, state)


def test_consumed_state_is_removed_from_the_stored_session_at_once(request_: HttpRequest) -> None:
    state = begin(request_)
    request_.session.save()
    oauth_state.consume(request_, state)
    assert state not in str(session(request_.session.session_key).load())


def test_consuming_one_state_keeps_the_others(request_: HttpRequest) -> None:
    first, second = begin(request_, next_url="/1/"), begin(request_, next_url="/2/")
    assert oauth_state.consume(request_, second).next_url == "/2/"
    assert oauth_state.consume(request_, first).next_url == "/1/"


@pytest.mark.parametrize("state", ["", "unknown", "\0", "zażółć", "x" * 10_000])
def test_unknown_state_is_rejected_and_known_states_are_kept(
    request_: HttpRequest, state: str
) -> None:
    known = begin(request_)
    with pytest.raises(StateError):
        oauth_state.consume(request_, state)
    oauth_state.consume(request_, known)


def test_state_is_rejected_in_another_session(request_: HttpRequest) -> None:
    state = begin(request_)
    request_.session = session()
    with pytest.raises(StateError):
        oauth_state.consume(request_, state)


def test_state_of_another_user_is_rejected_and_consumed(request_: HttpRequest) -> None:
    state = begin(request_)
    request_.user = User(pk=8)
    with pytest.raises(StateError):
        oauth_state.consume(request_, state)
    request_.user = User(pk=7)
    with pytest.raises(StateError):
        oauth_state.consume(request_, state)


@pytest.mark.parametrize(("minutes", "is_valid"), [(9.9, True), (10.1, False)])
def test_state_is_valid_for_ten_minutes(
    request_: HttpRequest, minutes: float, is_valid: bool
) -> None:
    with time_machine.travel(0, tick=False) as clock:
        state = begin(request_)
        clock.shift(minutes * 60)
        if is_valid:
            oauth_state.consume(request_, state)
        else:
            with pytest.raises(StateError):
                oauth_state.consume(request_, state)


def test_eleventh_pending_state_replaces_the_oldest(request_: HttpRequest) -> None:
    oldest, *newer = [begin(request_) for _ in range(11)]
    with pytest.raises(StateError):
        oauth_state.consume(request_, oldest)
    for state in newer:
        oauth_state.consume(request_, state)


def test_expired_states_are_removed_from_the_session(request_: HttpRequest) -> None:
    with time_machine.travel(0, tick=False) as clock:
        begin(request_)
        clock.shift(601)
        begin(request_)
    assert len(request_.session[oauth_state.SESSION_KEY]) == 1


def test_state_is_rejected_when_the_session_was_deleted_meanwhile(request_: HttpRequest) -> None:
    state = begin(request_)
    request_.session.save()
    session(request_.session.session_key).delete()
    with pytest.raises(StateError):
        oauth_state.consume(request_, state)
    assert not request_.session.modified  # otherwise the middleware would raise again
