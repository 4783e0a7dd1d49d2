"""What the headers of Keap's answers say."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from django_infusionsoft.conf import conf
from django_infusionsoft.redaction import Secret

AUTHORIZATION: Final = "Authorization"
BEARER: Final = "Bearer "
KEY_HEADER: Final = "X-Keap-API-Key"
LONGEST_SECONDS: Final = 86_400.0


def authorization(access_token: str, *, is_key: bool) -> tuple[str, Secret]:
    """Return the name and the value of the header that sends an access token.

    :param is_key: whether it is a key, for which Keap takes another header, too (keap-facts 5).
    """
    if is_key and conf.KEY_HEADER != AUTHORIZATION:
        return conf.KEY_HEADER, Secret(access_token)
    return AUTHORIZATION, Secret(f"{BEARER}{access_token}")


def access_token_in(headers: Mapping[str, str]) -> Secret | None:
    """Return the access token that a request's headers send; ``None`` if they send none."""
    value = headers.get(AUTHORIZATION, "")
    if value.startswith(BEARER):
        return Secret(value.removeprefix(BEARER))
    key = headers.get(KEY_HEADER)
    return Secret(key) if key else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return seconds from now, a day at most; ``None`` if Keap names no time.

    RFC 9110 section 10.2.3 allows seconds or a date.

    :param headers: of an HTTP client, which ignores the case of their names.
    """
    value = headers.get("Retry-After", "").strip()
    try:
        if value.isdecimal():
            seconds = float(value)
        else:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), LONGEST_SECONDS)


def quota_reset(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until the day's quota is renewed, a day at most, if it is used up.

    ``None`` if it is not, or if Keap does not say so (keap-facts 6).
    """
    if headers.get("x-keap-product-quota-available", "").strip() != "0":
        return None
    expires_at = headers.get("x-keap-product-quota-expiry-time", "").strip()
    if not expires_at.isdecimal():
        return None
    seconds = int(expires_at) / 1000 - datetime.now(UTC).timestamp()
    return min(max(seconds, 0.0), LONGEST_SECONDS)
