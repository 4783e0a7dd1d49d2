"""Keap's XML-RPC API, until its end, over the connections of ``session()``.

Every method takes a key first, which has no meaning any more (keap-facts 4).
"""

import re
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import urljoin
from xmlrpc.client import DateTime, Fault, ServerProxy, dumps, loads

import requests

from django_infusionsoft.api.dates import write_eastern
from django_infusionsoft.api.responses import error_of
from django_infusionsoft.api.session import CredentialSession
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ApiError, Forbidden, Invalid, NotFound
from django_infusionsoft.keap.sessions import Session
from django_infusionsoft.redaction import clears_locals
from django_infusionsoft.storage.credentials import CredentialRow

END: Final = (
    "Keap ends XML-RPC on 2026-12-31. Use session() with v2 instead: v2/contacts for "
    "ContactService, and the resources of v2 for the tables of DataService."
)
# Beside the base of REST, in any installation.
PATH: Final = "../xmlrpc/v1"
KEY: Final = "unused"
WITHOUT_KEY: Final = frozenset({"DataService.getUserInfo"})
# keap-facts 7.
KINDS: Final[Mapping[int, type[ApiError]]] = {
    **dict.fromkeys((0, 9, 10, 11, 12), Invalid),
    **dict.fromkeys((2, 7, 8, 14), Forbidden),
    5: NotFound,
}


class _Session(CredentialSession):
    """Sends to a URL of Keap's outside the REST API."""

    @clears_locals
    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        return Session.prepare_request(self, request)


class KeapServer(ServerProxy):
    """A ``ServerProxy`` whose methods get Keap's key: ``server.ContactService.load(7, ["Id"])``.

    Aware datetimes are sent in US Eastern time. Those that Keap returns are read by
    ``api.dates.read_datetime()``.

    :raises ApiError: Keap's fault, with its ``faultCode`` as ``code``; ``NotFound``,
        ``Forbidden`` or ``Invalid`` by that.
    :raises InfusionsoftError: as a call of ``session()``.
    """

    def __init__(self, session: CredentialSession) -> None:
        self._session = session
        self._url = urljoin(conf.API_URL.rstrip("/") + "/", PATH)
        super().__init__(self._url, allow_none=True)

    def __getattr__(self, name: str) -> "_Method":  # type: ignore[override]
        return _Method(self._send, name)

    @clears_locals
    def _send(self, name: str, arguments: tuple[Any, ...]) -> Any:
        values = tuple(map(_as_keap_takes_it, arguments))
        if name not in WITHOUT_KEY:
            values = (KEY, *values)
        body = dumps(values, name, allow_none=True).encode()
        headers = {"Content-Type": "text/xml", "Accept": "text/xml"}
        response = self._session.post(self._url, data=body, headers=headers)
        if response.status_code != requests.codes.ok:
            raise error_of(response)
        try:
            ((result,), _) = loads(response.content)
        except Fault as fault:
            raise _error_in(fault) from None
        return result


class _Method:
    """A method, or the service before its name."""

    def __init__(self, send: Callable[[str, tuple[Any, ...]], Any], name: str) -> None:
        self._send = send
        self._name = name

    def __getattr__(self, name: str) -> "_Method":
        return _Method(self._send, f"{self._name}.{name}")

    def __call__(self, *arguments: Any) -> Any:
        return self._send(self._name, arguments)


def server(credential: CredentialRow, **limits: Any) -> KeapServer:
    """Return the server for a credential, and warn that it ends.

    :param limits: of ``session()``.
    """
    warnings.warn(END, DeprecationWarning, stacklevel=3)
    return KeapServer(_Session(credential, **limits))


def _as_keap_takes_it(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return DateTime(write_eastern(value))
    if isinstance(value, Mapping):
        return {name: _as_keap_takes_it(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_keap_takes_it(each) for each in value]
    return value


def _error_in(fault: Fault) -> ApiError:
    code, message = int(fault.faultCode), str(fault.faultString)
    text = re.sub(r"^\[\w+\]\s*", "", message)
    return KINDS.get(code, ApiError)(text or message, code=str(code))
