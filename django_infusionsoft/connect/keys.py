"""Adds keys: Keap's personal access tokens and service account keys (keap-facts 5)."""

import re
from typing import Any, Final

from django.contrib.auth.base_user import AbstractBaseUser
from django.db import IntegrityError, router, transaction
from django.db.models import F, Q

from django_infusionsoft import signals
from django_infusionsoft.choices import EventKind, Kind, Status
from django_infusionsoft.connect.profiles import Profile, profile_in
from django_infusionsoft.exceptions import ImportRejected, TemporarilyUnavailable
from django_infusionsoft.fields import seal
from django_infusionsoft.keap import userinfo
from django_infusionsoft.keap.oauth import normalize_account
from django_infusionsoft.monitoring import history
from django_infusionsoft.refresh.keys import NEVER
from django_infusionsoft.refresh.storing import RENEWED
from django_infusionsoft.storage.credentials import Row
from django_infusionsoft.storage.database import DatabaseNow

UNAUTHORIZED: Final = 401


def add(
    model: type[Row],
    *,
    key: str,
    account: str | None,
    name: str,
    user: AbstractBaseUser | None,
) -> Row:
    """See ``Credential.objects.add_key()``."""
    key = key.strip()
    if not re.fullmatch(r"[!-~]+", key):
        raise ImportRejected("This is not a key: it has spaces or line breaks, or is empty.")
    profile = _ask(key)
    found = _account(profile, account)
    columns = {
        **RENEWED,
        "kind": Kind.KEY,
        "access_token": seal(key),
        "refresh_token": seal(""),
        "issued_at": DatabaseNow(),
        "connected_at": DatabaseNow(),
        "expires_at": NEVER,
        "refresh_at": None,
        "api_rejections": 0,
        "presented_again_at": None,
        "authorized_by_id": user.pk if user else None,
        "account_name": name or profile.account_name,
        "keap_user": profile.keap_user,
        "keap_user_is_admin": profile.keap_user_is_admin,
    }
    credential, created = _store(model, found, columns)
    kind = EventKind.CONNECTED if created else EventKind.RECONNECTED
    history.record(credential, kind, on_its_own=False, user=user)
    signals.credential_connected.send_robust(
        sender=model, credential=credential, created=created, user=user
    )
    return credential


def _ask(key: str) -> Profile:
    response = userinfo.ask(key, is_key=True)
    if response is None:
        raise TemporarilyUnavailable("Keap's API cannot be reached: nothing was stored.")
    if response.status_code == UNAUTHORIZED:
        raise ImportRejected("Keap rejects this key. Copy it again, or create another one.")
    if not response.ok:
        raise TemporarilyUnavailable(
            f"Keap's API responded with HTTP {response.status_code}: nothing was stored."
        )
    return profile_in(response)


def _account(profile: Profile, account: str | None) -> str:
    given = None if account is None else normalize_account(account)
    if account is not None and given is None:
        raise ValueError(f"{account!r} is not an account name, such as 'ab123'.")
    if profile.account is None and given is None:
        raise ImportRejected("Keap does not name the account of this key: specify the account.")
    if None not in (profile.account, given) and profile.account != given:
        raise ImportRejected(f"This key is for account {profile.account}, not for {given}.")
    return str(profile.account or given)


def _store(
    model: type[Row], account: str, columns: dict[str, Any], *, is_retry: bool = False
) -> tuple[Row, bool]:
    """Store the key in its account's row; return the credential, and whether it is new."""
    alias = router.db_for_write(model)
    rows = model._base_manager.using(alias)
    row = rows.filter(account=account, application=None)
    is_free = Q(kind=Kind.KEY) | ~Q(status=Status.CONNECTED)
    if row.filter(is_free).update(**columns, generation=F("generation") + 1):
        return row.get(), False
    if row.exists():
        raise ImportRejected(
            f"Account {account} is connected with OAuth. Disconnect it first, or use it as it is."
        )
    try:
        with transaction.atomic(using=alias):
            created = rows.create(account=account, generation=1, **columns)
    except IntegrityError:  # another request has just created the account's row
        if is_retry:
            raise
        return _store(model, account, columns, is_retry=True)
    return rows.get(pk=created.pk), True
