"""Decides which grants of another client may be stored.

A refresh token works only once, and this site rotates it after the import. So an old refresh token
must never replace a newer one.
"""

from collections.abc import Hashable
from dataclasses import KW_ONLY, dataclass, field

from django.db import router, transaction

from django_infusionsoft.choices import EventKind, Status
from django_infusionsoft.conf import conf
from django_infusionsoft.connect.grants import store
from django_infusionsoft.exceptions import DecryptionError, ImportRejected
from django_infusionsoft.keap.oauth import TokenPair
from django_infusionsoft.monitoring import history
from django_infusionsoft.storage.applications import Application
from django_infusionsoft.storage.credentials import CredentialRow, Row
from django_infusionsoft.storage.events import CredentialEvent


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant that was issued to another client, and its line in the export."""

    line: int
    pair: TokenPair
    client_id: str | None = None
    """The OAuth client that it was issued to; ``None``: the one that the import is for."""

    @property
    def account(self) -> str:
        """Keap's app id."""
        return str(self.pair.account)

    @property
    def fingerprint(self) -> str:
        """Identifies the refresh token."""
        return _fingerprint(self.pair)


@dataclass(slots=True)
class Importer:
    """Imports the grants of one export one by one, each in a transaction of its own."""

    model: type[CredentialRow]
    _: KW_ONLY
    application: Application | None
    """Owns the grants; ``None``: the client in the settings."""
    client_id: str | None
    """The only one that grants may name; ``None``: each may name its own."""
    replace: bool
    """Whether a grant may replace another grant of a connected account."""
    dry_run: bool
    """Whether nothing is stored."""
    _applications: dict[str, Application | None] = field(default_factory=dict, init=False)
    _lines: dict[Hashable, int] = field(default_factory=dict, init=False)

    def take(self, grant: Grant) -> bool:
        """Store a grant; return false if the same token pair is already stored.

        :raises ImportRejected: the grant is not stored.
        :raises ConfigurationError: there is no valid encryption key.
        """
        application = self._application_of(grant)
        self._require_once(grant, application)
        with transaction.atomic(using=router.db_for_write(self.model)):
            found = _find(self.model, grant.pair, application, lock=not self.dry_run)
            if found is not None and not _is_wanted(found, grant.pair, replace=self.replace):
                return False
            if not self.dry_run:
                _store(self.model, grant.pair, application, found)
        return True

    def _application_of(self, grant: Grant) -> Application | None:
        if grant.client_id is None:
            if self.application is None and not conf.CLIENT_ID:
                raise ImportRejected(
                    "the settings define no client: specify the application with --application or "
                    'in "client_id".'
                )
            return self.application
        if self.client_id not in (None, grant.client_id):
            raise ImportRejected(
                'its "client_id" does not belong to --application: import it without '
                "--application, or with its own application."
            )
        if grant.client_id not in self._applications:
            self._applications[grant.client_id] = _application_with(grant.client_id)
        return self._applications[grant.client_id]

    def _require_once(self, grant: Grant, application: Application | None) -> None:
        """Reject an account or a refresh token that is on another line of the same export too."""
        account = (application.pk if application else None, grant.account)
        before = self._lines.setdefault(account, grant.line)
        if before != grant.line:
            raise ImportRejected(
                f"the account is already on line {before}: keep the newer of the two lines."
            )
        before = self._lines.setdefault(grant.fingerprint, grant.line)
        if before != grant.line:
            raise ImportRejected(
                f"line {before} has the same refresh token, and a grant belongs to one account: "
                f"keep the line with the correct account."
            )


def import_pair(
    model: type[Row], pair: TokenPair, *, application: Application | None, force: bool
) -> Row:
    """See ``Credential.objects.import_tokens()``."""
    with transaction.atomic(using=router.db_for_write(model)):
        found = _find(model, pair, application, lock=True)
        try:
            if found is None or force or _is_wanted(found, pair, replace=True):
                return _store(model, pair, application, found)
        except ImportRejected as error:
            raise ImportRejected(f"Account {pair.account}: {error}") from None
        return found


def _find(
    model: type[Row], pair: TokenPair, application: Application | None, *, lock: bool
) -> Row | None:
    """Return the account's credential.

    :param lock: whether to lock it until the end of the transaction.
    """
    rows = model._base_manager.using(router.db_for_write(model))
    same = rows.filter(account=pair.account, application=application)
    return (same.select_for_update() if lock else same).first()


def _store(
    model: type[Row], pair: TokenPair, application: Application | None, found: CredentialRow | None
) -> Row:
    credential = store(model, pair, application=application, imported=True)
    if credential.generation != (found.generation + 1 if found else 1):
        raise ImportRejected(
            "the account was connected by another process at the same moment: import again to "
            "see its current state."
        )
    return credential


def _application_with(client_id: str) -> Application | None:
    """Return the application with this client id; ``None``: it is the client in the settings."""
    # Some databases ignore case.
    same = [
        row
        for row in Application.objects.filter(client_id=client_id)
        if row.client_id == client_id
    ]
    if not same and client_id != conf.CLIENT_ID:
        raise ImportRejected(
            'no application has this "client_id": add one in the admin under Keap, Applications.'
        )
    return same[0] if same else None


def _is_wanted(found: CredentialRow, pair: TokenPair, *, replace: bool) -> bool:
    """Return false if the account already has this token pair.

    :raises ImportRejected: the token pair must not replace the stored one.
    """
    if found.status != Status.CONNECTED:
        _require_unspent(found, pair)
        return True
    is_held, is_same = _compare(found, pair)
    if is_same:
        return False
    if is_held or _events(found, pair):
        raise ImportRejected(
            "this refresh token is older than the stored one: this site has already had it. "
            "Nothing to do."
        )
    if not replace:
        raise ImportRejected(
            "already connected with another grant, which is kept: only if this one is newer, "
            "import it again with --replace."
        )
    return True


def _require_unspent(found: CredentialRow, pair: TokenPair) -> None:
    """Reject a refresh token that this site may have presented; one only imported may be valid."""
    is_held, _ = _compare(found, pair)
    events = _events(found, pair)
    imports = [generation for kind, generation in events if kind == EventKind.IMPORTED]
    # A refresh after the import increments the generation, and so does the disconnection. Its own
    # event may have been pruned.
    is_older = bool(imports) and found.generation > max(imports) + 1
    if is_held or is_older or len(imports) < len(events):
        raise ImportRejected(
            "this site has already used this refresh token, which works only once, or replaced "
            "it: export a newer one, or connect the account in the admin."
        )


def _compare(found: CredentialRow, pair: TokenPair) -> tuple[bool, bool]:
    """Return whether the refresh token is the stored one, and whether the token pair is."""
    try:
        is_held = found.refresh_token == pair.refresh_token
        return is_held, is_held and found.access_token == pair.access_token
    except DecryptionError:  # it cannot be compared
        return False, False


def _events(found: CredentialRow, pair: TokenPair) -> list[tuple[str, int]]:
    """Return the kinds and generations of the events with this refresh token."""
    events = CredentialEvent._base_manager.using(router.db_for_write(type(found)))
    same = events.filter(credential_id=found.pk, fingerprint=_fingerprint(pair))
    return list(same.values_list("kind", "generation"))


def _fingerprint(pair: TokenPair) -> str:
    return history.fingerprint(str(pair.refresh_token))
