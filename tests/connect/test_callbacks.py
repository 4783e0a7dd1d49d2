"""One request handles an authorization response; equal requests get its result for a minute."""

from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from django.db import OperationalError
from django.db.models import QuerySet
from django.utils import timezone

from django_infusionsoft.connect import callbacks
from django_infusionsoft.connect.callbacks import Response
from django_infusionsoft.models import Callback
from tests.support import threads

pytestmark = pytest.mark.django_db


def response(**parts: str) -> Response:
    values = {"state": "s", "user_id": "7", "parameters": "state=s&code=c", **parts}
    return callbacks.response_to("default", **values)


def ago(seconds: float) -> Any:
    return timezone.now() - timedelta(seconds=seconds)


def finished(result: dict[str, Any] | None = None) -> None:
    callbacks.claim(response())
    callbacks.finish(response(), result or {"a": 1})


@pytest.mark.django_db(transaction=True)
def test_one_of_many_requests_claims_a_response() -> None:
    with threads(8) as start:
        claims = [start(lambda: callbacks.claim(response())) for _ in range(8)]
        assert sorted(each.result(timeout=60) for each in claims) == [False] * 7 + [True]


def test_response_with_a_claimed_state_cannot_be_claimed() -> None:
    assert callbacks.claim(response())
    assert not callbacks.claim(response(parameters="state=s&code=other", user_id="8"))
    assert callbacks.claim(response(state="other"))


@pytest.mark.django_db(transaction=True)
def test_equal_request_waits_for_the_result() -> None:
    callbacks.claim(response())
    with threads(1) as start:
        waiting = start(lambda: callbacks.result_of(response()))
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.1)
        callbacks.finish(response(), {"a": 1})
        assert waiting.result(timeout=60) == {"a": 1}


@pytest.mark.parametrize("parts", [{"user_id": "8"}, {"parameters": "state=s&code=other"}])
def test_other_request_gets_no_result(parts: dict[str, str]) -> None:
    finished()
    assert callbacks.result_of(response(**parts)) is None
    assert callbacks.result_of(response()) == {"a": 1}


def test_result_is_shown_for_a_minute() -> None:
    finished()
    Callback.objects.update(created_at=ago(300), finished_at=ago(55))
    assert callbacks.result_of(response()) == {"a": 1}
    Callback.objects.update(finished_at=ago(61))
    assert callbacks.result_of(response()) is None
    assert not callbacks.claim(response())


def test_result_is_empty_when_the_request_that_handled_it_has_died() -> None:
    callbacks.claim(response())
    Callback.objects.update(created_at=ago(callbacks.longest_seconds() + 1))
    assert callbacks.result_of(response()) == {}


def exchange(state: str, *, user_id: str = "7", application_id: int | None = None) -> bool:
    new = response(state=state)
    callbacks.claim(new)
    return callbacks.reserve_exchange(new, user_id=user_id, application_id=application_id)


def exchanges(count: int, **by: Any) -> int:
    """Try so many exchanges; return how many were allowed."""
    first = Callback.objects.count()
    return sum(exchange(f"s{first + number}", **by) for number in range(count))


def test_exchanges_of_a_user_are_limited_with_all_applications_together() -> None:
    assert exchanges(6) + exchanges(6, application_id=1) == 10
    assert exchanges(1, user_id="8") == 1
    Callback.objects.update(created_at=ago(61))
    assert exchanges(12) == 10


def test_exchanges_with_an_application_are_limited_for_all_users_together() -> None:
    assert sum(exchanges(9, user_id=str(number)) for number in range(4)) == 30
    assert exchanges(1, user_id="8", application_id=1) == 1
    Callback.objects.update(created_at=ago(61))
    assert exchanges(1) == 1


@pytest.mark.django_db(transaction=True)
def test_exchanges_at_once_are_limited() -> None:
    with threads(8) as start:
        waiting = [start(partial(exchange, f"s{number}")) for number in range(16)]
        assert sum(each.result(timeout=60) for each in waiting) <= 10


def test_old_responses_are_deleted() -> None:
    finished()
    Callback.objects.update(created_at=ago(86_401))
    other = response(state="other")
    assert callbacks.claim(other)
    callbacks.finish(other, {"a": 2})
    assert Callback.objects.count() == 1


def test_response_has_a_result_when_old_responses_cannot_be_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(QuerySet, "delete", Mock(side_effect=OperationalError))
    finished()
    assert callbacks.result_of(response()) == {"a": 1}


def test_row_holds_neither_state_nor_code() -> None:
    callbacks.claim(response(state="secret-state", parameters="code=secret-code"))
    assert "secret" not in str(Callback.objects.values().get())
