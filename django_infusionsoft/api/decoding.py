"""What ``call()`` returns or raises for an answer, whichever HTTP client received it."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from django_infusionsoft.api.errors import SAFE_METHODS, error_for
from django_infusionsoft.api.partial_failures import failure_in
from django_infusionsoft.api.quota import Quota
from django_infusionsoft.exceptions import ApiError


def decode(
    method: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    without_secrets: Callable[[], Any],
) -> Any:
    """Return the decoded JSON of an answer; ``None`` if it has no body.

    :param headers: of an HTTP client, which ignores the case of their names.
    :param without_secrets: returns what ``ApiError.response`` is to be.
    :raises ApiError: any other answer than a success with JSON, in one of its subclasses.
    """
    if not 200 <= status < 300:
        raise error_for(method, status, headers, body, response=without_secrets())
    if not body:
        return None
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(
            "The answer is not JSON.", status=status, response=without_secrets()
        ) from None
    if method.upper() in SAFE_METHODS:
        return content
    if failure := failure_in(content, status=status):
        failure.response, failure.quota = without_secrets(), Quota.in_headers(headers)
        raise failure
    return content
