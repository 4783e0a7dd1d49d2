"""Refresh one credential: claim, send, store, report.

A refresh token works once, and a lost reply is a lost account. So the right to present it is
stored first (``leases``), and one attempt presents it once (``sending``).
"""

import math
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

from django.contrib.auth.base_user import AbstractBaseUser
from django.db import Error, router
from django.db.models import Q, QuerySet

from django_infusionsoft import waiting
from django_infusionsoft.choices import EventKind, Outcome, Status
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import (
    DatabaseBusy,
    InfusionsoftError,
    ReauthorizationRequired,
    RefreshInProgress,
    ReplacedRecently,
    TemporarilyUnavailable,
)
from django_infusionsoft.monitoring import alerts
from django_infusionsoft.monitoring.history import Entry, record_all
from django_infusionsoft.refresh import breaker, keys, receivers, spool_folder, timing
from django_infusionsoft.refresh.attempt_pool import AttemptPool
from django_infusionsoft.refresh.leases import AGAIN_SECONDS, Claim, claim, release
from django_infusionsoft.refresh.recovery import recover, reload_and_release
from django_infusionsoft.refresh.reporting import report_previous
from django_infusionsoft.refresh.storing import AttemptResult, reauthorization_error
from django_infusionsoft.storage.credentials import (
    CredentialRow,
    alias_of,
    copy_from,
    is_idle,
    is_refreshable,
    reload,
)
from django_infusionsoft.storage.database import (
    DatabaseNow,
    close_own_connection,
    is_in_testcase,
    own_connection,
)

# The shortest pause between two checks for another process's refresh: inside a transaction each
# check opens a database connection.
POLL_SECONDS: Final = 1.0
# How many credentials one statement makes due: databases and drivers limit its parameters.
REQUESTED_AT_ONCE: Final = 500
# How many primary keys are read at once before that.
KEYS_AT_ONCE: Final = 20_000
# Set when this process has ended a refresh, by database and credential: wakes waiting threads.
_ends: Final[WeakValueDictionary[tuple[str, int], threading.Event]] = WeakValueDictionary()


def refresh(
    credential: CredentialRow,
    *,
    force: bool = False,
    after_401: bool = False,
    user: AbstractBaseUser | None = None,
) -> None:
    """See ``Credential.refresh()``.

    :param force: whether to present the refresh token even after two attempts without an answer or
        after a rejection.
    :param after_401: whether the API has rejected the access token.
    """
    if credential.is_key:
        raise keys.not_refreshed(credential)
    seen = credential.generation
    claim_now = partial(claim, credential, seen=seen, force=force, after_401=after_401, user=user)

    def claim_later(*, has_waited: bool) -> Claim | None:
        if after_401 and has_waited:  # it failed: the next call tries again
            raise ReplacedRecently(
                f"Another process failed to replace the access token of {credential}.",
                retry_after=timing.replacement_pause(0),
            )
        breaker.require_closed(alias_of(credential), credential.application)
        claimed = claim_now()
        if claimed is None and force:
            _require_again_is_due(credential)
        return claimed

    with _own_connection(credential):
        claimed = claim_now() or _wait_for_other(credential, seen, claim_later, force=force)
        if claimed is not None:
            _carry_out(credential, claimed)
    if credential.status == Status.DISCONNECTED:  # by a user, during the refresh
        raise reauthorization_error(credential)


def request_refresh(credentials: QuerySet[CredentialRow], *, user: AbstractBaseUser | None) -> int:
    """Make the connected, idle credentials due, with an event of the user's; return how many."""
    idle = credentials.filter(_may_be_made_due())
    return sum(_make_due(credentials.model, keys, user=user) for keys in _batches(idle))


def _may_be_made_due() -> Q:
    # The repeat after an attempt without an answer keeps its own time.
    return is_idle() & is_refreshable() & Q(status=Status.CONNECTED, unanswered_attempts=0)


def _batches(credentials: QuerySet[CredentialRow]) -> Iterator[list[int]]:
    """Yield the primary keys, some at a time, each once: a filter over a join repeats rows."""
    keys = left = credentials.order_by("pk").values_list("pk", flat=True)
    # Many more than one batch: each of these queries may read the whole table.
    while found := list(left[:KEYS_AT_ONCE]):
        unique = list(dict.fromkeys(found))
        for start in range(0, len(unique), REQUESTED_AT_ONCE):
            yield unique[start : start + REQUESTED_AT_ONCE]
        if len(found) < KEYS_AT_ONCE:
            return
        left = keys.filter(pk__gt=found[-1])


def _make_due(
    model: type[CredentialRow], keys: list[int], *, user: AbstractBaseUser | None
) -> int:
    alias = router.db_for_write(model)
    rows = model._base_manager.using(alias).filter(_may_be_made_due(), pk__in=keys)
    found = list(rows.only("account", "generation"))
    rows.update(refresh_at=DatabaseNow())
    details = {"user": user}
    record_all(
        [Entry(each, EventKind.REFRESH_REQUESTED, details) for each in found], on_its_own=False
    )
    return len(found)


def get_access_token(credential: CredentialRow) -> str:
    """See ``Credential.get_access_token()``."""
    if not credential.has_fresh_access_token:
        with _own_connection(credential):
            _renew_access_token(credential)
    return credential.access_token


def replace_access_token(credential: CredentialRow, rejected: str) -> str:
    """See ``Credential.access_token_instead_of()``."""
    if credential.is_key:
        return keys.key_instead_of(credential, rejected)
    with _own_connection(credential):
        leased = reload(credential)
        if credential.access_token in (rejected, ""):  # or disconnected
            if not leased:
                _require_replaceable(credential)
            refresh(credential, after_401=True)
    return credential.access_token


@contextmanager
def _own_connection(credential: CredentialRow) -> Iterator[None]:
    """Let own transactions share a connection; send the signals after it is closed.

    All waiting in the block has one limit.
    """
    with waiting.limited(), receivers.deferred(), own_connection(alias_of(credential)):
        yield


def _renew_access_token(credential: CredentialRow) -> None:
    try:
        leased = reload_and_release(credential)
    except (Error, DatabaseBusy):
        if credential.has_valid_access_token:
            return
        raise
    if credential.has_fresh_access_token:
        return
    if credential.has_valid_access_token:
        # A failure is reported, and the next run retries.
        with suppress(InfusionsoftError, Error):
            is_done = recover(credential) or _seconds_to_wait(credential)
            if not is_done and (claimed := claim(credential)):
                _carry_out(credential, claimed)
    elif not (recover(credential) and credential.has_valid_access_token):
        if not leased:
            _require_retry_is_due(credential)
        refresh(credential)


def _carry_out(credential: CredentialRow, claimed: Claim) -> None:
    """Present the claimed refresh token, and update the caller's instance with the result."""
    seconds = _prepare(credential, claimed)
    # In a thread: a signal may raise an exception in this one, such as Celery's soft time limit.
    # The answer is read and stored before that exception continues.
    with AttemptPool(1, wait_seconds=seconds, on_end=_end_of(credential).set) as pool:
        pool.start(claimed)
        result = next(pool.results(timeout_seconds=seconds), None)
    if result is None:
        raise TemporarilyUnavailable(
            f"Keap has not replied for {conf.WAIT_SECONDS:g} seconds. Its reply will be stored "
            f"when it arrives."
        )
    if result.error is None:
        copy_from(credential, claimed.credential)
    else:
        # Deleted meanwhile: result.error explains more.
        with suppress(ReauthorizationRequired):
            reload(credential)
    if _requires_action(result, claimed):
        alerts.send_soon(alias_of(credential))
    if result.error is not None:
        raise result.error


def _prepare(credential: CredentialRow, claimed: Claim) -> float:
    """Do what precedes the attempt; return how long to stay. If this fails, release the claim.

    Otherwise others would wait until its lease expires, and count it as an attempt.
    """
    try:
        report_previous(claimed)
        close_own_connection(alias_of(credential))
        return _seconds_to_stay(credential)
    except BaseException:
        release([claimed])
        raise


def _seconds_to_stay(credential: CredentialRow) -> float:
    """Return how long to wait for Keap and for the store, before a thread takes over.

    To the end if a thread cannot store the reply, or would be stopped in between.
    """
    if is_in_testcase(alias_of(credential)) or waiting.threads_disabled():
        return math.inf
    if waiting.process_ends_without_threads():
        return math.inf
    seconds = waiting.seconds_left()
    return seconds if spool_folder.is_usable() else math.inf


def _requires_action(result: AttemptResult, claimed: Claim) -> bool:
    """Whether a user or an administrator must act, or it was overdue: no worker runs."""
    if result.outcome in (Outcome.REJECTED, Outcome.MISCONFIGURED):
        return True
    late = timedelta(seconds=conf.OVERDUE_SECONDS)
    return claimed.due_at is not None and claimed.due_at < claimed.credential.now - late


def _require_retry_is_due(credential: CredentialRow) -> None:
    """Raise ``TemporarilyUnavailable`` during the pause after a failure."""
    if pause := _seconds_to_wait(credential):
        credential.refresh_token  # noqa: B018  # raises for a wrong key, which no retry resolves
        raise TemporarilyUnavailable(credential.last_error, retry_after=pause)


def _seconds_to_wait(credential: CredentialRow) -> float:
    """Return the rest of the pause after a failure, or 0."""
    if not credential.is_retrying or credential.refresh_at is None:
        return 0.0
    return max(0.0, (credential.refresh_at - credential.now).total_seconds())


def _require_replaceable(credential: CredentialRow) -> None:
    """Raise ``ReplacedRecently`` if it is too early to replace a rejected access token.

    The API may reject every access token: because of a missing permission, or a wrong URL.
    """
    if credential.status != Status.CONNECTED:
        return
    age = (credential.now - credential.issued_at).total_seconds()
    pause = timing.replacement_pause(credential.api_rejections) - age
    is_from_refresh = credential.issued_at != credential.connected_at
    if is_from_refresh and age >= 0 and pause > 0:  # age < 0: a clock was wrong
        raise ReplacedRecently(
            f"Keap's API rejected the access token of {credential}, which was refreshed shortly "
            f"before: the cause must be another one.",
            retry_after=pause,
        )


def _require_again_is_due(credential: CredentialRow) -> None:
    """Raise an error if Keap has just rejected the refresh token again."""
    last = credential.presented_again_at
    if last is None or not credential.is_presented_again:
        return
    if 0 <= (credential.now - last).total_seconds() < AGAIN_SECONDS:
        raise reauthorization_error(credential)


def _wait_for_other(
    credential: CredentialRow,
    seen: int,
    claim_later: Callable[..., Claim | None],
    *,
    force: bool,
) -> Claim | None:
    """Wait until another process or thread has refreshed the generation that was seen.

    :returns: a claim for this process if the other one ended without a new token pair, else
        ``None``.
    """
    failures = None
    while True:
        is_over = _end_of(credential)  # before the check, or an end right after it is missed
        leased = reload_and_release(credential)
        if credential.generation != seen or recover(credential):
            return None
        if credential.status != Status.CONNECTED and not (force and credential.may_be_refreshed):
            raise reauthorization_error(credential)
        if not leased:
            if failures is not None and credential.failures > failures:
                _require_retry_is_due(credential)
            if claimed := claim_later(has_waited=failures is not None):
                return claimed
        failures = credential.failures if failures is None else failures
        close_own_connection(alias_of(credential))
        if (left := waiting.seconds_left()) <= 0:
            raise RefreshInProgress(
                f"Another process has been refreshing {credential} for "
                f"{conf.WAIT_SECONDS:g} seconds."
            )
        pause = POLL_SECONDS * random.uniform(1.0, 1.25)  # noqa: S311  # only spreads the checks
        is_over.wait(pause if left - pause > POLL_SECONDS else left)


def _end_of(credential: CredentialRow) -> threading.Event:
    """Return the event that this process's refresh of the credential sets at its end."""
    key = (alias_of(credential), credential.pk)
    if (is_over := _ends.get(key)) is None or is_over.is_set():
        is_over = _ends[key] = threading.Event()
    return is_over
