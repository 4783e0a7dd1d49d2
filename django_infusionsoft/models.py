"""Applications, credentials and their history."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models, router, transaction
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_infusionsoft import connectivity, grants, profiles, refresh, rows
from django_infusionsoft.choices import Condition, EventKind, Outcome, Reason, Status, Trouble
from django_infusionsoft.conf import conf
from django_infusionsoft.connectivity import Answer
from django_infusionsoft.exceptions import ConfigurationError, DecryptionError
from django_infusionsoft.fields import EncryptedTextField
from django_infusionsoft.managers import ApplicationManager, CredentialManager
from django_infusionsoft.oauth import Client
from django_infusionsoft.sessions import CredentialSession

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.db.models.base import ModelBase
    from django_stubs_ext.db.models.manager import RelatedManager


class Application(models.Model):
    """An OAuth client registered at Keap's developer portal."""

    name = models.CharField(_("name"), max_length=100)
    client_id = models.CharField(_("client id"), max_length=255, unique=True)
    client_secret = EncryptedTextField(_("client secret"))
    is_default = models.BooleanField(
        _("default"), default=False, help_text=_("Used where nobody names an application.")
    )
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    objects = ApplicationManager()

    class Meta:
        verbose_name = _("application")
        verbose_name_plural = _("applications")
        ordering = ["name", "pk"]

    def __str__(self) -> str:
        return self.name

    def save(
        self,
        *,
        force_insert: bool | tuple[ModelBase, ...] = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Iterable[str] | None = None,
    ) -> None:
        alias = using or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=alias):
            if self.is_default:
                others = type(self)._base_manager.using(alias).exclude(pk=self.pk)
                others.filter(is_default=True).update(is_default=False)
            super().save(
                force_insert=force_insert,
                force_update=force_update,
                using=alias,
                update_fields=update_fields,
            )

    @property
    def client(self) -> Client:
        """The client as the authorization server knows it.

        :raises ConfigurationError: the secret cannot be decrypted.
        """
        try:
            return Client(self.client_id, self.client_secret)
        except DecryptionError as error:
            # Not as a DecryptionError: it concerns every credential of this application.
            raise ConfigurationError(f"Application {self.name!r}: {error}") from error


class ApplicationState(models.Model):
    """How Keap takes an application's client: whether it is used, and how fast."""

    application = models.OneToOneField(
        Application,
        verbose_name=_("application"),
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="state",
        help_text=_("Empty: the client in the settings."),
    )
    # As a credential's.
    application_key = models.GeneratedField(
        expression=Coalesce("application_id", 0),
        output_field=models.BigIntegerField(),
        db_persist=True,
    )
    trouble = models.CharField(_("trouble"), max_length=20, choices=Trouble.choices, blank=True)
    since = models.DateTimeField(_("since"))
    # Tells one trouble from the next, and which of them has been told.
    trips = models.PositiveIntegerField(_("troubles so far"), default=0)
    told_trip = models.PositiveIntegerField(default=0, editable=False)
    told_at = models.DateTimeField(null=True, editable=False)
    # Which clients were tried in this trouble: keyed hashes, to notice another one.
    client_marks = models.CharField(max_length=255, blank=True, editable=False)
    probes = models.PositiveIntegerField(_("probes in vain"), default=0)
    probe_at = models.DateTimeField(_("next probe"))
    # Whether a mail has told of the trouble.
    is_alerted = models.BooleanField(default=False, editable=False)
    # By the ceiling of requests per second: until when every place is taken.
    booked_until = models.DateTimeField(null=True, editable=False)

    if TYPE_CHECKING:
        application_id: int | None
        database_now: datetime  # when it was read, by the database's clock

    class Meta:
        verbose_name = _("application state")
        verbose_name_plural = _("application states")
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["application_key"], name="infusionsoft_one_state_per_application"
            )
        ]

    def __str__(self) -> str:
        return str(self.application or _("client in the settings"))

    @property
    def client(self) -> Client:
        """The client that this is about.

        :raises ConfigurationError: it is not configured.
        """
        return client_of(self.application)


class Upkeep(models.Model):
    """What the processes of a site know of each other: one row, by the database's clock."""

    THE_ONE = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=THE_ONE)
    run_seen_at = models.DateTimeField(_("a run was seen"), null=True)
    run_ended_at = models.DateTimeField(_("last run ended"), null=True)
    run_ended = models.CharField(_("why it ended"), max_length=20, blank=True)
    run_refreshed = models.PositiveIntegerField(_("refreshed by it"), default=0)
    run_failed = models.PositiveIntegerField(_("not refreshed by it"), default=0)
    run_worker = models.CharField(_("process"), max_length=100, blank=True)
    # Who sends a mail has it until then; and when the last one was sent, and the last that said
    # that refreshes are overdue.
    mail_until = models.DateTimeField(null=True)
    mailed_at = models.DateTimeField(null=True)
    overdue_mailed_at = models.DateTimeField(null=True)

    if TYPE_CHECKING:
        database_now: datetime  # when it was read, by the database's clock

    class Meta:
        verbose_name = _("upkeep")
        verbose_name_plural = _("upkeep")
        default_permissions = ()

    def __str__(self) -> str:
        return str(_("upkeep"))


class Credential(models.Model):
    """One account's grant to one application: the token pair and its life."""

    Status = Status
    Reason = Reason

    application = models.ForeignKey(
        Application,
        verbose_name=_("application"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="credentials",
        help_text=_("Empty: the client in the settings."),
    )
    # Makes "no application" one value: in a unique constraint NULL differs from NULL.
    application_key = models.GeneratedField(
        expression=Coalesce("application_id", 0),
        output_field=models.BigIntegerField(),
        db_persist=True,
    )
    # NULL where Keap has not told it, which may be so of several.
    account = models.CharField(_("account"), max_length=100, null=True, blank=True)  # noqa: DJ001
    account_name = models.CharField(_("account name"), max_length=200, blank=True)
    authorized_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("authorized by"),
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
    )
    keap_user = models.CharField(_("Keap user"), max_length=200, blank=True)
    keap_user_is_admin = models.BooleanField(_("Keap user is admin"), null=True)

    access_token = EncryptedTextField(_("access token"))
    refresh_token = EncryptedTextField(_("refresh token"))
    generation = models.PositiveBigIntegerField(_("generation"), default=0)
    issued_at = models.DateTimeField(_("last refresh"))
    expires_at = models.DateTimeField(_("access token expires"))
    connected_at = models.DateTimeField(_("connected"))

    status = models.CharField(
        _("status"), max_length=30, choices=Status.choices, default=Status.CONNECTED
    )
    reason = models.CharField(_("reason"), max_length=30, choices=Reason.choices, blank=True)
    refresh_at = models.DateTimeField(_("next refresh"), null=True)
    failures = models.PositiveIntegerField(_("failures in a row"), default=0)
    unanswered_attempts = models.PositiveIntegerField(_("unanswered attempts"), default=0)
    last_error = models.TextField(_("last error"), blank=True)
    lease_until = models.DateTimeField(null=True, editable=False)
    lease_id = models.CharField(max_length=32, blank=True, editable=False)
    lease_holder = models.CharField(max_length=100, blank=True, editable=False)
    # Whether its holder may have presented the refresh token by now.
    lease_is_used = models.BooleanField(default=False, editable=False)
    # Whether a mail has told that it needs a person.
    is_alerted = models.BooleanField(default=False, editable=False)

    objects = CredentialManager()

    # How far this machine's clock is ahead of the database's, as far as we have looked.
    clock_ahead = timedelta(0)

    if TYPE_CHECKING:
        application_id: int | None
        events: RelatedManager[CredentialEvent]

    class Meta:
        verbose_name = _("credential")
        verbose_name_plural = _("credentials")
        ordering = ["account", "pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["application_key", "account"],
                name="infusionsoft_one_row_per_account",
            )
        ]
        indexes = [
            models.Index(fields=["refresh_at"], name="infusionsoft_refresh_at"),
            models.Index(fields=["account"], name="infusionsoft_account"),
            # With what a summary counts by, so that it need not look at the rows.
            models.Index(fields=["status", "failures"], name="infusionsoft_status"),
            models.Index(fields=["is_alerted", "status"], name="infusionsoft_alerted"),
        ]
        # One for each verb of a person's. Nothing can be added or changed by hand.
        default_permissions = ("view", "delete")
        permissions = [
            ("connect_credential", _("Can connect credential")),
            ("refresh_credential", _("Can refresh credential")),
            ("disconnect_credential", _("Can disconnect credential")),
        ]

    def __str__(self) -> str:
        return self.account or f"#{self.pk}"

    @property
    def client(self) -> Client:
        """The application's client, or the settings' one where none is named.

        :raises ConfigurationError: it is not configured.
        """
        return client_of(self.application)

    @property
    def condition(self) -> Condition:
        """How it is, in one word for a person."""
        if self.status == Status.DISCONNECTED:
            return Condition.DISCONNECTED
        if self.status == Status.REAUTHORIZATION_REQUIRED:
            return Condition.NEEDS_ATTENTION
        if self.lease_until is not None and self.lease_until > self.now:
            return Condition.REFRESHING
        return Condition.RETRYING if self.is_retrying else Condition.CONNECTED

    @property
    def is_retrying(self) -> bool:
        """Whether the last attempt failed, and another one will follow by itself."""
        return self.status == Status.CONNECTED and self.failures > 0

    @property
    def may_be_refreshed(self) -> bool:
        """Whether ``refresh()`` presents the refresh token: also a last time, by somebody's will,
        where Keap has answered neither the first attempt nor the repeat.
        """
        return self.status == Status.CONNECTED or self.reason == Reason.UNANSWERED

    @property
    def now(self) -> datetime:
        """The time by which this credential's times are told: the database's, as far as known."""
        return timezone.now() - self.clock_ahead

    @property
    def has_living_access_token(self) -> bool:
        """Whether the access token has not ended."""
        return self.now < self.expires_at

    @property
    def has_fresh_access_token(self) -> bool:
        """Whether the access token is so far from its end that nobody needs to refresh it."""
        life = self.expires_at - self.issued_at
        leeway = min(timedelta(seconds=conf.EXPIRY_LEEWAY_SECONDS), life / 10)
        return self.now < self.expires_at - leeway

    def get_access_token(self) -> str:
        """Return an access token that works now; refresh or wait for it if it must be.

        On a loaded credential whose access token is fresh this makes no query.

        :raises ReauthorizationRequired: a person has to connect the account again.
        :raises ConfigurationError: the client or the encryption keys are wrong.
        :raises TemporarilyUnavailable: later; nothing is lost.
        """
        if not self.has_fresh_access_token:
            refresh.ensure_access_token(self)
        return self.access_token

    def replace_access_token(self, rejected: str) -> str:
        """Return another access token than the one that the API has just rejected.

        Somebody else's, if the row has it by now; else refresh once.

        :raises InfusionsoftError: as ``get_access_token()``.
        """
        rows.look(self)
        if self.access_token in (rejected, ""):  # or disconnected
            refresh.refresh(self)
        return self.access_token

    def refresh(self, *, user: AbstractBaseUser | None = None) -> None:
        """Rotate the pair now, once, whoever else is trying.

        Where somebody has rotated it since this instance was loaded, takes that over instead.

        :param user: the person whose will it is, for the history.
        :raises InfusionsoftError: as ``get_access_token()``.
        """
        refresh.refresh(self, by_will=True, user=user)

    def disconnect(self, *, user: AbstractBaseUser | None = None) -> None:
        """Forget the pair: nothing is refreshed or served any more until somebody reconnects.

        Keap cannot be told: the grant ends there under *API Settings*, or by itself.

        :param user: the person whose will it is, for the history.
        """
        grants.forget(self, user=user)

    def test_connection(self, *, user: AbstractBaseUser | None = None) -> Answer:
        """Call Keap's API once, as a site's own code does, and return its answer.

        An access token that has ended is refreshed for it.

        :param user: the person whose will it is, for the history.
        :raises InfusionsoftError: as ``get_access_token()``, and where the API cannot be reached.
        """
        return connectivity.test(self, user=user)

    def session(self) -> CredentialSession:
        """Return a ``requests.Session`` for this account."""
        return CredentialSession(self)

    def fetch_profile(self) -> Credential:
        """Ask Keap for the account's and the user's names, best effort, and store them.

        :returns: the credential that holds the pair now; another row where this one had no
            account and Keap names one that is connected already.
        """
        return profiles.update(self)


class CredentialEvent(models.Model):
    """One line of a credential's history; never a secret."""

    Kind = EventKind
    Outcome = Outcome

    credential = models.ForeignKey(
        Credential,
        verbose_name=_("credential"),
        on_delete=models.CASCADE,
        related_name="events",
        db_index=False,
    )
    created_at = models.DateTimeField(_("time"), auto_now_add=True, db_index=True)
    kind = models.CharField(_("event"), max_length=30, choices=EventKind.choices)
    outcome = models.CharField(_("outcome"), max_length=20, choices=Outcome.choices, blank=True)
    reason = models.CharField(_("reason"), max_length=30, choices=Reason.choices, blank=True)
    generation = models.PositiveBigIntegerField(_("generation"))
    # Tells refresh tokens apart: who presented which one, when, with what result.
    fingerprint = models.CharField(_("fingerprint"), max_length=12, blank=True)
    duration_ms = models.PositiveIntegerField(_("duration in ms"), null=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        on_delete=models.SET_NULL,
        null=True,
        related_name="+",
    )
    # Host and process number of whoever did it.
    worker = models.CharField(_("process"), max_length=100, blank=True)
    detail = models.TextField(_("detail"), blank=True)

    class Meta:
        verbose_name = _("credential event")
        verbose_name_plural = _("credential events")
        default_permissions = ("view",)
        ordering = ["-pk"]
        indexes = [models.Index(fields=["credential", "-id"], name="infusionsoft_history")]

    def __str__(self) -> str:
        return self.get_kind_display()


def client_of(application: Application | None) -> Client:
    """Return the application's client, or the settings' one for ``None``.

    :raises ConfigurationError: it is not configured.
    """
    if application is not None:
        return application.client
    if not conf.CLIENT_ID or not conf.CLIENT_SECRET:
        raise ConfigurationError(
            "Set INFUSIONSOFT_CLIENT_ID and INFUSIONSOFT_CLIENT_SECRET, or name an application."
        )
    return Client(conf.CLIENT_ID, conf.CLIENT_SECRET)
