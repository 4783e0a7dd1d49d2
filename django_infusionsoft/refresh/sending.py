"""Step 2 of a refresh: present the refresh token once. The caller holds the lease.

During the request no transaction, no row lock and no database connection is held.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

from django.contrib.auth.base_user import AbstractBaseUser

from django_infusionsoft import elapsed
from django_infusionsoft.choices import Reason
from django_infusionsoft.exceptions import (
    DatabaseBusy,
    DecryptionError,
    GrantRejected,
    InfusionsoftError,
    ReauthorizationRequired,
    RefreshInProgress,
    TemporarilyUnavailable,
)
from django_infusionsoft.keap import oauth
from django_infusionsoft.keap.sent import Call
from django_infusionsoft.keap.userinfo import status_for
from django_infusionsoft.monitoring import history
from django_infusionsoft.redaction import clear_locals
from django_infusionsoft.refresh import spool
from django_infusionsoft.refresh.leases import Claim, spool_key
from django_infusionsoft.refresh.spool_folder import DiskFull, Space
from django_infusionsoft.refresh.timing import Plan, refresh_plan
from django_infusionsoft.storage.credentials import CredentialRow, alias_of
from django_infusionsoft.storage.database import is_on_disk_of

logger = logging.getLogger("django_infusionsoft")

# How long the request to the API after a rejection may take; less of the lease left rules it out.
CHECK_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One presentation of a refresh token, and its reply."""

    credential: CredentialRow
    generation: int
    """The generation presented. The instance's may change: threads may share it."""
    reply: spool.SpooledPair | InfusionsoftError
    """The new token pair, in the spool if there is one, or the error."""
    plan: Plan = field(default_factory=Plan)
    """From the settings, read before the request: after the reply nothing may fail."""
    lease_id: str = ""
    due_at: datetime | None = None
    after_401: bool = False
    again: bool = False
    fingerprint: str = ""
    """Of the refresh token presented; empty if none was."""
    seconds: float | None = None
    """How long Keap took; ``None`` if it was not asked."""
    user: AbstractBaseUser | None = None
    """The user who asked for it."""
    is_from_spool: bool = False
    """Whether another process got the reply."""

    def __post_init__(self) -> None:
        if isinstance(self.reply, InfusionsoftError):  # receivers may report it
            clear_locals(self.reply)


def send(claim: Claim, call: Call | None = None) -> Attempt:
    """Present the refresh token once, unless the spool already has the answer to it.

    Runs in threads and uses no database: the credential's application has been loaded with it.

    :param call: the call to make, if the caller may give it up.
    """
    credential, attempt = claim.credential, _attempt(claim)
    try:
        attempt = partial(attempt, plan=refresh_plan())
        client, refresh_token = credential.client, credential.refresh_token
        key = _spool_key(credential, refresh_token)
        # Only an earlier attempt, which did not record its outcome, can have left an answer there.
        if credential.unanswered_attempts and (spooled := spool.load(key)):
            return attempt(reply=spooled, fingerprint=key.fingerprint)
        _check_may_present(claim)
        space = _reserve(claim, key)
    except InfusionsoftError as error:
        return attempt(reply=error)
    except Exception:
        # A lease that is not released would count as an attempt.
        logger.exception("nothing_sent credential=%s", credential.pk)
        broken = "An error occurred before anything was sent: see the log."
        return attempt(reply=TemporarilyUnavailable(broken))
    started, call = elapsed.monotonic(), call or Call(until=claim.lease.send_until)
    try:
        pair = oauth.refresh(client, refresh_token, call)
        # Right after the reply: the spool survives the death of the process.
        reply: spool.SpooledPair | InfusionsoftError = spool.save(key, pair, claim.lease.id, space)
    except GrantRejected as error:
        reply = _diagnose_rejection(claim, error)
    except InfusionsoftError as error:
        reply = error
    finally:
        space.release()
    seconds = elapsed.monotonic() - started
    fingerprint = key.fingerprint if call.is_sent else ""
    return attempt(reply=reply, fingerprint=fingerprint, seconds=seconds)


def give_up(claim: Claim, call: Call) -> Attempt:
    """Return the result of an attempt that is given up before its reply."""
    error, fingerprint, seconds = oauth.give_up(call), "", None
    if call.sent_at is not None:
        seconds = elapsed.monotonic() - call.sent_at
        with suppress(DecryptionError):
            fingerprint = history.fingerprint(claim.credential.refresh_token)
    return _attempt(claim)(reply=error, fingerprint=fingerprint, seconds=seconds)


def _attempt(claim: Claim) -> partial[Attempt]:
    return partial(
        Attempt,
        claim.credential,
        claim.credential.generation,
        lease_id=claim.lease.id,
        due_at=claim.due_at,
        after_401=claim.after_401,
        again=claim.again,
        user=claim.user,
    )


def attempt_from(credential: CredentialRow, spooled: spool.Spooled) -> Attempt:
    """Return the attempt whose reply is in the spool, to be recorded now."""
    attempt = partial(
        Attempt,
        credential,
        spooled.key.generation,
        fingerprint=spooled.key.fingerprint,
        is_from_spool=True,
    )
    if isinstance(spooled, spool.SpooledPair):
        return attempt(reply=spooled, plan=refresh_plan())
    return attempt(
        reply=spooled.error,
        lease_id=spooled.lease_id,
        due_at=spooled.due_at,
        after_401=spooled.after_401,
        again=spooled.again,
    )


def spool_key_of(credential: CredentialRow) -> spool.SpoolKey:
    """Return the key under which the spool has the answer to a credential's refresh token.

    :raises DecryptionError: no encryption key can decrypt the refresh token.
    """
    return _spool_key(credential, credential.refresh_token)


def spooled_error_of(credential: CredentialRow) -> spool.SpooledError | None:
    """Return the outcome in the spool of an attempt with the credential's refresh token."""
    fingerprint = ""
    with suppress(DecryptionError):
        fingerprint = history.fingerprint(credential.refresh_token)
    return spool.load_error(spool_key(credential, credential.generation, fingerprint))


def _spool_key(credential: CredentialRow, refresh_token: str) -> spool.SpoolKey:
    presented = history.fingerprint(refresh_token)
    return spool_key(credential, credential.generation, presented)


def _reserve(claim: Claim, key: spool.SpoolKey) -> Space:
    """Take the space for the reply.

    :raises DatabaseBusy: there is none, and the database needs the same disk.
    """
    try:
        return spool.reserve(key, claim.lease.id)
    except DiskFull as error:
        if is_on_disk_of(alias_of(claim.credential), error.folder):
            raise DatabaseBusy(
                f"The disk of the database and of the spool, {error.folder}, is full: nothing was "
                f"sent, since the reply could not be stored."
            ) from None
        return Space()


def _check_may_present(claim: Claim) -> None:
    """Raise an error if this claim must not present the refresh token."""
    if not claim.may_present:
        raise ReauthorizationRequired(
            "Two attempts received no reply, so the refresh token is not presented again "
            "automatically.",
            reason=Reason.UNANSWERED,
        )
    if not claim.lease.has_time_for_call:
        raise RefreshInProgress(
            "Too little time is left in the lease for a call: nothing was sent."
        )


def _diagnose_rejection(claim: Claim, error: GrantRejected) -> GrantRejected:
    """Distinguish a revoked grant from a refresh token that was used elsewhere.

    A revoked grant invalidates its access token; a refresh does not.
    """
    credential = claim.credential
    is_first = not (claim.again or credential.failures or credential.unanswered_attempts)
    has_time = elapsed.monotonic() + CHECK_SECONDS < claim.lease.ends_at
    if error.reason or not is_first or not has_time or not credential.has_valid_access_token:
        return error
    try:
        status = status_for(credential.access_token)
    except DecryptionError:
        return error
    if status == 401:
        return GrantRejected(str(error), reason=Reason.REVOKED)
    if status != 200:
        return error
    return GrantRejected(
        "Keap rejected a refresh token that this site had never presented, but accepts the "
        "access token issued with it: something else, such as a copy of this database, has used "
        "the refresh token.",
        reason=Reason.USED_ELSEWHERE,
    )
