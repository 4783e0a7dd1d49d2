"""What an answer's headers say about Keap's quotas (keap-facts 6 and 13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

# The second one until 2022 (keap-facts 6).
PREFIXES: Final = ("x-keap-", "x-apigee-")


@dataclass(frozen=True, slots=True)
class Limit:
    """How many requests a window allows. Each number is ``None`` if Keap does not name it."""

    limit: int | None = None
    used: int | None = None
    available: int | None = None


UNKNOWN: Final = Limit()


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits of the application and of the account. Each window is a minute or a UTC day."""

    minute: Limit = UNKNOWN
    """Of the application, over all its accounts; of a key's account."""
    day: Limit = UNKNOWN
    tenant_minute: Limit = UNKNOWN
    """Of the account, over all applications."""
    tenant_day: Limit = UNKNOWN

    @classmethod
    def of(cls, response: Any) -> Self:
        """Return the quota that an answer names.

        :param response: anything with ``headers``, such as a ``requests.Response``.
        """
        return cls.in_headers(response.headers)

    @classmethod
    def in_headers(cls, headers: Mapping[str, str]) -> Self:
        """Return the quota that headers name. Blank, absent and unreadable ones are ``None``."""
        by_name = {name.lower(): value for name, value in headers.items()}
        product = _windows(by_name, "product-quota") | _windows(by_name, "product-throttle")
        tenant = _windows(by_name, "tenant-quota") | _windows(by_name, "tenant-throttle")
        return cls(
            minute=product.get("minute", UNKNOWN),
            day=product.get("day", UNKNOWN),
            tenant_minute=tenant.get("minute", UNKNOWN),
            tenant_day=tenant.get("day", UNKNOWN),
        )


def _windows(headers: Mapping[str, str], family: str) -> dict[str, Limit]:
    """Return a family's limits by unit: one, or several that pipes separate."""

    def values(part: str) -> list[str]:
        found = (headers.get(f"{prefix}{family}-{part}") for prefix in PREFIXES)
        return [each.strip() for each in (next(filter(None, found), "")).split("|")]

    numbers = {part: values(part) for part in ("limit", "used", "available")}
    found = {}
    for index, unit in enumerate(values("time-unit")):
        found[unit] = Limit(
            **{part: _number(each, index) for part, each in numbers.items()},
        )
    return found


def _number(values: list[str], index: int) -> int | None:
    text = values[index] if index < len(values) else ""
    return int(text) if text.isdecimal() else None
