"""Responses of ``requests``: their bodies, and the exceptions for them."""

from contextlib import suppress
from copy import copy
from typing import Final

import requests
from requests.hooks import default_hooks
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from django_infusionsoft import elapsed
from django_infusionsoft.api.auth import is_stream
from django_infusionsoft.api.errors import error_for
from django_infusionsoft.exceptions import ApiError
from django_infusionsoft.keap.reading import read
from django_infusionsoft.keap.sent import Call

SECRET_HEADERS: Final = ("Authorization", "Proxy-Authorization", "X-Keap-API-Key", "Cookie")
# What is read of a body that nobody needs, so that its connection can be used again.
DISCARDED_BYTES: Final = 64 * 1024
DISCARD_SECONDS: Final = 1.0


def read_body(response: requests.Response, call: Call, limit: int, *, ends_at: float) -> None:
    """Read the body, so that ``response.content`` has it.

    :param limit: in bytes, decompressed.
    :param ends_at: the reading of ``elapsed.monotonic()`` until which to wait.
    :raises HTTPError: of urllib3: it did not arrive in time, or is broken.
    :raises ApiError: it is larger.
    """
    if not isinstance(response.raw, BaseHTTPResponse):  # of a tool for tests
        return
    try:
        sock = call.sock if call.is_sent else None
        content = read(response.raw, limit, ends_at=ends_at, sock=sock)
    except HTTPError:
        response.close()
        raise
    if content is None:
        response.close()
        _set_content(response, b"")
        raise ApiError(
            f"The answer is larger than {limit} bytes: see max_response_bytes of session().",
            status=response.status_code,
            response=without_secrets(response),
        )
    _set_content(response, content)


def discard(response: requests.Response, call: Call) -> None:
    """Read an unread body, or close the connection if that takes long."""
    if vars(response)["_content_consumed"]:
        return
    with suppress(HTTPError, ApiError):
        ends_at = elapsed.monotonic() + DISCARD_SECONDS
        read_body(response, call, DISCARDED_BYTES, ends_at=ends_at)


def error_of(response: requests.Response) -> ApiError:
    """Return the exception for a response that is not a success."""
    return error_for(
        str(response.request.method),
        response.status_code,
        response.headers,
        response.content,
        response=without_secrets(response),
    )


def without_secrets(response: requests.Response) -> requests.Response:
    """Return a copy that can be pickled and reported: without access tokens and streams."""
    request = response.request.copy()
    for name in SECRET_HEADERS:
        request.headers.pop(name, None)
    request.hooks = default_hooks()  # of which one may have the credential
    if is_stream(request.body):
        request.body = None
    copied = copy(response)  # with its content, and without its connection
    copied.request = request
    copied.history = [without_secrets(each) for each in response.history]
    return copied


def _set_content(response: requests.Response, content: bytes) -> None:
    # As its property does, which has no limits.
    vars(response).update(_content=content, _content_consumed=True)
