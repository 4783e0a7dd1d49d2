"""The one API request that needs no permission: which user authorized it (keap-facts 3)."""

from typing import Any, Final

import requests
from urllib3 import Timeout

from django_infusionsoft import waiting
from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.keap.headers import authorization
from django_infusionsoft.keap.sessions import Session
from django_infusionsoft.keap.urls import resolve

USER_PATH: Final = "v2/oauth/connect/userinfo"
# The result is not worth a longer wait.
CHECK_TIMEOUT_SECONDS: Final = 5.0


def status_for(access_token: str, *, is_key: bool = False) -> int | None:
    """Return the status of the API's reply to an access token; ``None`` if there is none."""
    response = ask(access_token, with_body=False, is_key=is_key)
    return None if response is None else response.status_code


def ask(
    access_token: str, *, with_body: bool = True, is_key: bool = False
) -> requests.Response | None:
    """Return the response of Keap's API to an access token; ``None`` if there is none.

    :param is_key: whether it is a key (keap-facts 5).
    """

    def add_bearer(request: requests.PreparedRequest) -> requests.PreparedRequest:
        # Not with headers=...: requests would prefer credentials from a netrc file.
        name, value = authorization(access_token, is_key=is_key)
        request.headers[name] = value
        return request

    try:
        with (
            Session() as session,
            session.get(
                resolve(USER_PATH),
                auth=add_bearer,
                timeout=timeout(CHECK_TIMEOUT_SECONDS),
                allow_redirects=False,
                stream=not with_body,
            ) as response,
        ):
            return response
    except (requests.RequestException, ConfigurationError):
        return None


def timeout(longest_seconds: float) -> Any:
    """Return a request's timeout, so that its head and its body fit into the caller's limit.

    For ``requests``, whose annotations do not name this type.

    :raises requests.Timeout: no time is left.
    """
    seconds = min(longest_seconds, waiting.seconds_left() / 2)
    if seconds <= 0:
        raise requests.Timeout("No time is left.")
    return Timeout(total=seconds)
