"""The public models: credentials with their methods, applications and events."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.db import models, router

from django_infusionsoft import elapsed, waiting
from django_infusionsoft.api import xmlrpc
from django_infusionsoft.api.async_session import AsyncCredentialSession
from django_infusionsoft.api.auth import BearerAuth
from django_infusionsoft.api.session import CredentialSession
from django_infusionsoft.api.xmlrpc import KeapServer
from django_infusionsoft.choices import Status
from django_infusionsoft.connect import connection_check, grants, importer, keys, profiles
from django_infusionsoft.connect.connection_check import Answer
from django_infusionsoft.keap.oauth import TokenPair, normalize_account
from django_infusionsoft.redaction import async_clears_locals, clears_locals
from django_infusionsoft.refresh import coroutines, runs, single, trust
from django_infusionsoft.refresh.run_result import Run
from django_infusionsoft.storage.applications import (
    Application,
    ApplicationState,
    ClientState,
    client_of,
)
from django_infusionsoft.storage.callbacks import Callback
from django_infusionsoft.storage.counts import DailyCount
from django_infusionsoft.storage.credentials import CredentialRow, note_clock_offset
from django_infusionsoft.storage.database import DatabaseNow
from django_infusionsoft.storage.events import CredentialEvent
from django_infusionsoft.storage.worker import WorkerState

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django_stubs_ext.db.models.manager import RelatedManager

__all__ = [
    "Application",
    "ApplicationState",
    "Callback",
    "ClientState",
    "Credential",
    "CredentialEvent",
    "CredentialManager",
    "CredentialQuerySet",
    "DailyCount",
    "WorkerState",
    "client_of",
]


Method = TypeVar("Method", bound=Callable[..., Any])


def alters_data(method: Method) -> Method:
    """Keep templates from calling a method that changes something or returns a secret.

    Its exceptions show no local variables in error reports.
    """
    clears = async_clears_locals if iscoroutinefunction(method) else clears_locals
    verb: Any = clears(method)
    vars(verb)["alters_data"] = True
    return cast("Method", verb)


class CredentialQuerySet(models.QuerySet["Credential"]):
    """Filters that can be chained."""

    def connected(self) -> CredentialQuerySet:
        """The credentials whose grant is valid as far as known."""
        return self.filter(status=Status.CONNECTED)

    def needs_reauthorization(self) -> CredentialQuerySet:
        """The credentials that must be reconnected."""
        return self.filter(status=Status.REAUTHORIZATION_REQUIRED)

    def due(self) -> CredentialQuerySet:
        """The credentials to be refreshed by now, by the database's clock. Uses an index."""
        return self.filter(refresh_at__lte=DatabaseNow())

    def bulk_update(
        self, objs: Iterable[Credential], fields: Iterable[str], batch_size: int | None = None
    ) -> int:
        """As Django's, for the columns that ``save()`` writes."""
        names = list(fields)
        self.model.require_editable(names)
        return super().bulk_update(objs, names, batch_size)

    def bulk_create(
        self,
        objs: Iterable[Credential],
        batch_size: int | None = None,
        ignore_conflicts: bool = False,
        update_conflicts: bool = False,
        update_fields: Collection[str] | None = None,
        unique_fields: Collection[str] | None = None,
    ) -> list[Credential]:
        """As Django's. Of stored rows it changes only the columns that ``save()`` writes."""
        self.model.require_editable(update_fields or ())
        return super().bulk_create(
            objs, batch_size, ignore_conflicts, update_conflicts, update_fields, unique_fields
        )

    @alters_data
    def request_refresh(self, *, user: AbstractBaseUser | None = None) -> int:
        """Make these credentials due for the next run; return how many.

        Credentials that must be reconnected or are being refreshed are left out. It works in
        batches, which outside of a transaction are committed one by one.

        :param user: the user who asked for it, for the history.
        """
        return single.request_refresh(self, user=user)


class CredentialManager(models.Manager["Credential"]):
    """``Credential.objects``."""

    def get_queryset(self) -> CredentialQuerySet:
        return CredentialQuerySet(self.model, using=self._db)

    def connected(self) -> CredentialQuerySet:
        return self.get_queryset().connected()

    def needs_reauthorization(self) -> CredentialQuerySet:
        return self.get_queryset().needs_reauthorization()

    def due(self) -> CredentialQuerySet:
        return self.get_queryset().due()

    def for_account(self, account: str, application: Application | None = None) -> Credential:
        """Return the credential of an account, such as ``ab123``. One query.

        :param application: needed only if several applications are connected to the account.
        :raises Credential.DoesNotExist: the account has never been connected.
        :raises Credential.MultipleObjectsReturned: several applications are connected to it.
        """
        name = normalize_account(account)
        # In a filter, None would select the credentials whose account is unknown.
        found = self.none() if name is None else self.filter(account=name)
        if application is not None:
            found = found.filter(application=application)
        return self._only(found, f"account {account!r}")

    async def afor_account(
        self, account: str, application: Application | None = None
    ) -> Credential:
        """See ``for_account()``."""
        return await sync_to_async(self.for_account)(account, application)

    def get_default(self) -> Credential:
        """Return the site's only credential. One query.

        :raises Credential.DoesNotExist: nothing is connected yet.
        :raises Credential.MultipleObjectsReturned: there are several: use ``for_account()``.
        """
        return self._only(self.get_queryset(), "this site")

    def _only(self, found: models.QuerySet[Credential], what: str) -> Credential:
        known = found.select_related("application").annotate(database_now=DatabaseNow())
        rows = list(known.order_by()[:2])
        if not rows:
            raise self.model.DoesNotExist(
                f"No credential for {what}: connect it in the admin or with the authorize view."
            )
        if len(rows) > 1:
            raise self.model.MultipleObjectsReturned(
                f"Several credentials for {what}: specify the account and the application."
            )
        credential = rows[0]
        # In the same query, so that a wrong clock cannot make an expired access token fresh.
        note_clock_offset(credential, credential.database_now)
        return credential

    @alters_data
    def import_tokens(
        self,
        *,
        account: str,
        access_token: str,
        refresh_token: str,
        expires_at: datetime,
        application: Application | None = None,
        force: bool = False,
    ) -> Credential:
        """Store a token pair (access and refresh token) that nothing else uses from now on.

        The stored token pair is returned unchanged if it is the same one.

        :param expires_at: when the access token expires (aware); may be in the past.
        :param application: the client that it was issued to; ``None``: the client in the settings.
        :param force: whether to store even a refresh token that this site has had before.
        :raises ImportRejected: this site has had the refresh token before.
        :raises ValueError: the account, a token or the time is invalid; nothing is stored.
        """
        pair = grants.imported_pair(
            account=account,
            access_token=access_token,
            refresh_token=refresh_token,
            expires_at=expires_at,
        )
        return importer.import_pair(self.model, pair, application=application, force=force)

    @alters_data
    def add_key(
        self,
        *,
        key: str,
        account: str | None = None,
        name: str = "",
        user: AbstractBaseUser | None = None,
    ) -> Credential:
        """Store a personal access token or a service account key of Keap's.

        Keap says which account it belongs to. It is never refreshed. Another key of the account
        is replaced.

        :param account: needed only if Keap does not name it; otherwise it must be the same.
        :param name: a name for the account, such as "Acme Bakery".
        :param user: the user who asked for it, for the history.
        :raises ImportRejected: Keap rejects the key, it is for another account, or the account is
            connected with OAuth. Nothing is stored.
        :raises TemporarilyUnavailable: Keap's API did not answer. Nothing is stored.
        """
        return keys.add(self.model, key=key, account=account, name=name, user=user)

    @alters_data
    def connect(
        self,
        pair: TokenPair,
        *,
        application: Application | None,
        user: AbstractBaseUser | None = None,
        expected: Credential | None = None,
        may_connect: grants.MayConnect | None = None,
    ) -> Credential:
        """Store a token pair that a user has just authorized, in the row of its account.

        :param expected: the credential to reconnect. The pair is stored in its row only if both
            are of the same account, or neither's account is known.
        :param may_connect: called before, with the account's credential or ``None``, whose row is
            locked meanwhile.
        :raises NotAllowed: ``may_connect`` returned false. Nothing is stored.
        :raises DatabaseBusy: it cannot be stored outside the caller's transaction: this has
            another role or search path, or has locked the row.
        """
        return grants.store(
            self.model,
            pair,
            application=application,
            user=user,
            expected=expected,
            may_connect=may_connect,
        )

    @alters_data
    def believe_rejections(self) -> int:
        """Believe Keap's rejections of many accounts in a row, for a day.

        The next run presents their refresh tokens once more.

        :returns: how many accounts have been rejected and not believed so far.
        """
        return trust.believe_rejections(self._db or router.db_for_write(self.model))

    @alters_data
    def refresh_due(
        self,
        *,
        time_limit_seconds: float = runs.RUN_TIME_LIMIT_SECONDS,
        pause_seconds: float = 0.0,
        should_stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Run], None] = lambda run: None,
    ) -> Run:
        """Refresh the due credentials, until none is left or the time is over; return the counts.

        :param time_limit_seconds: no request is sent after this; those under way are completed.
        :param pause_seconds: do nothing if another run began less than this long ago.
        :param should_stop: called several times a second; the run ends soon after it returns True.
        :param on_progress: called with the counts so far, after every few credentials.
        """
        ends_at = elapsed.monotonic() + time_limit_seconds
        alias = self._db or router.db_for_write(self.model)
        due = self.get_queryset().using(alias).due()
        run = runs.refresh_due(
            due,
            time_limit_seconds=time_limit_seconds,
            pause_seconds=pause_seconds,
            should_stop=should_stop,
            on_progress=on_progress,
        )
        with waiting.to_the_end():
            for credential in run.unidentified:
                if not should_stop() and elapsed.monotonic() < ends_at:
                    profiles.update(credential)
        return run


class Credential(CredentialRow):
    """One account's grant to one application: the token pair and its state."""

    objects = CredentialManager()

    if TYPE_CHECKING:
        events: RelatedManager[CredentialEvent]

    @alters_data
    def get_access_token(self) -> str:
        """Return a valid access token; refresh it, or wait for another's refresh, if need be.

        An error is raised only if the current access token has expired. On a loaded credential
        whose access token is fresh this makes no query.

        :raises ReauthorizationRequired: the account must be reconnected.
        :raises ConfigurationError: the client or the encryption keys are wrong.
        :raises TemporarilyUnavailable: a later attempt may succeed; nothing is lost.
        """
        return single.get_access_token(self)

    @alters_data
    def access_token_instead_of(self, rejected: str) -> str:
        """Return another access token than the one that the API has just rejected.

        Take it from the row if another process has refreshed meanwhile; otherwise refresh once.

        :raises ReplacedRecently: it was refreshed less than a minute ago. If the API rejects new
            access tokens too, this time doubles each time, up to an hour. ``retry_after`` says
            how many seconds are left.
        :raises InfusionsoftError: as ``get_access_token()``.
        """
        return single.replace_access_token(self, rejected)

    @alters_data
    def refresh(self, *, user: AbstractBaseUser | None = None) -> None:
        """Rotate the token pair now, once, even if others try at the same time.

        If another process has rotated it since this instance was loaded, use that pair instead.

        :param user: the user who asked for it, for the history.
        :raises InfusionsoftError: as ``get_access_token()``.
        """
        single.refresh(self, force=True, user=user)

    @alters_data
    async def aget_access_token(self) -> str:
        """See ``get_access_token()``."""
        return await coroutines.get_access_token(self)

    @alters_data
    async def aaccess_token_instead_of(self, rejected: str) -> str:
        """See ``access_token_instead_of()``."""
        return await coroutines.replace_access_token(self, rejected)

    @alters_data
    async def arefresh(self, *, user: AbstractBaseUser | None = None) -> None:
        """See ``refresh()``."""
        await coroutines.refresh(self, user=user)

    @alters_data
    def disconnect(self, *, user: AbstractBaseUser | None = None) -> None:
        """Delete the token pair: nothing is refreshed or returned until the account reconnects.

        Keap offers no way to revoke the grant: a user does so there under *API Settings*, or it
        expires.

        :param user: the user who asked for it, for the history.
        """
        grants.disconnect(self, user=user)

    @alters_data
    def test_connection(self, *, user: AbstractBaseUser | None = None) -> Answer:
        """Send one request to Keap's API, as a site's own code does, and return the answer.

        An expired access token is refreshed first.

        :param user: the user who asked for it, for the history.
        :raises InfusionsoftError: as ``get_access_token()``, and if the API cannot be reached.
        """
        return connection_check.test(self, user=user)

    def session(
        self,
        *,
        max_wait: float | None = None,
        response_timeout: float | None = None,
        max_response_bytes: int | None = None,
    ) -> CredentialSession:
        """Return a ``requests.Session`` for this account.

        :param max_wait: how many seconds a call takes at most: a refresh, repeats, pauses and the
            answer together. By default ``INFUSIONSOFT_MAX_WAIT_SECONDS``.
        :param response_timeout: how many seconds one answer takes at most. By default
            ``INFUSIONSOFT_RESPONSE_TIMEOUT_SECONDS``.
        :param max_response_bytes: how large an answer is at most, decompressed. By default
            ``INFUSIONSOFT_MAX_RESPONSE_BYTES``.
        """
        return CredentialSession(
            self,
            max_wait=max_wait,
            response_timeout=response_timeout,
            max_response_bytes=max_response_bytes,
        )

    def asession(
        self,
        *,
        max_wait: float | None = None,
        response_timeout: float | None = None,
        max_response_bytes: int | None = None,
    ) -> AsyncCredentialSession:
        """Return an async client for this account, for ``async with``.

        It needs the extra ``async``. The limits are those of ``session()``.
        """
        return AsyncCredentialSession(
            self,
            max_wait=max_wait,
            response_timeout=response_timeout,
            max_response_bytes=max_response_bytes,
        )

    def xmlrpc(self, *, max_wait: float | None = None) -> KeapServer:
        """Return Keap's XML-RPC API for this account, which ends on 2026-12-31.

        :param max_wait: as in ``session()``.
        """
        return xmlrpc.server(self, max_wait=max_wait)

    @property
    def auth(self) -> BearerAuth:
        """The access token for a ``requests`` session of your own: ``session.auth = …``.

        It is sent to Keap only, and replaced once after a 401.
        """
        return BearerAuth(self)

    @alters_data
    def fetch_profile(self) -> Credential:
        """Ask Keap for the names of the account and the user, best effort, and store them.

        :returns: the credential that has the token pair now: another row if this one had no
            account and Keap names one that is connected already.
        """
        return profiles.update(self)
