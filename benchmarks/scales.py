"""The sizes of the measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Scale:
    """The sizes of one run: numbers of credentials, unless noted otherwise."""

    due: int
    rounds: int
    """How many rounds a comparison has."""
    cpu_rounds: int
    """The same for the CPU per refresh."""
    concurrencies: tuple[int, ...]
    """Numbers of threads."""
    due_per_thread: int
    """In the comparison of concurrencies, so that all of them take the same time."""
    claims: int
    """How many claims are timed."""
    claim_stored: tuple[int, int]
    memory_due: tuple[int, int]
    api_calls: int
    """How many calls of each kind are timed."""
    listed: tuple[int, int]
    """Numbers of contacts: in a page, and in the list."""
    peers_due: int
    growth_stored: tuple[int, ...]
    growth_stored_due: int
    growth_due: tuple[int, ...]
    history_stored: int
    history_days: int

    @property
    def accounts(self) -> int:
        """How many accounts the sandbox needs."""
        return max(self.due, *self.memory_due, *self.growth_due)


SCALES: Final[Mapping[str, Scale]] = {
    "full": Scale(
        due=2000,
        rounds=3,
        cpu_rounds=5,
        concurrencies=(4, 8, 12, 16, 24, 32),
        due_per_thread=60,
        claims=60,
        claim_stored=(10_000, 1_000_000),
        memory_due=(1000, 100_000),
        api_calls=2000,
        listed=(1000, 100_000),
        peers_due=200,
        growth_stored=(1000, 10_000, 100_000, 1_000_000),
        growth_stored_due=1000,
        growth_due=(1000, 3000, 10_000, 30_000),
        history_stored=100_000,
        history_days=90,
    ),
    # Only shows whether everything works: too small for meaningful figures.
    "small": Scale(
        due=60,
        rounds=1,
        cpu_rounds=1,
        concurrencies=(4, 8),
        due_per_thread=5,
        claims=5,
        claim_stored=(1000, 5000),
        memory_due=(50, 100),
        api_calls=100,
        listed=(10, 60),
        peers_due=10,
        growth_stored=(100, 1000),
        growth_stored_due=50,
        growth_due=(50, 100),
        history_stored=100,
        history_days=20,
    ),
}
