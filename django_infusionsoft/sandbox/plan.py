"""The plan of faults: which requests get which fault."""

import threading
from dataclasses import dataclass
from typing import get_args

from .faults import NO_FAULT, Endpoint, Fault, Gate

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
    """Lines in order; a request gets the fault of the first that matches, and uses it once."""

    def __init__(self) -> None:
        self._lines: list[_Line] = []
        self._gates: list[Gate] = []
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
            raise ValueError(f"Unknown endpoint {endpoint!r}. Known: {known}.")
        if times is not None and times < 1:
            raise ValueError(f"times must be 1 or more, or None for always, not {times}.")
        with self._lock:
            self._lines.append(_Line(fault, endpoint, account, times))
            if fault.gate is not None:
                self._gates.append(fault.gate)

    def take(self, endpoint: str, account: str) -> Fault:
        """Return the fault for a request; NO_FAULT if no line matches."""
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

    def release_gates(self) -> None:
        """Release every gate that was planned, including those of used lines."""
        with self._lock:
            for gate in self._gates:
                gate.release()

    def __len__(self) -> int:
        return len(self._lines)
