"""Reads the names of an account and its user from Keap's API, best effort (keap-facts 3)."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import requests
from django.db import Error, IntegrityError, transaction
from django.db.models import F

from django_infusionsoft.api.session import CredentialSession
from django_infusionsoft.choices import EventKind, Status
from django_infusionsoft.exceptions import DatabaseBusy, InfusionsoftError, SpoolError
from django_infusionsoft.keap import userinfo
from django_infusionsoft.keap.oauth import normalize_account
from django_infusionsoft.keap.userinfo import USER_PATH
from django_infusionsoft.monitoring import history
from django_infusionsoft.refresh.recovery import recover
from django_infusionsoft.storage.credentials import (
    NO_LEASE,
    SHARED_FIELDS,
    CredentialRow,
    Row,
    alias_of,
    is_leased,
    row_of,
)
from django_infusionsoft.storage.database import own_connection, own_transaction
from django_infusionsoft.storage.events import CredentialEvent

logger = logging.getLogger("django_infusionsoft")

# A user waits for this; the names can be read another time.
TIMEOUT_SECONDS: Final = 10
# The token pair (access and refresh token) and all that is known about it.
GRANT_FIELDS: Final = (
    *(name for name in SHARED_FIELDS if name != "generation"),
    "authorized_by_id",
    "account_name",
    "keap_user",
    "keap_user_is_admin",
)


@dataclass(frozen=True, slots=True)
class Profile:
    """An account and the Keap user who authorized it, as far as Keap names them."""

    account: str | None = None
    account_name: str = ""
    keap_user: str = ""
    keap_user_is_admin: bool | None = None


def fetch(credential: CredentialRow) -> Profile:
    """Read the profile; a request that fails leaves its part empty."""
    user: Mapping[str, Any] = {}
    company: Mapping[str, Any] = {}
    failures = requests.RequestException, InfusionsoftError
    # A name is not worth a refresh after a 401.
    session = CredentialSession(credential, replaces_rejected=False, repeats=False)
    with suppress(*failures):
        user = _get(session, USER_PATH) or _get(session, "v1/oauth/connect/userinfo")
        company = _get(session, "v1/account/profile")
    return _profile(user, company)


def account_of(access_token: str) -> str | None:
    """Return the account that an access token belongs to, if Keap names it."""
    response = userinfo.ask(access_token)
    return None if response is None else profile_in(response).account


def profile_in(response: requests.Response) -> Profile:
    """Return the profile in a response to ``USER_PATH``; empty if the response is an error."""
    return _profile(_object(response), {})


def _profile(user: Mapping[str, Any], company: Mapping[str, Any]) -> Profile:
    is_admin = user.get("is_admin")
    return Profile(
        account=user.get("account") or company.get("account"),
        account_name=_text(company.get("name")),
        keap_user=_text(*map(user.get, ("email", "keap_id", "infusionsoft_id"))),
        keap_user_is_admin=is_admin if isinstance(is_admin, bool) else None,
    )


def update(credential: Row) -> Row:
    """Store what Keap says about a credential's account and user.

    :returns: the credential that holds the token pair now: another one if the account of this one
        was unknown, and the account that Keap names already had a credential.
    """
    profile = fetch(credential)
    known = {
        name: value
        for name in ("account_name", "keap_user", "keap_user_is_admin")
        if (value := getattr(profile, name)) not in ("", None)
    }
    credential.__dict__.update(known)  # written below, so not by a later save()
    try:
        if credential.account is None and profile.account is not None:
            # The spool may hold a newer token pair, which would not be found after a merge.
            recover(credential)
            with own_connection(alias_of(credential)):
                return _identify(credential, profile.account, known)
        if known:
            row_of(credential).update(**known)
    except (Error, DatabaseBusy, SpoolError):
        # Best effort: the connection itself is stored.
        logger.exception("profile_not_stored credential=%s", credential.pk)
    return credential


def _identify(unidentified: Row, account: str, known: dict[str, Any]) -> Row:
    """Set the account of an unidentified credential, or merge it into the account's credential.

    :returns: the credential that holds the token pair now.
    """
    alias = alias_of(unidentified)
    with own_transaction(alias):
        try:
            pk, is_merged = _merge_into(unidentified, account, known)
        except IntegrityError:  # the account has just got a row, so merge into that
            pk, is_merged = _merge_into(unidentified, account, known)
        if pk is None:
            return unidentified
        holders = type(unidentified)._base_manager.using(alias).select_related("application")
        identified = holders.get(pk=pk)
    if is_merged:
        history.record(identified, EventKind.IDENTIFIED)
    return identified


def _merge_into(
    unidentified: CredentialRow, account: str, known: dict[str, Any]
) -> tuple[int | None, bool]:
    """Set the account of a row, or move its token pair into the row that has the account.

    A valid grant is preferred; of two valid grants, the one that was connected later.

    :returns: the row that holds the token pair now, if it is known, and whether this call did it.
    """
    alias = alias_of(unidentified)
    rows = type(unidentified)._base_manager.using(alias)
    same_account = rows.filter(application=unidentified.application_id, account=account)
    locked = rows.annotate(is_leased=is_leased()).select_for_update()
    with transaction.atomic(using=alias):
        # Both by primary key: MariaDB locks every row that it scans.
        row = locked.filter(pk=unidentified.pk, identity=unidentified.identity).first()
        target = locked.filter(pk__in=list(same_account.values_list("pk", flat=True))).first()
        if row is None:  # merged by another process, or deleted
            return (target.pk if target else None), False
        if row.account is not None:
            return row.pk, False
        if target is None:
            rows.filter(pk=row.pk).update(account=account, **known)
            return row.pk, True
        if row.is_leased:
            return None, False  # being refreshed, and the reply must find its row
        if _preference(row) > _preference(target):
            # From __dict__, where the secrets are still encrypted.
            grant = {name: row.__dict__[name] for name in GRANT_FIELDS} | known
            rows.filter(pk=target.pk).update(generation=F("generation") + 1, **NO_LEASE, **grant)
        events = CredentialEvent._base_manager.using(alias)
        events.filter(credential_id=row.pk).update(credential_id=target.pk)
        row.delete(using=alias)
        return target.pk, True


def _preference(row: CredentialRow) -> tuple[bool, datetime]:
    return row.status == Status.CONNECTED, row.connected_at


def _get(session: requests.Session, path: str) -> Mapping[str, Any]:
    return _object(session.get(path, timeout=userinfo.timeout(TIMEOUT_SECONDS)))


def _object(response: requests.Response) -> Mapping[str, Any]:
    """Return the JSON object of a response, with Keap's app id as ``account``; empty on errors."""
    try:
        reply = response.json() if response.ok else {}
    except (ValueError, RecursionError):
        return {}
    if not reply or not isinstance(reply, dict):
        return {}
    tenants = reply.get("tenant_id"), response.headers.get("x-keap-tenant-id")
    return {**reply, "account": next(filter(None, map(normalize_account, tenants)), None)}


def _text(*values: object) -> str:
    """Return the first text, without characters that some databases cannot store."""
    strings = [value for value in values if isinstance(value, str)]
    texts = (text.encode(errors="ignore").decode().replace("\0", "").strip() for text in strings)
    return next(filter(None, texts), "")[:200]
