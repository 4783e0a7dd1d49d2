"""The x-keap-* headers of every API reply (keap-facts section 6). Counted, never enforced."""

import threading
from uuid import uuid4

from .people import Account
from .state import Grant
from .switches import Switches

DAY, MINUTE = 86_400, 60
PRODUCT_DAY, PRODUCT_MINUTE = 150_000, 1_500  # per client, over all tenants
TENANT_DAY, TENANT_MINUTE = 250_000, 10_000  # per tenant, any client, since 2026-06-08


class Quota:
    """Counts requests in the current minute and day, by client and by tenant."""

    def __init__(self, switches: Switches) -> None:
        self._switches = switches
        self._windows: dict[tuple[str, int], tuple[int, int]] = {}
        self._lock = threading.Lock()

    def headers(self, now: float, grant: Grant | None) -> dict[str, str]:
        """Count one request, and return its headers, with blank values if it is unauthorized."""
        if self._switches.quota_headers == "off":
            return {}
        names = self._blank_names()
        if grant is None:
            return names
        product = self._product(now, f"client {grant.client_id}")
        return names | product | self._tenant(now, grant.account)

    def _blank_names(self) -> dict[str, str]:
        scopes = ("product-quota", "product-throttle", "tenant-throttle")
        parts = ("limit", "time-unit", "interval", "available", "used")
        names = {f"x-keap-{scope}-{part}": "" for scope in scopes for part in parts}
        names["x-keap-product-quota-expiry-time"] = ""
        names["x-keap-tenant-id"] = ""
        names["x-request-id"] = str(uuid4())
        return names

    def _product(self, now: float, client: str) -> dict[str, str]:
        day, minute = self._count(client, DAY, now), self._count(client, MINUTE, now)
        next_day = (int(now) // DAY + 1) * DAY
        return {
            **_family("product-quota", PRODUCT_DAY, "day", day),
            "x-keap-product-quota-expiry-time": str(next_day * 1000),
            **_family("product-throttle", PRODUCT_MINUTE, "minute", minute),
        }

    def _tenant(self, now: float, account: Account) -> dict[str, str]:
        day = self._count(f"tenant {account.app_id}", DAY, now)
        minute = self._count(f"tenant {account.app_id}", MINUTE, now)
        family = _family("tenant-throttle", TENANT_MINUTE, "minute", minute)
        if self._switches.quota_headers == "piped":
            by_day = _family("tenant-throttle", TENANT_DAY, "day", day)
            family = {name: f"{value}|{by_day[name]}" for name, value in family.items()}
        return {**family, "x-keap-tenant-id": account.host}

    def _count(self, subject: str, window_seconds: int, now: float) -> int:
        current = int(now // window_seconds)
        with self._lock:
            window, used = self._windows.get((subject, window_seconds), (current, 0))
            used = used + 1 if window == current else 1
            self._windows[subject, window_seconds] = (current, used)
            return used


def _family(scope: str, limit: int, time_unit: str, used: int) -> dict[str, str]:
    return {
        f"x-keap-{scope}-limit": str(limit),
        f"x-keap-{scope}-time-unit": time_unit,
        f"x-keap-{scope}-interval": "1",
        f"x-keap-{scope}-available": str(max(0, limit - used)),
        f"x-keap-{scope}-used": str(used),
    }
