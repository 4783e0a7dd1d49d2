"""XML-RPC over the connections of a session."""

from collections.abc import Iterator
from datetime import UTC, datetime
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from xmlrpc.client import DateTime, Fault, dumps, loads

import pytest
from django.test import override_settings

from django_infusionsoft.api.dates import read_datetime
from django_infusionsoft.exceptions import ApiError, Forbidden, Invalid, NotFound, RateLimited
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox

pytestmark = pytest.mark.filterwarnings("ignore:Keap ends XML-RPC:DeprecationWarning")

FAULT = b'{"fault": {"faultstring": "Spike", "detail": {"errorcode": "policies.ratelimit"}}}'


class QuietHandler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


class Endpoint:
    """Keap's XML-RPC, which records the calls; ``replies`` are returned first."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.bearers: list[str] = []
        self.replies: list[tuple[str, bytes]] = []

    def __call__(self, environ: dict[str, Any], start: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        self.bearers.append(environ["HTTP_AUTHORIZATION"])
        arguments, name = loads(body)
        self.calls.append((str(name), arguments))
        default = "200 OK", dumps((7,), methodresponse=True).encode()
        status, content = self.replies.pop(0) if self.replies else default
        start(status, [("Content-Type", "text/xml"), ("Content-Length", str(len(content)))])
        return [content]

    def returns(self, value: Any) -> None:
        content = value if isinstance(value, Fault) else (value,)
        response = dumps(content, methodresponse=True, allow_none=True).encode()
        self.replies.append(("200 OK", response))


@pytest.fixture
def endpoint(sandbox: Sandbox) -> Iterator[Endpoint]:
    found = Endpoint()
    with make_server("127.0.0.1", 0, found, handler_class=QuietHandler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/crm/rest/"
        with override_settings(INFUSIONSOFT_API_URL=url):
            yield found
        server.shutdown()
        thread.join()


def test_key_is_filled_in_and_the_access_token_is_sent(
    endpoint: Endpoint, credential: Credential
) -> None:
    server = credential.xmlrpc()
    assert server.ContactService.add({"FirstName": "Nell"}) == 7
    assert server.DataService.getUserInfo() == 7
    (name, (key, data)), (_, arguments) = endpoint.calls
    assert (name, data, arguments) == ("ContactService.add", {"FirstName": "Nell"}, ())
    assert isinstance(key, str)
    assert set(endpoint.bearers) == {f"Bearer {credential.access_token}"}


def test_dates_and_nil_are_those_of_keap(endpoint: Endpoint, credential: Credential) -> None:
    moment = datetime(2026, 7, 5, 14, tzinfo=UTC)
    endpoint.returns({"LastUpdated": DateTime("20260705T10:00:00"), "Phone1": None})
    found = credential.xmlrpc().DataService.update("Contact", 7, {"LastUpdated": moment})
    assert endpoint.calls[0][1][-1] == {"LastUpdated": DateTime("20260705T10:00:00")}
    assert read_datetime(found["LastUpdated"]) == moment
    assert found["Phone1"] is None


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (0, "No method matching arguments: java.lang.String", Invalid),
        (5, "[RecordNotFound]No such contact", NotFound),
        (10, "[NoFieldFound]No field: x", Invalid),
        (14, "[NoAccess]Access denied", Forbidden),
        (4, "[DatabaseError]Oops", ApiError),
    ],
)
def test_fault_is_an_error_of_the_api(
    endpoint: Endpoint, credential: Credential, code: int, text: str, kind: type[ApiError]
) -> None:
    endpoint.returns(Fault(code, text))
    with pytest.raises(ApiError) as caught:
        credential.xmlrpc().ContactService.load(7, ["Id"])
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.message) == (
        str(code),
        text.partition("]")[2] or text,
    )


def test_401_is_followed_by_one_refresh(
    endpoint: Endpoint, sandbox: Sandbox, credential: Credential
) -> None:
    endpoint.replies.append(("401 Unauthorized", b"{}"))
    assert credential.xmlrpc().ContactService.load(7, ["Id"]) == 7
    assert len(sandbox.token_requests) == 1
    assert len(set(endpoint.bearers)) == 2


def test_limit_of_keap_is_an_error_of_the_api(endpoint: Endpoint, credential: Credential) -> None:
    endpoint.replies += [("429 Too Many Requests", FAULT)] * 9
    with pytest.raises(RateLimited):
        credential.xmlrpc(max_wait=0.5).ContactService.load(7, ["Id"])


def test_warning_names_the_end_and_the_successor(credential: Credential) -> None:
    with pytest.warns(DeprecationWarning, match=r"2026-12-31.*v2/contacts") as caught:
        credential.xmlrpc()
    assert [each.filename for each in caught] == [__file__]
