"""A credential's columns, and what can be derived from them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from django.apps import apps
from django.conf import settings
from django.db import Error, connections, models, router
from django.db.models import BooleanField, ExpressionWrapper, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_infusionsoft.choices import (
    DOUBTFUL,
    NEEDS_OPERATOR,
    Condition,
    Kind,
    Outcome,
    Reason,
    Status,
)
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import (
    ConfigurationError,
    DatabaseBusy,
    InfusionsoftError,
    ReauthorizationRequired,
)
from django_infusionsoft.fields import EncryptedTextField
from django_infusionsoft.keap.oauth import Client
from django_infusionsoft.keap.transport import lease_seconds
from django_infusionsoft.storage.applications import Application, application_key, client_of
from django_infusionsoft.storage.database import (
    DatabaseNow,
    TableSchema,
    is_in_testcase,
    own_transaction,
    table_schema,
)
from django_infusionsoft.storage.saving import GuardedModel

# The columns that other processes change.
SHARED_FIELDS: Final = (
    "kind",
    "access_token",
    "refresh_token",
    "expires_at",
    "issued_at",
    "connected_at",
    "generation",
    "status",
    "reason",
    "failures",
    "unanswered_attempts",
    "may_be_rotated",
    "last_error",
    "failing_since",
    "failed_outcome",
    "is_doubted",
    "refresh_at",
    "api_rejections",
    "presented_again_at",
)
_applying = threading.Lock()
# The columns of a row without a lease.
NO_LEASE: Final[Mapping[str, Any]] = {
    "lease_until": None,
    "lease_id": "",
    "lease_holder": "",
    "lease_is_used": False,
}


class CredentialRow(GuardedModel):
    """One account's grant to one application: the token pair and its state."""

    Status = Status
    Reason = Reason

    # Columns that are not editable are the app's: see GuardedModel.
    methods = {
        **dict.fromkeys(
            ("access_token", "refresh_token", "issued_at", "expires_at", "connected_at"),
            "Credential.objects.import_tokens()",
        ),
        "generation": "refresh(), Credential.objects.import_tokens()",
        "status": "refresh(), disconnect(), Credential.objects.import_tokens()",
        "refresh_at": "Credential.objects.connected().request_refresh()",
    }

    # Never changes: another schema or database may have a row with the same primary key.
    identity = models.UUIDField(default=uuid.uuid4, editable=False)
    application = models.ForeignKey(
        Application,
        verbose_name=_("application"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="credentials",
        help_text=_("If empty, the client in the settings is used."),
    )
    application_key = application_key()
    kind = models.CharField(
        _("kind"), max_length=10, choices=Kind.choices, default=Kind.GRANT, editable=False
    )
    # NULL if Keap has not named it: several rows may have none.
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
    keap_user_is_admin = models.BooleanField(_("Keap user is an administrator"), null=True)

    access_token = EncryptedTextField(_("access token"))
    refresh_token = EncryptedTextField(_("refresh token"))
    generation = models.PositiveBigIntegerField(_("generation"), default=0, editable=False)
    issued_at = models.DateTimeField(_("last refresh"), editable=False)
    expires_at = models.DateTimeField(_("access token expires"), editable=False)
    connected_at = models.DateTimeField(_("connected"), editable=False)

    status = models.CharField(
        _("status"),
        max_length=30,
        choices=Status.choices,
        default=Status.CONNECTED,
        editable=False,
    )
    reason = models.CharField(
        _("reason"), max_length=30, choices=Reason.choices, blank=True, editable=False
    )
    refresh_at = models.DateTimeField(_("next refresh"), null=True, editable=False)
    failures = models.PositiveIntegerField(_("consecutive failures"), default=0, editable=False)
    unanswered_attempts = models.PositiveIntegerField(
        _("unanswered attempts"), default=0, editable=False
    )
    # Whether a gateway replied in Keap's place, which may have rotated the refresh token.
    may_be_rotated = models.BooleanField(default=False, editable=False)
    last_error = models.TextField(_("last error"), blank=True, editable=False)
    # Of the failures since the last refresh: when the first one was, and the outcome of the last.
    failing_since = models.DateTimeField(null=True, editable=False)
    failed_outcome = models.CharField(
        max_length=20, choices=Outcome.choices, blank=True, editable=False
    )
    # How many times in a row the access token was replaced because the API had rejected it.
    api_rejections = models.PositiveIntegerField(default=0, editable=False)
    # Whether the last rejection of the refresh token may be due to the client or the server.
    is_doubted = models.BooleanField(default=False, editable=False)
    # When a rejected refresh token or key was last presented again.
    presented_again_at = models.DateTimeField(null=True, editable=False)
    lease_until = models.DateTimeField(null=True, editable=False)
    lease_id = models.CharField(max_length=32, blank=True, editable=False)
    lease_holder = models.CharField(max_length=100, blank=True, editable=False)
    # Whether its holder may have presented the refresh token.
    lease_is_used = models.BooleanField(default=False, editable=False)
    # The last lease that was taken over and counted as an attempt without a reply.
    abandoned_lease_id = models.CharField(max_length=32, blank=True, editable=False)
    # Whether the history lacks the last refresh, and the refresh token that this presented.
    is_unreported = models.BooleanField(default=False, editable=False)
    presented_fingerprint = models.CharField(max_length=12, blank=True, editable=False)
    # Whether a mail has reported that the account must be reconnected.
    is_alerted = models.BooleanField(default=False, editable=False)

    # How far this machine's clock was ahead of the database's when the row was last read.
    clock_offset = timedelta(0)
    # The PostgreSQL schema of the row's table, once it is known; empty on other databases.
    table_schema: str | None = None
    # Whether Keap had rejected another account of the application when this one was claimed, and
    # none had been refreshed since.
    is_suspect = False

    if TYPE_CHECKING:
        application_id: int | None

    class Meta:
        abstract = True
        verbose_name = _("credential")
        verbose_name_plural = _("credentials")
        ordering = ["account", "pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["application_key", "account"],
                name="infusionsoft_one_row_per_account",
            ),
            # A key is never due, so that no run claims it.
            models.CheckConstraint(
                condition=Q(kind=Kind.GRANT) | Q(refresh_at__isnull=True),
                name="infusionsoft_keys_are_not_due",
            ),
        ]
        indexes = [
            models.Index(fields=["refresh_at"], name="infusionsoft_refresh_at"),
            models.Index(fields=["lease_until"], name="infusionsoft_lease_until"),
            models.Index(fields=["account"], name="infusionsoft_account"),
            # With all columns of a summary's counts, so that the rows need not be read.
            models.Index(
                fields=["status", "kind", "failed_outcome", "failures"], name="infusionsoft_status"
            ),
            models.Index(fields=["is_alerted", "status"], name="infusionsoft_alerted"),
            models.Index(fields=["is_unreported"], name="infusionsoft_unreported"),
        ]
        # One for each action of a user. Rows cannot be added or changed by hand.
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
        """The application's client, or the client in the settings if it has none.

        :raises ConfigurationError: it is not configured.
        """
        return client_of(self.application)

    @property
    def is_key(self) -> bool:
        """Whether ``access_token`` is a key, which is never refreshed."""
        return self.kind == Kind.KEY

    @property
    def condition(self) -> Condition:
        """The state that users see, as ``in_condition()`` finds it in the database."""
        if self.status == Status.DISCONNECTED:
            return Condition.DISCONNECTED
        if self.status == Status.REAUTHORIZATION_REQUIRED or self.needs_operator:
            return Condition.NEEDS_ATTENTION
        if self._is_failing:
            return Condition.FAILING
        if self.lease_until is not None and self.lease_until > self.now:
            return Condition.REFRESHING
        return Condition.RETRYING if self.is_retrying else Condition.CONNECTED

    @property
    def needs_operator(self) -> bool:
        """Whether an operator must act before the account can be refreshed."""
        return self.status == Status.CONNECTED and self.failed_outcome in NEEDS_OPERATOR

    @property
    def _is_failing(self) -> bool:
        late = self.now - timedelta(seconds=conf.OVERDUE_SECONDS)
        is_overdue = self.refresh_at is not None and self.refresh_at <= late
        if self.failures and self.failing_since is not None and self.failing_since <= late:
            return True
        return not self.has_valid_access_token and bool(self.failures or is_overdue)

    @property
    def is_retrying(self) -> bool:
        """Whether the last attempt failed, and the next run retries automatically."""
        return self.status == Status.CONNECTED and self.failures > 0

    @property
    def may_be_refreshed(self) -> bool:
        """Whether ``refresh()`` presents the refresh token, even after two attempts without an
        answer, or after a rejection.
        """
        if self.is_key:
            return False
        return self.status == Status.CONNECTED or self.reason in (Reason.UNANSWERED, *DOUBTFUL)

    @property
    def is_presented_again(self) -> bool:
        """Whether ``refresh()`` presents a refresh token that Keap has rejected."""
        return self.status == Status.REAUTHORIZATION_REQUIRED and self.reason in DOUBTFUL

    @property
    def now(self) -> datetime:
        """The time by the database's clock, as far as known: all times of the row follow it."""
        return timezone.now() - self.clock_offset

    @property
    def access_token_expires_at(self) -> datetime | None:
        """When the access token expires; ``None`` for a key."""
        return None if self.is_key else self.expires_at

    @property
    def has_valid_access_token(self) -> bool:
        """Whether the access token has not expired."""
        return self.now < self.expires_at

    @property
    def has_fresh_access_token(self) -> bool:
        """Whether the access token expires late enough that it need not be refreshed now."""
        lifetime = self.expires_at - self.issued_at
        leeway = min(timedelta(seconds=conf.EXPIRY_LEEWAY_SECONDS), lifetime / 10)
        return self.now < self.expires_at - leeway


Row = TypeVar("Row", bound=CredentialRow)


def credential_model() -> type[CredentialRow]:
    """Return ``models.Credential``, which this module must not import."""
    return apps.get_model("django_infusionsoft", "Credential")


def alias_of(credential: CredentialRow) -> str:
    return router.db_for_write(type(credential), instance=credential)


def row_of(credential: CredentialRow) -> QuerySet[CredentialRow]:
    rows = type(credential)._base_manager.using(alias_of(credential))
    return rows.filter(pk=credential.pk, identity=credential.identity)


def table_schema_of(credential: CredentialRow) -> str:
    """Return the schema of a credential's table, by a query if it was not read with the row."""
    if credential.table_schema is None:
        alias = alias_of(credential)
        with own_transaction(alias):
            credential.table_schema = table_schema(alias, type(credential))
    return credential.table_schema


def in_condition(condition: Condition) -> Q:
    """Whether a row is in this condition, by the database's clock."""
    needs_operator = Q(status=Status.CONNECTED, failed_outcome__in=NEEDS_OPERATOR)
    match condition:
        case Condition.NEEDS_ATTENTION:
            return Q(status=Status.REAUTHORIZATION_REQUIRED) | needs_operator
        case Condition.DISCONNECTED:
            return Q(status=Status.DISCONNECTED)
    is_alive = Q(status=Status.CONNECTED) & ~Q(failed_outcome__in=NEEDS_OPERATOR)
    if condition == Condition.FAILING:
        return is_alive & _is_failing()
    is_alive &= ~_is_failing()
    match condition:
        case Condition.REFRESHING:
            # The lease decides. ``refresh_at``, which is the lease's end meanwhile, has an index.
            # Twice, because another machine may have other settings.
            now, longest = DatabaseNow(), timedelta(seconds=2 * lease_seconds())
            is_soon = Q(refresh_at__gt=now, refresh_at__lte=now + longest)
            return is_alive & is_soon & Q(lease_until__gt=now)
        case Condition.RETRYING:
            return is_alive & Q(failures__gt=0) & is_idle()
        case Condition.CONNECTED:
            return is_alive & Q(failures=0) & is_idle()


def _is_failing() -> Q:
    """Whether a row that nobody can serve, or that has failed for long, is being retried.

    Each part has an index. The second one: nothing tries, since its client is blocked, or since no
    worker is running.
    """
    now = DatabaseNow()
    late = now - timedelta(seconds=conf.OVERDUE_SECONDS)
    has_expired = Q(expires_at__lte=now)
    has_failed = Q(failures__gt=0) & (has_expired | Q(failing_since__lte=late))
    return has_failed | (has_expired & Q(refresh_at__lte=late))


def is_idle() -> Q:
    """Whether no lease is valid, by the database's clock."""
    return Q(lease_until__isnull=True) | Q(lease_until__lte=DatabaseNow())


def is_refreshable() -> Q:
    """Whether a row has a grant: a key is never refreshed."""
    return Q(kind=Kind.GRANT)


def is_leased() -> ExpressionWrapper[Any]:
    """Whether a row's lease is valid, by the database's clock."""
    return ExpressionWrapper(Q(lease_until__gt=DatabaseNow()), BooleanField())


def reload(credential: CredentialRow) -> bool:
    """Read what other processes have written; return whether a lease is valid.

    :raises ReauthorizationRequired: the credential has been deleted.
    """
    facts = {
        "is_leased": is_leased(),
        "database_now": DatabaseNow(),
        "schema": TableSchema(type(credential)),
    }
    with own_transaction(alias_of(credential)):
        row = row_of(credential).annotate(**facts).values(*facts, *SHARED_FIELDS).first()
    if row is None:
        raise _missing(credential)
    leased = bool(row.pop("is_leased"))
    credential.table_schema = row.pop("schema")
    note_clock_offset(credential, row.pop("database_now"))
    apply_columns(credential, row)
    return leased


def _missing(credential: CredentialRow) -> InfusionsoftError:
    """Return the exception for a row that a second connection does not find."""
    alias, is_visible = alias_of(credential), False
    if connections[alias].in_atomic_block and not is_in_testcase(alias):
        with suppress(Error):
            is_visible = row_of(credential).exists()
    if is_visible:
        return DatabaseBusy(
            f"Only the current transaction can see credential {credential.pk}: it was deleted "
            f"meanwhile, the transaction that created it is not committed yet, or the transaction "
            f"has set a variable for row-level security. Commit the transaction first."
        )
    return ReauthorizationRequired(
        f"Credential {credential.pk} is not in the database: it was deleted, or the "
        f"transaction that created it is not committed yet."
    )


def require_same_table(credential: CredentialRow) -> None:
    """Check that this thread finds the table from which a credential was read.

    :raises ConfigurationError: its connection has another schema.
    """
    found = table_schema(alias_of(credential), type(credential))
    if credential.table_schema not in (None, found):
        raise ConfigurationError(
            f"Credential {credential.pk} is in the schema {credential.table_schema!r}, and a "
            f"thread's connection finds {found!r}."
        )


def note_clock_offset(credential: CredentialRow, database_now: datetime) -> None:
    """Remember how far this machine's clock is ahead of the database's."""
    credential.clock_offset = timezone.now() - database_now


def copy_from(credential: CredentialRow, other: CredentialRow) -> None:
    """Update an instance from another one of the same row, without decrypting secrets."""
    credential.clock_offset = other.clock_offset
    apply_columns(credential, {name: other.__dict__[name] for name in SHARED_FIELDS})


def apply_columns(credential: CredentialRow, columns: dict[str, Any]) -> None:
    """Update an instance in one step, unless it has a newer generation.

    Threads may share the instance, and one of them may have read the row long ago. Secrets are
    encrypted.
    """
    with _applying:
        known = credential.__dict__.get("generation")
        if known is None or columns["generation"] >= known:
            credential.__dict__.update(columns)
