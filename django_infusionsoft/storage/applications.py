"""OAuth clients, and the rows through which a site's processes share whether Keap accepts them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.db import models, router, transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Coalesce
from django.utils.translation import gettext_lazy as _

from django_infusionsoft.choices import BlockReason
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError, DecryptionError
from django_infusionsoft.fields import EncryptedTextField
from django_infusionsoft.keap.oauth import Client
from django_infusionsoft.storage.database import DatabaseNow


class ApplicationManager(models.Manager["Application"]):
    """``Application.objects``."""

    def get_default(self) -> Application | None:
        """Return the application to use when none is specified.

        That is the row marked as the default, otherwise the client in the settings (``None``),
        otherwise the only row.

        :raises ConfigurationError: there is none, or several rows and none is marked.
        """
        rows = list(self.order_by("-is_default", "pk")[:2])
        if rows and rows[0].is_default:
            return rows[0]
        if conf.CLIENT_ID:
            return None
        if len(rows) == 1:
            return rows[0]
        raise ConfigurationError(
            "There are several applications, and none is marked as the default: mark one."
            if rows
            else "No OAuth client is configured: set INFUSIONSOFT_CLIENT_ID and "
            "INFUSIONSOFT_CLIENT_SECRET, or add an application in the admin."
        )

    def choices(self) -> list[Application | None]:
        """Return the applications, the default first; ``None`` is the client in the settings."""
        rows: list[Application | None] = list(self.order_by("-is_default", "name", "pk"))
        if not conf.CLIENT_ID:
            return rows
        is_first = not any(row.is_default for row in rows if row)
        return [None, *rows] if is_first else [*rows, None]


class Application(models.Model):
    """An OAuth client registered at Keap's developer portal."""

    name = models.CharField(_("name"), max_length=100)
    client_id = models.CharField(_("client id"), max_length=255, unique=True)
    client_secret = EncryptedTextField(_("client secret"))
    is_default = models.BooleanField(
        _("default"), default=False, help_text=_("Used when no application is specified.")
    )
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    objects = ApplicationManager()

    class Meta:
        verbose_name = _("application")
        verbose_name_plural = _("applications")
        ordering = ["name", "pk"]

    def __str__(self) -> str:
        return self.name

    def save(self, *, using: str | None = None, **kwargs: Any) -> None:
        alias = using or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=alias):
            if self.is_default:
                others = type(self)._base_manager.using(alias).exclude(pk=self.pk)
                others.filter(is_default=True).update(is_default=False)
            super().save(using=alias, **kwargs)

    @property
    def client(self) -> Client:
        """The client id and secret.

        :raises ConfigurationError: the secret cannot be decrypted.
        """
        try:
            return Client(self.client_id, self.client_secret)
        except DecryptionError as error:
            # Not as a DecryptionError: it concerns every credential of this application.
            raise ConfigurationError(f"Application {self.name!r}: {error}") from error


def application_key() -> models.GeneratedField:
    """Return a column that makes "no application" a value: a unique constraint ignores NULL."""
    return models.GeneratedField(
        expression=Coalesce("application_id", 0),
        output_field=models.BigIntegerField(),
        db_persist=True,
    )


class ApplicationState(models.Model):
    """Whether an application is blocked, and its reserved slots."""

    application = models.OneToOneField(
        Application,
        verbose_name=_("application"),
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="state",
        help_text=_("If empty, the client in the settings is used."),
    )
    application_key = application_key()
    block_reason = models.CharField(
        _("problem"), max_length=20, choices=BlockReason.choices, blank=True
    )
    # The error that blocks it.
    last_error = models.TextField(_("last error"), blank=True)
    # Also identifies the block.
    since = models.DateTimeField(_("since"))
    # When the site was last notified of a rejected client: of this block, unless before "since".
    notified_at = models.DateTimeField(null=True, editable=False)
    # The clients probed during this block, as keyed hashes: a new one is probed at once.
    tried_clients = models.CharField(max_length=255, blank=True, editable=False)
    probes = models.PositiveIntegerField(_("failed probes"), default=0)
    probe_at = models.DateTimeField(_("next probe"))
    # Whether a mail has reported the block.
    is_alerted = models.BooleanField(default=False, editable=False)
    # Whether a rejection of a grant was counted since the last success.
    is_suspect = models.BooleanField(default=False, editable=False)
    # Whether there were too many to believe them. Another block may have followed.
    is_distrusted = models.BooleanField(default=False, editable=False)
    # Until when all rejections are believed, because an administrator said so.
    believed_until = models.DateTimeField(null=True, editable=False)
    # Until when every slot of the rate limit is taken.
    reserved_until = models.DateTimeField(null=True, editable=False)

    if TYPE_CHECKING:
        application_id: int | None
        database_now: datetime  # when the row was read, by the database's clock

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


class ClientState(models.Model):
    """How many grants Keap has rejected in a row for one client of an application.

    Machines may have different ones, and the success of one says nothing about another.
    """

    # Not a foreign key: MariaDB would then refuse to delete the states of several applications.
    application_key = models.BigIntegerField()
    # A keyed hash of the client id and secret.
    mark = models.CharField(max_length=16)
    rejections = models.PositiveIntegerField(default=0)

    class Meta:
        verbose_name = _("client state")
        verbose_name_plural = _("client states")
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["application_key", "mark"], name="infusionsoft_one_state_per_client"
            )
        ]

    def __str__(self) -> str:
        return f"{self.application_key}: {self.mark}"


def client_of(application: Application | None) -> Client:
    """Return the application's client, or for ``None`` the client in the settings.

    :raises ConfigurationError: it is not configured.
    """
    if application is not None:
        return application.client
    if not conf.CLIENT_ID or not conf.CLIENT_SECRET:
        raise ConfigurationError(
            "Set INFUSIONSOFT_CLIENT_ID and INFUSIONSOFT_CLIENT_SECRET, or specify an application."
        )
    return Client(conf.CLIENT_ID, conf.CLIENT_SECRET)


def states(alias: str) -> QuerySet[ApplicationState]:
    """All states, with the database's time."""
    return (
        ApplicationState._base_manager.using(alias)
        .select_related("application")
        .annotate(database_now=DatabaseNow())  # type: ignore[no-redef]  # declared above
    )


def blocked(alias: str) -> QuerySet[ApplicationState]:
    """The states of blocked applications."""
    return states(alias).exclude(block_reason=BlockReason.NONE)


def was_notified() -> Q:
    """Whether the site was notified of the present or last block."""
    return Q(notified_at__gte=F("since"))


def blocked_keys(alias: str, *, reserved_for: tuple[float, float] | None) -> list[int]:
    """Return the ``application_key`` of the applications whose credentials must not be claimed.

    They are blocked, or all slots are taken for so many seconds (``None``: no limit).
    """
    is_blocked = ~Q(block_reason=BlockReason.NONE)
    if reserved_for is not None:
        least, most = map(from_now, reserved_for)
        is_blocked |= Q(reserved_until__gt=least, reserved_until__lte=most)
    return list(states(alias).filter(is_blocked).values_list("application_key", flat=True))


def row_of(alias: str, state: ApplicationState) -> QuerySet[ApplicationState]:
    return states(alias).filter(pk=state.pk)


def state_of(alias: str, application: Application | None) -> ApplicationState:
    """Return an application's state (``None``: the settings' client), created if need be."""
    found = states(alias).filter(application=application)
    if (state := found.first()) is not None:
        return state
    defaults = {"since": DatabaseNow(), "probe_at": DatabaseNow()}
    states(alias).get_or_create(application=application, defaults=defaults)
    return found.get()


def from_now(seconds: float) -> Any:
    """Return a time relative to the database's clock, as an expression."""
    # SQLite writes a sum with more digits, and compares text: "now" would not be due at once.
    return DatabaseNow() + timedelta(seconds=seconds) if seconds else DatabaseNow()
