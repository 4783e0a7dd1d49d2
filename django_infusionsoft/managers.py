"""Words and verbs of applications and credentials."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from django.db import models, router

from django_infusionsoft import grants, refresh, runs
from django_infusionsoft.choices import Condition, Status
from django_infusionsoft.conf import conf
from django_infusionsoft.database import DatabaseNow
from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.oauth import TokenPair, normalize_account
from django_infusionsoft.rows import is_in, read_clock

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

    from django_infusionsoft.models import Application, Credential

# A run that is started every minute by beat or cron ends before the next one.
RUN_TIME_LIMIT_SECONDS = 55.0


class ApplicationManager(models.Manager["Application"]):
    """``Application.objects``."""

    def get_default(self) -> Application | None:
        """Return the application to connect with where nobody names one.

        That is the row marked as default; else the client in the settings (``None``); else the
        only row.

        :raises ConfigurationError: if there is neither, or several rows and no mark.
        """
        rows = list(self.order_by("-is_default", "pk")[:2])
        if rows and rows[0].is_default:
            return rows[0]
        if conf.CLIENT_ID:
            return None
        if len(rows) == 1:
            return rows[0]
        raise ConfigurationError(
            "Several applications, and none is marked as the default: mark one."
            if rows
            else "There is no client to connect with: set INFUSIONSOFT_CLIENT_ID and "
            "INFUSIONSOFT_CLIENT_SECRET, or add an application in the admin."
        )

    def choices(self) -> list[Application | None]:
        """Return what can be connected with, the default first; ``None``: the settings' client."""
        rows: list[Application | None] = list(self.order_by("-is_default", "name", "pk"))
        if not conf.CLIENT_ID:
            return rows
        is_first = not any(row.is_default for row in rows if row)
        return [None, *rows] if is_first else [*rows, None]


class CredentialQuerySet(models.QuerySet["Credential"]):
    """Adjectives, to be chained."""

    def connected(self) -> CredentialQuerySet:
        """Those whose grant is alive as far as we know."""
        return self.filter(status=Status.CONNECTED)

    def needs_reauthorization(self) -> CredentialQuerySet:
        """Those that a person has to connect again."""
        return self.filter(status=Status.REAUTHORIZATION_REQUIRED)

    def in_condition(self, condition: Condition) -> CredentialQuerySet:
        """Those that a person would see described by this word."""
        return self.filter(is_in(condition))

    def due(self) -> CredentialQuerySet:
        """Those to be refreshed by now, by the database's clock. One range of an index."""
        return self.filter(refresh_at__lte=DatabaseNow())

    def request_refresh(self, *, user: AbstractBaseUser | None = None) -> int:
        """Let the next run refresh these, whenever they were due; return how many it will.

        Left out is what a person has to connect, and what is being refreshed.

        :param user: the person whose will it is, for the history.
        """
        return refresh.request(self, user=user)

    def without_application(self, application_id: int | None) -> CredentialQuerySet:
        """Those of other applications; ``None`` is the client in the settings."""
        return self.exclude(application=application_id)


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

        :param application: needed only where several applications are connected to the account.
        :raises Credential.DoesNotExist: the account has never been connected.
        :raises Credential.MultipleObjectsReturned: several applications are.
        """
        name = normalize_account(account)
        # To the database, None would be the credentials whose account nobody knows.
        found = self.none() if name is None else self.filter(account=name)
        if application is not None:
            found = found.filter(application=application)
        return self._only(found, f"account {account!r}")

    def get_default(self) -> Credential:
        """Return the site's only credential. One query.

        :raises Credential.DoesNotExist: nothing is connected yet.
        :raises Credential.MultipleObjectsReturned: there are several: use ``for_account()``.
        """
        return self._only(self.get_queryset(), "this site")

    def _only(self, found: models.QuerySet[Credential], what: str) -> Credential:
        known = found.select_related("application").annotate(database_now=DatabaseNow())
        rows = list(known[:2])
        if not rows:
            raise self.model.DoesNotExist(
                f"No credential for {what}: connect it in the admin or at the authorize view."
            )
        if len(rows) > 1:
            raise self.model.MultipleObjectsReturned(
                f"Several credentials for {what}: name the account and the application."
            )
        credential = rows[0]
        # In the same query, so that a clock that is wrong cannot make an old access token fresh.
        read_clock(credential, credential.database_now)
        return credential

    def import_tokens(
        self,
        *,
        account: str,
        access_token: str,
        refresh_token: str,
        expires_at: datetime,
        application: Application | None = None,
    ) -> Credential:
        """Take over a pair that another client was given; from now on only this app may use it.

        :param expires_at: when the access token ends (aware); in the past is fine.
        :param application: the OAuth client that it was given to; ``None``: the settings' one.
        :raises ValueError: an account, a token or a time that cannot be right; nothing is stored.
        """
        pair = grants.imported_pair(
            account=account,
            access_token=access_token,
            refresh_token=refresh_token,
            expires_at=expires_at,
        )
        return grants.store(self.model, pair, application=application, imported=True)

    def connect(
        self,
        pair: TokenPair,
        *,
        application: Application | None,
        user: AbstractBaseUser | None = None,
        expected: Credential | None = None,
    ) -> Credential:
        """Store a pair that a person has just authorized, in the row of its account.

        :param expected: the credential to be connected again. Its row takes the pair only if the
            pair is of the same account, or neither's account is known.
        """
        return grants.store(
            self.model, pair, application=application, user=user, expected=expected
        )

    def refresh_due(
        self,
        *,
        time_limit_seconds: float = RUN_TIME_LIMIT_SECONDS,
        should_stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[runs.Run], None] = lambda run: None,
    ) -> runs.Run:
        """Refresh what is due, until nothing is or the time is over; return what was done.

        :param time_limit_seconds: after which nothing is begun; answers under way are awaited.
        :param should_stop: asked several times a second; where it says so, the run ends soon.
        :param on_progress: called with the counts so far, after every handful of credentials.
        """
        ends_at = time.monotonic() + time_limit_seconds
        alias = self._db or router.db_for_write(self.model)
        due = self.get_queryset().using(alias).due()
        run = runs.refresh_due(
            due,
            time_limit_seconds=time_limit_seconds,
            should_stop=should_stop,
            on_progress=on_progress,
        )
        for credential in run.nameless:
            if not should_stop() and time.monotonic() < ends_at:
                credential.fetch_profile()
        return run
