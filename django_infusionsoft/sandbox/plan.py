"""Which requests meet which fault: the script of a test."""

import threading
from dataclasses import dataclass
from typing import get_args

from .faults import NO_FAULT, Endpoint, Fault

ENDPOINTS: tuple[str, ...] = get_args(Endpoint)


@dataclass
class _Line:
    fault: Fault
    endpoint: str
    account: str | None
    remaining: int | None

    def matches(self, endpoint: str, account: str) -> bool:
        is_here = self.endpoint in ("any", endpoint) or (
            self.endpoint == "token" and endpoint in ("refresh", "exchange")
        )
        return is_here and self.account in (None, account)


class Plan:
    """Lines in order; a request takes the first that fits, which is then used up by one."""

    def __init__(self) -> None:
        self._lines: list[_Line] = []
        self._lock = threading.Lock()

    def add(
        self,
        fault: Fault,
        *,
        endpoint: str,
        times: int | None,
        account: str | None,
    ) -> None:
        if endpoint not in ENDPOINTS:
            known = ", ".join(ENDPOINTS)
            raise ValueError(f"There is no endpoint {endpoint!r}. Known: {known}.")
        if times is not None and times < 1:
            raise ValueError(f"times is 1 or more, or None for always, not {times}.")
        with self._lock:
            self._lines.append(_Line(fault, endpoint, account, times))

    def take(self, endpoint: str, account: str) -> Fault:
        """Return the fault for a request; NO_FAULT when no line fits."""
        if not self._lines:
            return NO_FAULT
        with self._lock:
            for line in self._lines:
                if line.matches(endpoint, account):
                    if line.remaining is not None:
                        line.remaining -= 1
                        if line.remaining == 0:
                            self._lines.remove(line)
                    return line.fault
        return NO_FAULT

    def clear(self) -> None:
        with self._lock:
            self._lines.clear()

    def __len__(self) -> int:
        return len(self._lines)
