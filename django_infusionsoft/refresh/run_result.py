"""The result of a run, and why it ended."""

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Final

from django_infusionsoft.choices import Outcome
from django_infusionsoft.refresh.storing import AttemptResult
from django_infusionsoft.storage.credentials import CredentialRow

# Each costs a request to Keap, which may not know the account; a later run asks for the others.
MAX_UNIDENTIFIED: Final = 5


class Ended(StrEnum):
    """Why a run ended."""

    DONE = "done"
    """Nothing is due any more."""
    TIME_LIMIT = "time_limit"
    STOP = "stop"
    """It was asked to stop."""
    RECENT = "recent"
    """Nothing was done, because another run began a moment ago."""
    KEAP = "keap"
    """All that is due belongs to blocked applications."""


@dataclass(slots=True)
class Run:
    """The counts of a run over the due credentials, by outcome."""

    refreshed: int = 0
    rejected: int = 0
    misconfigured: int = 0
    unavailable: int = 0
    unknown: int = 0
    unreadable: int = 0
    stopped: int = 0
    """Blocked applications: Keap rejects their client, or does not answer."""
    ended: Ended = field(default=Ended.DONE, init=False)
    pruned: int = field(default=0, init=False)
    """How many old events were deleted."""
    unidentified: list[CredentialRow] = field(default_factory=list, init=False)
    """Some refreshed credentials whose account Keap has not named."""

    def as_dict(self) -> dict[str, int]:
        """Return the counts."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}

    @property
    def tried(self) -> int:
        """How many credentials the run tried to refresh."""
        return sum(self.as_dict().values()) - self.stopped

    @property
    def succeeded(self) -> bool:
        """Whether all of them were refreshed, and no application is blocked."""
        return sum(self.as_dict().values()) == self.refreshed

    def count(self, result: AttemptResult) -> None:
        """Count one result."""
        credential, outcome = result.attempt.credential, result.outcome
        name = "refreshed" if outcome == Outcome.OK else outcome.value
        setattr(self, name, getattr(self, name) + 1)
        is_unidentified = outcome == Outcome.OK and credential.account is None
        if is_unidentified and len(self.unidentified) < MAX_UNIDENTIFIED:
            self.unidentified.append(credential)
