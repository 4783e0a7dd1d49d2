"""A success that holds failures raises an exception which names the items."""

from typing import Any

import pytest

from django_infusionsoft.api.partial_failures import failure_in
from django_infusionsoft.exceptions import PartialFailure, TemporarilyUnavailable
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults

SEQUENCE = {"1": "SUCCESS", "2": "ALREADY_IN_SEQUENCE", "3": "CONTACT_DOES_NOT_EXIST"}
FAILED_GOAL = {"success": False, "message": "No such goal"}


@pytest.mark.parametrize(
    ("content", "failures", "succeeded"),
    [
        ({"results": {"7": "SUCCESS", "8": "FAILURE"}}, [("8", "FAILURE")], ["7"]),
        ({"7": "SUCCESS", "8": "NOT_FOUND"}, [("8", "NOT_FOUND")], ["7"]),
        (
            {"add_to_sequence_results": SEQUENCE},
            [("3", "CONTACT_DOES_NOT_EXIST")],
            ["1", "2"],
        ),
        ([{"7": "SUCCESS"}, {"8": "FAILURE"}], [("8", "FAILURE")], ["7"]),
        ([FAILED_GOAL], [({"message": "No such goal"}, "No such goal")], []),
        (
            {
                "results": [
                    {
                        "goal_id": 4,
                        "success": True,
                        "flow_start_results": [{"flow_id": 9, **FAILED_GOAL}],
                        "flow_stop_results": [{"flow_id": 8, "success": True}],
                    }
                ]
            },
            [(9, "No such goal")],
            [4, 8],
        ),
        (
            {"results": [{"goal_id": 4, **FAILED_GOAL}, {"goal_id": 5, "success": True}]},
            [(4, "No such goal")],
            [5],
        ),
        (
            {"emails": [], "errors": [{"email": "a", "error_message": "no contact"}]},
            [("a", "no contact")],
            [],
        ),
        ({"emails": [], "errors": ["bad"]}, [("bad", "bad")], []),
    ],
)
def test_items_that_failed_are_named(
    content: Any, failures: list[Any], succeeded: list[Any]
) -> None:
    error = failure_in(content, status=200)
    assert error
    assert (error.failures, error.succeeded, error.status) == (failures, succeeded, 200)
    assert not isinstance(error, TemporarilyUnavailable)


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        [],
        {"id": "7", "given_name": "Nell"},
        {"7": "SUCCESS", "8": "DUPLICATE"},
        {"results": {"7": "success"}},
        {"results": [{"success": True}]},
        {"emails": [{"id": "1"}], "errors": []},
        [{"key": "31", "status": "Verified"}],
        {"results": [{"id": 1}]},
    ],
)
def test_other_answers_hold_no_failure(content: Any) -> None:
    assert failure_in(content) is None


def test_message_names_ids_and_keaps_words_but_no_objects() -> None:
    email = {"sent_to_address": "nell@ex.test", "subject": "Private"}
    errors = [{"email": email, "error_message": "Contact not found"}]
    error = failure_in({"emails": [], "errors": errors}, status=200)
    assert error
    assert error.failures == [(email, "Contact not found")]
    assert error.message == "1 of 1 failed (Contact not found)"
    assert "8: FAILURE" in str(failure_in({"results": {"8": "FAILURE"}}, status=200))


def test_call_raises_it_for_writes_only(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.plan(faults.answer(200, {"results": {"7": "FAILURE"}}), endpoint="api", times=None)
    with credential.session() as session:
        with pytest.raises(PartialFailure, match="1 of 1 failed") as caught:
            session.call("POST", "v2/tags/5/contacts:applyTags", json={"contact_ids": ["7"]})
        assert (caught.value.status, caught.value.quota) == (200, session.quota)
        assert caught.value.response.json() == {"results": {"7": "FAILURE"}}
        assert "Authorization" not in caught.value.response.request.headers
        assert session.call("GET", "v2/tags/5/contacts") == {"results": {"7": "FAILURE"}}
