"""From an answer of Keap's API to the exception for it, whichever HTTP client received it."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from django_infusionsoft.api.quota import Quota
from django_infusionsoft.exceptions import (
    ApiError,
    ApiUnavailable,
    Forbidden,
    Invalid,
    NotFound,
    RateLimited,
    WriteUnconfirmed,
)
from django_infusionsoft.keap.headers import quota_reset, retry_after

# RFC 9110 section 9.2.1: these change nothing.
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
KINDS: Final[Mapping[int, type[ApiError]]] = {
    **dict.fromkeys((400, 409, 413, 414, 415, 422), Invalid),
    403: Forbidden,
    404: NotFound,
    429: RateLimited,
}
MAX_MESSAGE_LENGTH: Final = 1000


class _Answer(NamedTuple):
    code: str
    message: str
    details: list[Any]


def error_for(
    method: str, status: int, headers: Mapping[str, str], body: bytes, *, response: Any = None
) -> ApiError:
    """Return the exception for an answer that is not a success.

    :param headers: of an HTTP client, which ignores the case of their names.
    :param response: for ``ApiError.response``, without an access token.
    """
    answer = _read(body)
    return _kind(method, status)(
        answer.message or _phrase(status),
        status=status,
        code=answer.code,
        details=answer.details,
        response=response,
        quota=Quota.in_headers(headers),
        retry_after=wait_for(headers),
    )


def wait_for(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds to wait by the headers of an answer; ``None`` if they do not say."""
    seconds = retry_after(headers)
    return quota_reset(headers) if seconds is None else seconds


def _kind(method: str, status: int) -> type[ApiError]:
    """A gateway that answers 502, 503 or 504 may have handed on the request; so may a 500."""
    if status >= 500:
        return ApiUnavailable if method.upper() in SAFE_METHODS else WriteUnconfirmed
    return KINDS.get(status, ApiError)


def _read(body: bytes) -> _Answer:
    """Read an error of v1, v2 or the gateway (keap-facts 6 and 7); others have no message."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return _Answer("", "", [])
    fault, details = found.get("fault"), found.get("details")
    if isinstance(fault, dict):
        detail = fault.get("detail")
        code = detail.get("errorcode") if isinstance(detail, dict) else None
        return _Answer(_text(code), _text(fault.get("faultstring")), [])
    return _Answer(
        _text(found.get("code")),
        _text(found.get("message")),
        details if isinstance(details, list) else [],
    )


def _text(value: object) -> str:
    return "" if value is None else str(value)[:MAX_MESSAGE_LENGTH]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "an unknown status"
