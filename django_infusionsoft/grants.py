"""A pair comes in by the will of a person: authorized in the browser, or imported.

It wins over whatever the row holds or a refresh still brings home.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from django.db import IntegrityError, connections, router, transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from django_infusionsoft import history, signals
from django_infusionsoft.choices import EventKind, Status
from django_infusionsoft.database import DatabaseNow, persist
from django_infusionsoft.fields import seal
from django_infusionsoft.oauth import TokenPair, normalize_account
from django_infusionsoft.rows import (
    NO_LEASE,
    SHARED_FIELDS,
    alias_of,
    columns_for,
    refresh_plan,
    row_of,
)

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

    from django_infusionsoft.models import Application, Credential


def imported_pair(
    *, account: object, access_token: object, refresh_token: object, expires_at: object
) -> TokenPair:
    """Return what another client was given as a pair, whatever it was kept in.

    :raises ValueError: an account, a token or a time that cannot be right.
    """
    name = normalize_account(account)
    if name is None:
        raise ValueError(f"{account!r} is not the name of an account, such as 'ab123'.")
    access_token, refresh_token = _token(access_token), _token(refresh_token)
    if access_token is None or refresh_token is None:
        raise ValueError(f"Account {name}: both tokens are needed, each of them one word.")
    if not isinstance(expires_at, datetime) or timezone.is_naive(expires_at):
        raise ValueError(f"Account {name}: expires_at must be a datetime with a time zone.")
    return TokenPair(
        access_token=access_token,
        refresh_token=refresh_token,
        expires_in=int((expires_at - timezone.now()).total_seconds()),
        account=name,
    )


def store(
    model: type[Credential],
    pair: TokenPair,
    *,
    application: Application | None,
    user: AbstractBaseUser | None = None,
    expected: Credential | None = None,
    imported: bool = False,
) -> Credential:
    """Write the pair into the row of its account, tell it, and return the credential."""
    alias = router.db_for_write(model)

    def write() -> tuple[Credential, bool]:
        return _put(model._base_manager.using(alias), pair, application, user, expected)

    # A code works once: what it was exchanged for must outlive the caller's transaction. What is
    # imported stays where it comes from, and belongs to the caller's.
    credential, created = (
        write() if imported else persist(alias, write, what=f"account={pair.account}")
    )
    kind = EventKind.CONNECTED if created else EventKind.RECONNECTED
    history.record(
        credential,
        EventKind.IMPORTED if imported else kind,
        on_its_own=not imported,
        user=user,
        # It may come once more, from where it was exported, when it has been rotated here.
        fingerprint=history.fingerprint(pair.refresh_token or "") if imported else "",
    )

    def tell() -> None:
        signals.credential_connected.send_robust(
            sender=model, credential=credential, created=created, user=user
        )

    if imported:
        _after_commit(alias, tell)
    else:
        tell()
    return credential


def forget(credential: Credential, *, user: AbstractBaseUser | None = None) -> None:
    """Forget a credential's pair by the will of a person, whatever a refresh still brings home.

    Belongs to the caller's transaction: nothing is spent.
    """
    nothing = seal("")
    row_of(credential).update(
        generation=F("generation") + 1,
        access_token=nothing,
        refresh_token=nothing,
        expires_at=DatabaseNow(),
        refresh_at=None,
        status=Status.DISCONNECTED,
        reason="",
        failures=0,
        unanswered_attempts=0,
        last_error="",
        **NO_LEASE,
    )
    # By the caller's own connection, which alone sees it before the commit.
    credential.refresh_from_db(using=alias_of(credential), fields=SHARED_FIELDS)
    history.record(credential, EventKind.DISCONNECTED, on_its_own=False, user=user)
    signals.credential_disconnected.send_robust(
        sender=type(credential), credential=credential, user=user
    )


def _after_commit(alias: str, tell: Callable[[], None]) -> None:
    """Call it once the caller's transaction is committed. A ``TestCase``'s never is: now."""
    blocks = connections[alias].atomic_blocks
    if blocks and not any(getattr(block, "_from_testcase", False) for block in blocks):
        transaction.on_commit(tell, using=alias)
    else:
        tell()


def _put(
    rows: QuerySet[Credential],
    pair: TokenPair,
    application: Application | None,
    user: AbstractBaseUser | None,
    expected: Credential | None,
) -> tuple[Credential, bool]:
    """Return the credential that holds the pair now, and whether its row is new."""
    home, created = _home(pair, application, expected), False
    columns = columns_for(pair, seed=str(pair.account), plan=refresh_plan(), now=DatabaseNow()) | {
        "connected_at": DatabaseNow(),
        "authorized_by_id": user.pk if user else None,
    }
    overwrite = columns | {"generation": F("generation") + 1}
    if not rows.filter(home).update(**overwrite):
        try:
            with transaction.atomic(using=rows.db):
                row = rows.create(
                    account=pair.account, application=application, generation=1, **columns
                )
            home, created = Q(pk=row.pk), True
        except IntegrityError:  # another callback for the same account was faster
            if not rows.filter(home).update(**overwrite):
                raise
    return rows.select_related("application").get(home), created


def _home(pair: TokenPair, application: Application | None, expected: Credential | None) -> Q:
    """Return which row the pair belongs in, as far as anybody knows."""
    if pair.account is not None:
        return Q(account=pair.account, application=application)
    if expected is not None and expected.account is None and _is_of(expected, application):
        return Q(pk=expected.pk)
    return Q(pk__in=[])


def _is_of(credential: Credential, application: Application | None) -> bool:
    return credential.application_id == (application.pk if application else None)


def _token(value: object) -> str | None:
    """Return the token without the space around it, or ``None`` where there is none."""
    token = value.strip() if isinstance(value, str) else ""
    return token if re.fullmatch(r"[!-~]+", token) else None
