"""``session.call()``: the decoded answer, or an exception that says what to do."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from django_infusionsoft.api.errors import error_for
from django_infusionsoft.exceptions import (
    ApiError,
    ApiUnavailable,
    Forbidden,
    Invalid,
    NotFound,
    PartialFailure,
    RateLimited,
    TemporarilyUnavailable,
    WriteUnconfirmed,
)
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults
from tests.error_reports import Secrets, reporting

V1 = b'{"message": "Unrecognized property: foo"}'
V2 = b'{"code": 404, "message": "No contact", "status": "NOT_FOUND", "details": [{"domain": "c"}]}'
FAULT = b'{"fault": {"faultstring": "Spike", "detail": {"errorcode": "policies.ratelimit"}}}'


@pytest.mark.parametrize(
    ("body", "code", "message", "details"),
    [
        (V1, "", "Unrecognized property: foo", []),
        (V2, "404", "No contact", [{"domain": "c"}]),
        (FAULT, "policies.ratelimit", "Spike", []),
        (b'{"fault": {"faultstring": "Spike"}}', "", "Spike", []),
        (b'{"code": "429", "message": "Quota", "details": null}', "429", "Quota", []),
        (b"<html><h1>It works!</h1></html>", "", "I'm a Teapot", []),
        (b"[" * 100_000, "", "I'm a Teapot", []),
        (b"", "", "I'm a Teapot", []),
        (b"null", "", "I'm a Teapot", []),
    ],
)
def test_error_has_what_each_form_of_answer_says(
    body: bytes, code: str, message: str, details: list[Any]
) -> None:
    error = error_for("GET", 418, {}, body)
    assert (error.status, error.code, error.message, error.details) == (
        418,
        code,
        message,
        details,
    )
    assert str(error) == f"Keap's API responded with HTTP 418: {message}"


@pytest.mark.parametrize(
    ("method", "status", "kind"),
    [
        ("GET", 302, ApiError),
        ("GET", 400, Invalid),
        ("GET", 401, ApiError),
        ("GET", 403, Forbidden),
        ("GET", 404, NotFound),
        ("POST", 422, Invalid),
        ("POST", 429, RateLimited),
        ("GET", 500, ApiUnavailable),
        ("head", 503, ApiUnavailable),
        ("GET", 599, ApiUnavailable),
        ("POST", 500, WriteUnconfirmed),
        ("patch", 503, WriteUnconfirmed),
        ("DELETE", 504, WriteUnconfirmed),
    ],
)
def test_kind_of_error_says_what_to_do(method: str, status: int, kind: type[ApiError]) -> None:
    assert type(error_for(method, status, {}, b"")) is kind


def test_only_what_may_be_repeated_is_temporarily_unavailable() -> None:
    assert issubclass(RateLimited, TemporarilyUnavailable)
    assert issubclass(ApiUnavailable, TemporarilyUnavailable)
    assert not issubclass(WriteUnconfirmed, TemporarilyUnavailable)


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7.0), ("soon", None), ("Mon, 01 Jan 2024 00:00:00 GMT", 0.0)]
)
def test_error_says_when_to_retry(value: str, seconds: float | None) -> None:
    assert error_for("GET", 429, {"Retry-After": value}, b"").retry_after == seconds


def test_call_returns_the_decoded_answer(sandbox: Sandbox, credential: Credential) -> None:
    with credential.session() as session:
        found = session.call("GET", "v2/contacts", params={"page_size": 1})["contacts"]
        assert [each["given_name"] for each in found] == ["Bea"]
        sandbox.plan(faults.answer(204), endpoint="api")
        assert session.call("DELETE", "v2/contacts/1") is None
        with pytest.raises(NotFound) as caught:
            session.call("GET", "v2/contacts/999")
    assert caught.value.response.status_code == 404


def test_call_raises_an_error_for_a_success_that_is_not_json(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.html(), endpoint="api")
    with pytest.raises(ApiError, match="not JSON") as caught:
        credential.session().call("GET", "v2/contacts")
    assert caught.value.response.content.startswith(b"<")


def unpickled(error: ApiError) -> ApiError:
    loaded: ApiError = pickle.loads(pickle.dumps(error))  # noqa: S301  # pickled here
    return loaded


def test_error_survives_pickling() -> None:
    error = PartialFailure(
        "1 of 2 failed", failures=[("7", "no")], succeeded=["8"], status=200, retry_after=3.0
    )
    loaded = unpickled(error)
    assert (type(loaded), str(loaded), vars(loaded)) == (PartialFailure, str(error), vars(error))


@pytest.mark.parametrize("body", [{"json": {"a": 1}}, {"data": iter([b"{}"])}])
def test_error_holds_no_access_token(
    sandbox: Sandbox, credential: Credential, body: dict[str, Any]
) -> None:
    sandbox.plan(faults.answer(401, {}), endpoint="api")
    sandbox.plan(faults.answer(422, {"message": "no"}), endpoint="api")
    rejected = credential.access_token
    with pytest.raises(ApiError) as caught:
        credential.session().call("POST", "v2/contacts", **body)
    error = caught.value
    for each in (error.response, *error.response.history):
        assert "Authorization" not in each.request.headers
    for access_token in (rejected, credential.access_token):
        assert access_token.encode() not in pickle.dumps(error)
        assert access_token not in repr(vars(error))
    assert unpickled(error).response.status_code == error.status


@pytest.mark.parametrize("make", [faults.error_503, faults.drop_after])
def test_report_of_an_error_holds_no_access_token(
    sandbox: Sandbox, credential: Credential, make: Callable[[], faults.Fault]
) -> None:
    sandbox.plan(make(), endpoint="api", times=None)
    secrets = Secrets()
    secrets.add_grants(sandbox)
    with reporting() as reports:
        reports.of(lambda: credential.session().call("POST", "v2/contacts", json={}))
    assert reports.texts
    assert reports.leaks(secrets) == []
