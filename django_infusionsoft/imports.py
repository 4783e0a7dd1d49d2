"""Which grants of another client may be stored.

A refresh token works once, and this site rotates it from its import on. So what was imported
before must never come back over what has become of it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from django.apps import apps
from django.db import router, transaction

from django_infusionsoft import history
from django_infusionsoft.choices import EventKind, Status
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import DecryptionError

if TYPE_CHECKING:
    from django_infusionsoft.models import Application, Credential


class Refused(Exception):
    """A grant is not stored. The text says why, and what to do; it holds nothing of the grant."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What another client was given, and the place in its export."""

    line: int
    account: str
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at: datetime
    client_id: str | None = None
    """The OAuth client that it was given to; ``None``: the one that the import is for."""

    @property
    def fingerprint(self) -> str:
        """Tells the refresh token apart."""
        return history.fingerprint(self.refresh_token)


class Importer:
    """Takes the grants of one export, one after the other, each in a transaction of its own."""

    def __init__(
        self,
        model: type[Credential],
        *,
        application: Application | None,
        client_id: str | None,
        replace: bool,
        dry_run: bool,
    ) -> None:
        """
        :param application: whose grants these are; ``None``: those of the client in the settings.
        :param client_id: the only one that grants may name, or ``None`` where each may name its
            own.
        :param replace: whether a grant takes the place of another one that is connected.
        :param dry_run: whether nothing is stored.
        """
        self._model = model
        self._application = application
        self._client_id = client_id
        self._replace = replace
        self._dry_run = dry_run
        self._applications: dict[str, Application | None] = {}
        self._lines: dict[Hashable, int] = {}

    def take(self, grant: Grant) -> bool:
        """Store a grant; return whether it is new, and not the very one that is stored.

        :raises Refused: it is not stored.
        :raises ConfigurationError: there is no key to store anything.
        """
        application = self._application_of(grant)
        self._require_once(grant, application)
        with transaction.atomic(using=router.db_for_write(self._model)):
            found = self._find(grant.account, application)
            if found is not None and not _is_wanted(found, grant, replace=self._replace):
                return False
            if not self._dry_run:
                self._store(grant, application, found)
        return True

    def _application_of(self, grant: Grant) -> Application | None:
        if grant.client_id is None:
            self._require_client()
            return self._application
        if self._client_id not in (None, grant.client_id):
            raise Refused(
                'its "client_id" is not the one of --application: import it without '
                "--application, or with its own."
            )
        if grant.client_id not in self._applications:
            self._applications[grant.client_id] = _application_with(grant.client_id)
        return self._applications[grant.client_id]

    def _require_client(self) -> None:
        if self._application is None and not conf.CLIENT_ID:
            raise Refused(
                "the settings have no client: name the application with --application, or in "
                '"client_id".'
            )

    def _require_once(self, grant: Grant, application: Application | None) -> None:
        """Refuse what another line of the same export speaks of, too."""
        account = (application.pk if application else None, grant.account)
        before = self._lines.setdefault(account, grant.line)
        if before != grant.line:
            raise Refused(
                f"the account is in line {before} already: keep the newer one of the two."
            )
        before = self._lines.setdefault(grant.fingerprint, grant.line)
        if before != grant.line:
            raise Refused(
                f"line {before} has the same refresh token, and a grant is of one account: keep "
                f"the line of the right one."
            )

    def _find(self, account: str, application: Application | None) -> Credential | None:
        """Return the account's credential, which nobody changes before we are done."""
        rows = self._model._base_manager.using(router.db_for_write(self._model))
        same = rows.filter(account=account, application=application)
        return (same if self._dry_run else same.select_for_update()).first()

    def _store(
        self, grant: Grant, application: Application | None, found: Credential | None
    ) -> None:
        credential = self._model.objects.import_tokens(
            account=grant.account,
            access_token=grant.access_token,
            refresh_token=grant.refresh_token,
            expires_at=grant.expires_at,
            application=application,
        )
        if credential.generation != (found.generation + 1 if found else 1):
            raise Refused(
                "somebody else connected the account in the same moment: run the same file again, "
                "which tells how it stands now."
            )


def _application_with(client_id: str) -> Application | None:
    """Return the application with this client; ``None``: the client is the settings' one."""
    # By its name: the models are above this module.
    model: type[Application] = apps.get_model("django_infusionsoft", "Application")
    # Some databases take capital letters for small ones.
    same = [row for row in model.objects.filter(client_id=client_id) if row.client_id == client_id]
    if not same and client_id != conf.CLIENT_ID:
        raise Refused(
            'no application has its "client_id": add one in the admin, under Keap, Applications.'
        )
    return same[0] if same else None


def _is_wanted(found: Credential, grant: Grant, *, replace: bool) -> bool:
    """Tell whether the grant is to take the place of what an account has.

    :raises Refused: it must not.
    """
    if found.status != Status.CONNECTED:
        _require_unspent(found, grant)
        return True
    is_held, is_same = _compare(found, grant)
    if is_same:
        return False
    if is_held or _events(found, grant):
        raise Refused(
            "this refresh token is older than what is stored: this site has had it before. There "
            "is nothing to do."
        )
    if not replace:
        raise Refused(
            "connected already, with another grant, which is kept: only if this one is newer, run "
            "it again with --replace."
        )
    return True


def _require_unspent(found: Credential, grant: Grant) -> None:
    """Refuse a refresh token that this site has presented; one that it only held may live."""
    is_held, _ = _compare(found, grant)
    if is_held or _events(found, grant) - {EventKind.IMPORTED}:
        raise Refused(
            "this site has used this refresh token already, and it works once: export a newer "
            "one, or connect the account in the admin."
        )


def _compare(found: Credential, grant: Grant) -> tuple[bool, bool]:
    """Tell whether the refresh token is the stored one, and whether the whole pair is."""
    try:
        is_held = found.refresh_token == grant.refresh_token
        return is_held, is_held and found.access_token == grant.access_token
    except DecryptionError:  # what no key opens cannot be told from anything
        return False, False


def _events(found: Credential, grant: Grant) -> set[str]:
    """Return what the history tells of the refresh token."""
    events = found.events.using(router.db_for_write(type(found)))
    return set(events.filter(fingerprint=grant.fingerprint).values_list("kind", flat=True))
