"""What the headers of Keap's answers say."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST_SECONDS: Final = 86_400.0


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
