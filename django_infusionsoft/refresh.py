"""When to refresh, for one credential and for many: claim → send → store → tell.

A refresh token works once, and whoever loses the reply has lost the account. So the right to
present it is written down first (``leases``), and one attempt is one presentation (``attempts``).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final

from django_infusionsoft.attempts import Settled, needs_a_person, present, send, settle, tell
from django_infusionsoft.choices import Outcome, Status
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import (
    InfusionsoftError,
    RefreshInProgress,
    TemporarilyUnavailable,
)
from django_infusionsoft.leases import Lease, claim, claim_batch
from django_infusionsoft.rows import look

if TYPE_CHECKING:
    from django_infusionsoft.managers import CredentialQuerySet
    from django_infusionsoft.models import Credential

logger = logging.getLogger("django_infusionsoft")

FIRST_POLL_SECONDS: Final = 0.05
LONGEST_POLL_SECONDS: Final = 1.0
# After so many failures in a row of Keap's own, the rest of a run is left to the next one.
FAILURES_THAT_END_A_RUN: Final = 5


@dataclass(slots=True)
class Run:
    """What a run over the due credentials did: counts by outcome, and whom nobody knows yet."""

    refreshed: int = 0
    rejected: int = 0
    misconfigured: int = 0
    unavailable: int = 0
    unknown: int = 0
    unreadable: int = 0
    nameless: list[Credential] = field(default_factory=list, init=False)
    """Refreshed, and of an account that Keap has not told."""

    def as_dict(self) -> dict[str, int]:
        """Return the counts by outcome."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}

    @property
    def went_well(self) -> bool:
        """Whether every credential that was tried has been refreshed."""
        return sum(self.as_dict().values()) == self.refreshed

    def count(self, outcome: Outcome) -> None:
        name = "refreshed" if outcome == Outcome.OK else outcome.value
        setattr(self, name, getattr(self, name) + 1)


def refresh(credential: Credential) -> None:
    """Rotate the pair once, whoever else is trying, and take over the result.

    Returns as well where somebody else has rotated it since ``credential`` was loaded.

    :raises ReauthorizationRequired: a person has to connect the account again.
    :raises ConfigurationError: the client or the keys are wrong.
    :raises TemporarilyUnavailable: later; nothing is lost.
    """
    lease = claim(credential) or _wait_for_other(credential)
    if lease is not None:
        present(credential, lease)


def ensure_access_token(credential: Credential) -> None:
    """See to an access token that works now; the old one serves while it lives.

    :raises InfusionsoftError: as ``refresh``, and only if the access token has ended.
    """
    look(credential)
    if credential.has_fresh_access_token:
        return
    is_alive = credential.has_living_access_token
    if pause := _seconds_to_wait(credential):
        if is_alive:
            return
        credential.refresh_token  # noqa: B018  # a wrong key is nothing that passes
        raise TemporarilyUnavailable(credential.last_error, retry_after=pause)
    if not is_alive:
        refresh(credential)
        return
    # Who refreshes ahead of time risks nothing: a failure is told, and the run tries again.
    with suppress(InfusionsoftError):
        if lease := claim(credential):
            present(credential, lease)


def refresh_due(due: CredentialQuerySet, *, time_limit_seconds: float) -> Run:
    """Refresh what is due, a batch at a time, the calls of a batch side by side.

    Threads do nothing but talk to Keap; every database access is this thread's. The run ends
    when nothing is due, at the time limit, or early where Keap is down. The rest keeps.
    """
    run = Run()
    ends_at = time.monotonic() + time_limit_seconds
    failures_in_a_row = 0
    # The first call is a probe: a dead Keap or a wrong client is met by one credential.
    size = 1
    with ThreadPoolExecutor(conf.REFRESH_CONCURRENCY) as pool:
        while time.monotonic() < ends_at and failures_in_a_row < FAILURES_THAT_END_A_RUN:
            lease, batch = claim_batch(due, size)
            if not batch:
                break
            for settled in _refresh_batch(pool, lease, batch):
                credential, outcome = settled.attempt.credential, settled.outcome
                run.count(outcome)
                if outcome == Outcome.OK and credential.account is None:
                    run.nameless.append(credential)
                failing = outcome in (Outcome.UNAVAILABLE, Outcome.UNKNOWN)
                failures_in_a_row = failures_in_a_row + 1 if failing else 0
                if outcome == Outcome.MISCONFIGURED:
                    due = due.without_application(credential.application_id)
            size = conf.REFRESH_CONCURRENCY
    logger.info("run_finished %s", " ".join(f"{k}={v}" for k, v in run.as_dict().items()))
    return run


def _seconds_to_wait(credential: Credential) -> float:
    """Return how long Keap is to be left alone after a failure; 0 where it is not."""
    if not credential.is_retrying or credential.refresh_at is None:
        return 0.0
    return max(0.0, (credential.refresh_at - credential.now).total_seconds())


def _wait_for_other(credential: Credential) -> Lease | None:
    """Wait until the other's refresh is over.

    :returns: a lease of our own where the other gave up without an outcome, else ``None``.
    """
    seen = credential.generation
    failures: int | None = None
    for pause in _polls():
        leased = look(credential)
        if credential.generation != seen:
            return None
        if credential.status != Status.CONNECTED:
            raise needs_a_person(credential)
        if not leased:
            if failures is not None and credential.failures > failures:
                raise TemporarilyUnavailable(credential.last_error)
            if lease := claim(credential):
                return lease
        failures = credential.failures if failures is None else failures
        time.sleep(pause)
    raise RefreshInProgress(
        f"Another process has been refreshing {credential} for {conf.WAIT_SECONDS:g} seconds."
    )


def _polls() -> Iterator[float]:
    """Yield growing pauses until ``WAIT_SECONDS`` have passed, at least once."""
    ends_at = time.monotonic() + conf.WAIT_SECONDS
    pause = FIRST_POLL_SECONDS
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311  # spreads polls, guards nothing
        if time.monotonic() > ends_at:
            return
        pause = min(pause * 1.5, LONGEST_POLL_SECONDS)


def _refresh_batch(
    pool: ThreadPoolExecutor, lease: Lease, batch: list[Credential]
) -> list[Settled]:
    """Refresh side by side: store every pair as it arrives, and tell all of them afterwards.

    What breaks down or interrupts us is raised in the end: the other replies exist nowhere else.
    """
    calls = [pool.submit(send, credential, lease) for credential in batch]
    all_settled: list[Settled] = []
    troubles: list[BaseException] = []
    while calls:
        try:
            calls.remove(call := next(as_completed(calls)))
            all_settled.append(settle(call.result()))
        except BaseException as error:  # noqa: BLE001
            troubles.append(error)
    for settled in all_settled:
        tell(settled)
    if troubles:
        raise max(troubles, key=lambda trouble: not isinstance(trouble, Exception))
    return all_settled
