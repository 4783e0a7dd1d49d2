"""Who is it that we are connected to? Asked of Keap's API, best effort (keap-facts 3)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import requests
from django.db import Error, IntegrityError, transaction
from django.db.models import F

from django_infusionsoft import history
from django_infusionsoft.choices import EventKind, Status
from django_infusionsoft.database import own_transaction
from django_infusionsoft.exceptions import DatabaseBusy, InfusionsoftError, SpoolError
from django_infusionsoft.oauth import normalize_account
from django_infusionsoft.recovery import recover
from django_infusionsoft.rows import NO_LEASE, alias_of, is_leased, row_of
from django_infusionsoft.sessions import USER_PATH, BearerAuth

if TYPE_CHECKING:
    from django_infusionsoft.models import Credential

logger = logging.getLogger("django_infusionsoft")

# A person waits for this; what does not come at once is asked for another time.
TIMEOUT_SECONDS: Final = 10
# A pair and all that is known of it.
GRANT_FIELDS: Final = (
    "access_token",
    "refresh_token",
    "expires_at",
    "issued_at",
    "refresh_at",
    "status",
    "reason",
    "failures",
    "unanswered_attempts",
    "last_error",
    "connected_at",
    "authorized_by_id",
    "account_name",
    "keap_user",
    "keap_user_is_admin",
)


@dataclass(frozen=True, slots=True)
class Profile:
    """What Keap tells of an account and of the Keap user who authorized it; empty: not told."""

    account: str | None = None
    account_name: str = ""
    keap_user: str = ""
    keap_user_is_admin: bool | None = None


def fetch(credential: Credential) -> Profile:
    """Ask for what can be had; an answer that does not come leaves its part empty."""
    user: Mapping[str, Any] = {}
    company: Mapping[str, Any] = {}
    tenants: list[str] = []
    with credential.session() as session, suppress(requests.RequestException, InfusionsoftError):
        # A name is not worth a refresh.
        session.auth = BearerAuth(credential, survives_401=False)
        user = _get(session, USER_PATH, tenants) or _get(
            session, "v1/oauth/connect/userinfo", tenants
        )
        company = _get(session, "v1/account/profile", tenants)
    return _profile(user, company, tenants)


def profile_in(response: requests.Response) -> Profile:
    """Return what the answer to a question for the user tells, if it is one at all."""
    tenants: list[str] = []
    return _profile(_object(response, tenants), {}, tenants)


def _profile(
    user: Mapping[str, Any], company: Mapping[str, Any], tenants: Sequence[str]
) -> Profile:
    is_admin = user.get("is_admin")
    account = next(filter(None, map(normalize_account, [user.get("tenant_id"), *tenants])), None)
    return Profile(
        account=account,
        account_name=_text(company.get("name")),
        keap_user=_text(*map(user.get, ("email", "keap_id", "infusionsoft_id"))),
        keap_user_is_admin=is_admin if isinstance(is_admin, bool) else None,
    )


def update(credential: Credential) -> Credential:
    """Write down what Keap tells of a credential's account and user.

    :returns: the credential that holds the pair now: another one where this one had no account's
        name, and the account that Keap names had a row already.
    """
    profile = fetch(credential)
    told = {
        name: value
        for name in ("account_name", "keap_user", "keap_user_is_admin")
        if (value := getattr(profile, name)) not in ("", None)
    }
    for name, value in told.items():
        setattr(credential, name, value)
    try:
        if credential.account is None and profile.account is not None:
            # Its pair may move to another row, where nobody would look for what the spool has.
            recover(credential, in_flight=True)
            return _identify(credential, profile.account, told)
        if told:
            row_of(credential).update(**told)
    except (Error, DatabaseBusy, SpoolError):
        # Best effort, in the middle of more important things.
        logger.exception("profile_not_stored credential=%s", credential.pk)
    return credential


def _identify(nameless: Credential, account: str, told: dict[str, Any]) -> Credential:
    """Give a nameless credential its account's name, or its pair to the row that has that name.

    :returns: the credential that holds the pair now.
    """
    alias = alias_of(nameless)
    with own_transaction(alias):
        try:
            pk, has_moved = _move_in(nameless, account, told)
        except IntegrityError:  # another one got this name at the same moment: now it has a row
            pk, has_moved = _move_in(nameless, account, told)
        if pk is None:
            return nameless
        holders = type(nameless)._base_manager.using(alias).select_related("application")
        identified = holders.get(pk=pk)
    if has_moved:
        history.record(identified, EventKind.IDENTIFIED)
    return identified


def _move_in(nameless: Credential, account: str, told: dict[str, Any]) -> tuple[int | None, bool]:
    """Return which row holds the pair now, as far as it is known, and whether we saw to that.

    Of two grants the living one stays; of two living ones that which a person gave later.
    """
    alias = alias_of(nameless)
    rows = type(nameless)._base_manager.using(alias)
    known = rows.filter(application=nameless.application_id, account=account)
    locked = rows.annotate(is_leased=is_leased()).select_for_update()
    with transaction.atomic(using=alias):
        # Both by primary key: MariaDB locks, and waits for, whatever else it looks through.
        row = locked.filter(pk=nameless.pk).first()
        home = locked.filter(pk__in=list(known.values_list("pk", flat=True))).first()
        if row is None:  # somebody else was faster, or it was deleted
            return (home.pk if home else None), False
        if row.account is not None:
            return row.pk, False
        if home is None:
            rows.filter(pk=row.pk).update(account=account, **told)
            return row.pk, True
        if row.is_leased:
            return None, False  # being refreshed just now, and its reply must find its row
        if _merit(row) > _merit(home):
            # Past the attributes, so that the secrets stay encrypted.
            grant = {name: row.__dict__[name] for name in GRANT_FIELDS} | told
            rows.filter(pk=home.pk).update(generation=F("generation") + 1, **NO_LEASE, **grant)
        row.events.using(alias).update(credential_id=home.pk)
        row.delete(using=alias)
        return home.pk, True


def _merit(row: Credential) -> tuple[bool, datetime]:
    return row.status == Status.CONNECTED, row.connected_at


def _get(session: requests.Session, path: str, tenants: list[str]) -> Mapping[str, Any]:
    return _object(session.get(path, timeout=TIMEOUT_SECONDS), tenants)


def _object(response: requests.Response, tenants: list[str]) -> Mapping[str, Any]:
    """Return the answer's object, empty for none; add the tenant that its headers name."""
    if not response.ok:
        return {}
    tenants += filter(None, [response.headers.get("x-keap-tenant-id")])
    try:
        answer = response.json()
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _text(*values: object) -> str:
    """Return the first that is text, as far as every database can hold it."""
    strings = [value for value in values if isinstance(value, str)]
    texts = (text.encode(errors="ignore").decode().replace("\0", "").strip() for text in strings)
    return next(filter(None, texts), "")[:200]
