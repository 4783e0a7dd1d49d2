"""Keap's limits, and the x-keap-* headers of every API reply (keap-facts sections 6 and 13)."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final
from uuid import uuid4

from .gateway import quota_exceeded, spike_arrest
from .messages import Reply
from .state import Grant
from .switches import Switches

PREFIX: Final = "x-keap-"
DAY, MINUTE, SECOND = 86_400, 60, 1
# Of personal access tokens and service account keys (keap-facts section 5).
KEY_LIMITS: Final = {"client_minute": 240, "client_day": 30_000}


@dataclass(frozen=True)
class Usage:
    """How many requests a window has had, and how many it may have. A limit of 0 is none."""

    limit: int
    used: int

    @property
    def is_exceeded(self) -> bool:
        return 0 < self.limit < self.used


class Quota:
    """Counts requests by client and by tenant, and refuses those over a limit."""

    def __init__(self, switches: Switches) -> None:
        self._switches = switches
        self._windows: dict[tuple[str, int], tuple[int, int]] = {}
        self._lock = threading.Lock()

    def apply(
        self,
        now: float,
        grant: Grant,
        make_reply: Callable[[], Reply],
        *,
        is_enforced: bool = True,
    ) -> Reply:
        """Count a request; return the reply, or the 429 of an exceeded limit, with headers."""
        usage = self._count(now, grant)
        refusal = _refusal(usage) if is_enforced and self._switches.quota_enforced else None
        reply = refusal or make_reply()
        if reply.status == 401:
            return self.unauthorized(reply)
        return self._with_headers(reply, self._headers(now, grant, usage))

    def unauthorized(self, reply: Reply) -> Reply:
        """Return a 401 with its headers: units and intervals, but no numbers."""
        return self._with_headers(reply, self._families({}))

    def _with_headers(self, reply: Reply, headers: Mapping[str, str]) -> Reply:
        if self._switches.quota_headers == "off":
            return reply
        common = {
            f"{PREFIX}product-quota-expiry-time": "",
            f"{PREFIX}tenant-id": "",
            "x-request-id": str(uuid4()),
        }
        return replace(reply, headers={**common, **headers, **reply.headers})

    def _headers(self, now: float, grant: Grant, usage: Mapping[str, Usage]) -> dict[str, str]:
        next_day = (int(now) // DAY + 1) * DAY
        return {
            **self._families(usage),
            f"{PREFIX}product-quota-expiry-time": str(next_day * 1000),
            f"{PREFIX}tenant-id": grant.account.host,
        }

    def _families(self, usage: Mapping[str, Usage]) -> dict[str, str]:
        tenant = _family("tenant-throttle", "minute", usage.get("tenant_minute"))
        if self._switches.quota_headers == "piped":
            by_day = _family("tenant-throttle", "day", usage.get("tenant_day"))
            tenant = {name: f"{value}|{by_day[name]}" for name, value in tenant.items()}
        return {
            **_family("product-quota", "day", usage.get("client_day")),
            **_family("product-throttle", "minute", usage.get("client_minute")),
            **tenant,
        }

    def _count(self, now: float, grant: Grant) -> dict[str, Usage]:
        tenant, limits = f"tenant {grant.account.app_id}", self._limits(grant)
        # All keys of an account together (keap-facts section 13).
        client = f"keys of {tenant}" if grant.is_key else f"client {grant.client_id}"
        windows = {
            "client_second": (client, SECOND),
            "client_minute": (client, MINUTE),
            "client_day": (client, DAY),
            "tenant_minute": (tenant, MINUTE),
            "tenant_day": (tenant, DAY),
        }
        return {
            name: Usage(limits[name], self._used(*window, now)) for name, window in windows.items()
        }

    def _limits(self, grant: Grant) -> dict[str, int]:
        names = ("client_second", "client_minute", "client_day", "tenant_minute", "tenant_day")
        limits = {name: int(getattr(self._switches, f"{name}_limit")) for name in names}
        return limits | KEY_LIMITS if grant.is_key else limits

    def _used(self, subject: str, window_seconds: int, now: float) -> int:
        current = int(now // window_seconds)
        with self._lock:
            window, used = self._windows.get((subject, window_seconds), (current, 0))
            used = used + 1 if window == current else 1
            self._windows[subject, window_seconds] = (current, used)
            return used


def quota_headers(reply: Reply) -> dict[str, str]:
    """Return a reply's headers that are about limits."""
    return {name: value for name, value in reply.headers.items() if name.startswith(PREFIX)}


def _refusal(usage: Mapping[str, Usage]) -> Reply | None:
    if usage["client_second"].is_exceeded:
        return spike_arrest(usage["client_second"].limit)
    return quota_exceeded() if any(each.is_exceeded for each in usage.values()) else None


def _family(scope: str, time_unit: str, usage: Usage | None) -> dict[str, str]:
    parts = {"limit": "", "available": "", "used": "", "time-unit": time_unit, "interval": "1"}
    if usage is not None:
        parts["limit"] = str(usage.limit)
        parts["available"] = str(max(0, usage.limit - usage.used))
        parts["used"] = str(usage.used)
    return {f"{PREFIX}{scope}-{part}": value for part, value in parts.items()}
