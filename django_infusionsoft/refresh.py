"""When to refresh one credential: claim → send → store → tell.

A refresh token works once, and whoever loses the reply has lost the account. So the right to
present it is written down first (``leases``), and one attempt is one presentation (``attempts``).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from django.db import Error, router

from django_infusionsoft import alarms, breaker
from django_infusionsoft.attempts import Settled, needs_a_person, tell_abandoned
from django_infusionsoft.calls import Calls
from django_infusionsoft.choices import EventKind, Status
from django_infusionsoft.conf import conf
from django_infusionsoft.database import DatabaseNow
from django_infusionsoft.exceptions import (
    ClientRejected,
    InfusionsoftError,
    ReauthorizationRequired,
    RefreshInProgress,
    TemporarilyUnavailable,
)
from django_infusionsoft.history import Entry, record_all
from django_infusionsoft.leases import Claim, claim
from django_infusionsoft.recovery import recover
from django_infusionsoft.rows import alias_of, is_idle, look, take_over

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.db.models import QuerySet

    from django_infusionsoft.models import Credential

FIRST_POLL_SECONDS: Final = 0.05
LONGEST_POLL_SECONDS: Final = 1.0


def refresh(
    credential: Credential, *, by_will: bool = False, user: AbstractBaseUser | None = None
) -> None:
    """Rotate the pair once, whoever else is trying, and take over the result.

    Returns as well where somebody else has rotated it since ``credential`` was loaded.

    :param by_will: a person's, who wants another attempt even after two without an answer.
    :param user: who that is, for the history.
    :raises ReauthorizationRequired: a person has to connect the account again.
    :raises ConfigurationError: the client or the keys are wrong.
    :raises TemporarilyUnavailable: later; nothing is lost.
    """
    seen = credential.generation
    claimed = claim(credential, seen=seen, by_will=by_will, user=user)
    claimed = claimed or _wait_for_other(credential, seen, by_will=by_will, user=user)
    if claimed is not None:
        _carry_out(credential, claimed)
    if credential.status == Status.DISCONNECTED:  # by a person, while it was being refreshed
        raise needs_a_person(credential)


def request(credentials: QuerySet[Credential], *, user: AbstractBaseUser | None) -> int:
    """Make due what is connected and idle, and tell whose will it was; return how many."""
    # The repeat after an attempt without an answer has a time of its own.
    idle = credentials.filter(is_idle(), status=Status.CONNECTED, unanswered_attempts=0)
    found = list(idle.defer("access_token", "refresh_token"))
    alias = router.db_for_write(credentials.model)
    rows = credentials.model._base_manager.using(alias).filter(is_idle())
    rows.filter(pk__in=[each.pk for each in found]).update(refresh_at=DatabaseNow())
    record_all(
        [Entry(each, EventKind.REFRESH_REQUESTED, {"user": user}) for each in found],
        on_its_own=False,
    )
    return len(found)


def ensure_access_token(credential: Credential) -> None:
    """See to an access token that works now; the old one serves while it lives.

    :raises InfusionsoftError: as ``refresh``, and only if the access token has ended.
    """
    leased = look(credential)
    if credential.has_fresh_access_token:
        return
    if credential.has_living_access_token:
        # Who refreshes ahead of time risks nothing: a failure is told, and the run tries again.
        with suppress(InfusionsoftError, Error):
            _refresh_ahead(credential, leased=leased)
    elif not (recover(credential, in_flight=not leased) and credential.has_living_access_token):
        if not leased:
            _require_patience_is_over(credential)
        refresh(credential)


def _carry_out(credential: Credential, claimed: Claim) -> None:
    """Present what was claimed, and bring the caller's instance up to what came of it."""
    tell_abandoned(claimed)
    with Calls(1) as calls:
        calls.start(claimed)
        (settled,) = calls.settle()
    if settled.error is None:
        take_over(credential, claimed.credential)
    else:
        # Deleted meanwhile, which the error says better.
        with suppress(ReauthorizationRequired):
            look(credential)
    if _concerns_a_person(settled, claimed):
        alarms.tell(alias_of(credential))
    if settled.error is not None:
        raise settled.error


def _concerns_a_person(settled: Settled, claimed: Claim) -> bool:
    """Whether it is lost, or the client refused, or was due for so long that no worker can be
    running.
    """
    if isinstance(settled.error, ReauthorizationRequired | ClientRejected):
        return True
    late = timedelta(seconds=conf.OVERDUE_SECONDS)
    return claimed.due_at is not None and claimed.due_at < claimed.credential.now - late


def _refresh_ahead(credential: Credential, *, leased: bool) -> None:
    if recover(credential, in_flight=not leased) or _seconds_to_wait(credential):
        return
    if claimed := claim(credential):
        _carry_out(credential, claimed)


def _require_patience_is_over(credential: Credential) -> None:
    """Raise ``TemporarilyUnavailable`` where Keap is to be left alone after a failure."""
    if pause := _seconds_to_wait(credential):
        credential.refresh_token  # noqa: B018  # a wrong key is nothing that passes
        raise TemporarilyUnavailable(credential.last_error, retry_after=pause)


def _seconds_to_wait(credential: Credential) -> float:
    """Return how long Keap is to be left alone after a failure; 0 where it is not."""
    if not credential.is_retrying or credential.refresh_at is None:
        return 0.0
    return max(0.0, (credential.refresh_at - credential.now).total_seconds())


def _wait_for_other(
    credential: Credential, seen: int, *, by_will: bool, user: AbstractBaseUser | None
) -> Claim | None:
    """Wait until the other's refresh of the generation that was seen is over.

    :returns: a claim of our own where the other gave up without an outcome, else ``None``.
    """
    failures: int | None = None
    for pause in _polls():
        leased = look(credential)
        if credential.generation != seen or recover(credential, in_flight=not leased):
            return None
        if credential.status != Status.CONNECTED and not (by_will and credential.may_be_refreshed):
            raise needs_a_person(credential)
        if not leased:
            if failures is not None and credential.failures > failures:
                _require_patience_is_over(credential)
            breaker.admit(alias_of(credential), credential.application)
            if claimed := claim(credential, seen=seen, by_will=by_will, user=user):
                return claimed
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
