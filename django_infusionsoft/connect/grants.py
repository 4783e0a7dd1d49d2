"""Stores a token pair (access and refresh token) that a user has authorized or imported.

It replaces the stored token pair, and the result of a refresh in progress is discarded.
"""

import re
from collections.abc import Callable
from datetime import datetime

from django.contrib.auth.base_user import AbstractBaseUser
from django.db import IntegrityError, connections, router, transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from django_infusionsoft import signals
from django_infusionsoft.choices import EventKind, Kind, Status
from django_infusionsoft.exceptions import NotAllowed
from django_infusionsoft.fields import seal
from django_infusionsoft.keap.oauth import TokenPair, normalize_account
from django_infusionsoft.monitoring import history
from django_infusionsoft.refresh.storing import RENEWED, columns_for
from django_infusionsoft.refresh.timing import refresh_plan
from django_infusionsoft.storage.applications import Application, from_now
from django_infusionsoft.storage.credentials import (
    SHARED_FIELDS,
    CredentialRow,
    Row,
    alias_of,
    row_of,
)
from django_infusionsoft.storage.database import DatabaseNow, is_in_testcase, persist

MayConnect = Callable[[CredentialRow | None], bool]


def imported_pair(
    *, account: object, access_token: object, refresh_token: object, expires_at: object
) -> TokenPair:
    """Return the token pair that was issued to another client.

    :raises ValueError: the account, a token or the time is invalid.
    """
    name = normalize_account(account)
    if name is None:
        raise ValueError(f"{account!r} is not an account name, such as 'ab123'.")
    access_token, refresh_token = _token(access_token), _token(refresh_token)
    if access_token is None or refresh_token is None:
        raise ValueError(f"Account {name}: both tokens are required, each as a single word.")
    if not isinstance(expires_at, datetime) or timezone.is_naive(expires_at):
        raise ValueError(f"Account {name}: expires_at must be a datetime with a time zone.")
    return TokenPair(
        access_token=access_token,
        refresh_token=refresh_token,
        expires_in=int((expires_at - timezone.now()).total_seconds()),
        account=name,
    )


def store(
    model: type[Row],
    pair: TokenPair,
    *,
    application: Application | None,
    user: AbstractBaseUser | None = None,
    expected: CredentialRow | None = None,
    imported: bool = False,
    may_connect: MayConnect | None = None,
) -> Row:
    """Store the token pair in its account's row, report it, and return the credential.

    :raises NotAllowed: ``may_connect`` returned false. Nothing is stored.
    """
    alias = router.db_for_write(model)

    def write() -> tuple[Row, bool] | NotAllowed:
        rows = model._base_manager.using(alias)
        with transaction.atomic(using=alias):
            return _write_row(rows, pair, application, user, expected, may_connect)

    # A code works only once, so its token pair must survive a rollback by the caller. An import
    # can be repeated, and belongs to the caller's transaction.
    result = write() if imported else persist(alias, write, what=f"account={pair.account}")
    if isinstance(result, NotAllowed):
        raise result
    credential, created = result
    _record(credential, pair, created=created, imported=imported, user=user)

    def notify() -> None:
        signals.credential_connected.send_robust(
            sender=model, credential=credential, created=created, user=user
        )

    if imported:
        _after_commit(alias, notify)
    else:
        notify()
    return credential


def disconnect(credential: CredentialRow, *, user: AbstractBaseUser | None = None) -> None:
    """Delete a credential's token pair, and discard the result of a refresh in progress.

    Belongs to the caller's transaction, since a rollback loses nothing.
    """
    empty = seal("")
    columns = {
        **RENEWED,
        "status": Status.DISCONNECTED,
        "generation": F("generation") + 1,
        "access_token": empty,
        "refresh_token": empty,
        # Before now: a statement that began earlier may read the new row, with its own time.
        "expires_at": from_now(-60),
        "refresh_at": None,
    }
    row_of(credential).update(**columns)
    # Before the commit, only the caller's own connection sees the change.
    credential.refresh_from_db(using=alias_of(credential), fields=SHARED_FIELDS)
    history.record(credential, EventKind.DISCONNECTED, on_its_own=False, user=user)
    signals.credential_disconnected.send_robust(
        sender=type(credential), credential=credential, user=user
    )


def _record(
    credential: CredentialRow,
    pair: TokenPair,
    *,
    created: bool,
    imported: bool,
    user: AbstractBaseUser | None,
) -> None:
    """Write the event of a stored token pair."""
    kind = EventKind.CONNECTED if created else EventKind.RECONNECTED
    history.record(
        credential,
        EventKind.IMPORTED if imported else kind,
        on_its_own=not imported,
        user=user,
        # Recognizes the refresh token if the same export is imported again after a refresh.
        fingerprint=history.fingerprint(pair.refresh_token or "") if imported else "",
    )


def _after_commit(alias: str, notify: Callable[[], None]) -> None:
    """Call ``notify`` after the caller's commit; in a ``TestCase``, which never commits, now."""
    if connections[alias].atomic_blocks and not is_in_testcase(alias):
        transaction.on_commit(notify, using=alias)
    else:
        notify()


def _write_row(
    rows: QuerySet[Row],
    pair: TokenPair,
    application: Application | None,
    user: AbstractBaseUser | None,
    expected: CredentialRow | None,
    may_connect: MayConnect | None,
    *,
    is_retry: bool = False,
) -> tuple[Row, bool] | NotAllowed:
    """Return the credential that holds the token pair now, and whether it was created."""
    target, created = _target_row(pair, application, expected), False
    if may_connect is not None:
        existing = _locked(rows, target)
        if not may_connect(existing):
            return NotAllowed(existing)
        # Not a row that another user connects at this moment.
        target = Q(pk__in=[existing.pk] if existing else [])
    columns = {
        **columns_for(pair, seed=str(pair.account), plan=refresh_plan(), now=DatabaseNow()),
        **RENEWED,
        "kind": Kind.GRANT,
        "connected_at": DatabaseNow(),
        "authorized_by_id": user.pk if user else None,
    }
    overwrite = columns | {"generation": F("generation") + 1}
    if not rows.filter(target).update(**overwrite):
        try:
            with transaction.atomic(using=rows.db):
                row = rows.create(
                    account=pair.account, application=application, generation=1, **columns
                )
            target, created = Q(pk=row.pk), True
        except IntegrityError:  # another request has just created the account's row
            if is_retry:
                raise
            return _write_row(rows, pair, application, user, expected, may_connect, is_retry=True)
    return rows.select_related("application").get(target), created


def _locked(rows: QuerySet[Row], target: Q) -> Row | None:
    """Return the row, locked until the end of the transaction."""
    # By primary key: MariaDB locks every row that it scans, and the gaps between them.
    pks = list(rows.filter(target).values_list("pk", flat=True))
    return rows.select_for_update().filter(pk__in=pks).first()


def _target_row(
    pair: TokenPair, application: Application | None, expected: CredentialRow | None
) -> Q:
    """Return a condition for the row that the token pair belongs in; none for a new row."""
    if pair.account is not None:
        return Q(account=pair.account, application=application)
    if expected is None or expected.account is not None:
        return Q(pk__in=[])
    return Q(pk=expected.pk, application=application)


def _token(value: object) -> str | None:
    """Return the token without surrounding whitespace, or ``None`` if it is not a token."""
    token = value.strip() if isinstance(value, str) else ""
    return token if re.fullmatch(r"[!-~]+", token) else None
