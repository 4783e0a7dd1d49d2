"""The admin: see that all is well, connect, refresh. No secret is ever shown."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.templatetags.static import static
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.formats import localize
from django.utils.html import format_html
from django.utils.timesince import timesince
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST

from django_infusionsoft.choices import Status
from django_infusionsoft.exceptions import (
    InfusionsoftError,
    ReauthorizationRequired,
    TemporarilyUnavailable,
)
from django_infusionsoft.models import Credential, CredentialEvent

if TYPE_CHECKING:
    from django.db.models import QuerySet

    CredentialAdminBase = admin.ModelAdmin[Credential]
else:
    CredentialAdminBase = admin.ModelAdmin

HISTORY_LINES = 25
# Somebody waits for them: as many calls as fit into a request that is still answered.
MAX_REFRESHED_AT_ONCE = 20
# A demo's access tokens live a minute or two.
SHORTEST_IN_MINUTES_SECONDS = 120


@admin.register(Credential)
class CredentialAdmin(CredentialAdminBase):
    """Accounts: how they are, and what can be done."""

    list_display = [
        "account_label",
        "status_label",
        "expires",
        "last_refresh",
        "next_refresh",
        "application",
    ]
    list_filter = ["status", "application"]
    list_select_related = ["application"]
    search_fields = ["account", "account_name", "keap_user"]
    actions = ["refresh_selected"]
    fieldsets = [
        (None, {"fields": ["account_label", "status_reason", "last_error"]}),
        (_("Access token"), {"fields": [("expires_at", "issued_at", "refresh_at")]}),
        (
            _("Authorization"),
            {"fields": [("application", "connected_at"), ("authorized_by", "keap_user")]},
        ),
    ]
    readonly_fields = ["account_label", "status_reason"]

    class Media:
        css = {"all": ["django_infusionsoft/admin.css"]}

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_add_permission(self, request: HttpRequest) -> bool:
        """To add a credential is to connect an account."""
        return request.user.has_perm("django_infusionsoft.connect_credential")

    def has_refresh_permission(self, request: HttpRequest) -> bool:
        """Django calls this for the action's ``permissions``."""
        return request.user.has_perm("django_infusionsoft.refresh_credential")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Credential]:
        return super().get_queryset(request).defer("access_token", "refresh_token")

    def get_urls(self) -> list[URLPattern]:
        refresh = path(
            "<int:pk>/refresh/",
            self.admin_site.admin_view(require_POST(self.refresh_view)),
            name="django_infusionsoft_credential_refresh",
        )
        return [refresh, *super().get_urls()]

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        # Nobody may delete a line of the history, but with its credential it goes.
        to_delete, counts, perms_needed, protected = super().get_deleted_objects(objs, request)
        return to_delete, counts, perms_needed - {CredentialEvent._meta.verbose_name}, protected

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        connect_url = self._authorize_url(self._url("changelist"))
        return super().changelist_view(
            request, {**(extra_context or {}), "connect_url": connect_url}
        )

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """To add a credential is to connect an account."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        return HttpResponseRedirect(self._authorize_url(self._url("changelist")))

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        credential: Credential = context["original"]
        context |= {
            "reconnect_url": self._reconnect_url(request, credential),
            "may_refresh": self.has_refresh_permission(request) and credential.may_be_refreshed,
            "history": credential.events.select_related("user")[:HISTORY_LINES],
            "whole_history_url": self._history_url(request, credential),
        }
        return super().render_change_form(request, context, *args, **kwargs)

    # What a refresh has brought in must not be undone with the request.
    @transaction.non_atomic_requests
    def refresh_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The button "Refresh now"."""
        if not (self.has_view_permission(request) and self.has_refresh_permission(request)):
            raise PermissionDenied
        self._refresh(request, get_object_or_404(Credential, pk=pk))
        return HttpResponseRedirect(self._url("change", pk))

    @admin.action(description=_("Refresh selected credentials"), permissions=["refresh"])
    def refresh_selected(self, request: HttpRequest, queryset: QuerySet[Credential]) -> None:
        if queryset.count() > MAX_REFRESHED_AT_ONCE:
            text = _("Select at most %(count)d: the worker refreshes all that are due by itself.")
            self.message_user(request, text % {"count": MAX_REFRESHED_AT_ONCE}, messages.ERROR)
            return
        waiting = list(queryset)
        while waiting:
            error = self._refresh(request, waiting.pop(0))
            if waiting and isinstance(error, TemporarilyUnavailable):
                self._say_left_out(request, len(waiting))
                return

    @admin.display(description=_("account"), ordering="account")
    def account_label(self, credential: Credential) -> str:
        name = credential.account_name
        label = format_html(' <span class="infusionsoft-name">{}</span>', name) if name else ""
        return format_html("{}{}", credential, label)

    @admin.display(description=_("status"), ordering="status")
    def status_label(self, credential: Credential) -> str:
        style, icon, text = _status(credential)
        return format_html(
            '<span class="infusionsoft-status infusionsoft-{}"><img src="{}" alt=""> {}</span>',
            style,
            static(f"admin/img/{icon}.svg"),
            text,
        )

    @admin.display(description=_("status"))
    def status_reason(self, credential: Credential) -> str:
        label = self.status_label(credential)
        reason = credential.get_reason_display()
        return format_html("{}: {}", label, reason) if reason else label

    @admin.display(description=_("expires"), ordering="expires_at")
    def expires(self, credential: Credential) -> str | None:
        return _relative(credential.expires_at)

    @admin.display(description=_("last refresh"), ordering="issued_at")
    def last_refresh(self, credential: Credential) -> str | None:
        return _relative(credential.issued_at)

    @admin.display(description=_("next refresh"), ordering="refresh_at")
    def next_refresh(self, credential: Credential) -> str | None:
        return _relative(credential.refresh_at)

    def _refresh(self, request: HttpRequest, credential: Credential) -> InfusionsoftError | None:
        """Refresh, say what came of it, and return what went wrong, if anything."""
        try:
            credential.refresh()
        except InfusionsoftError as error:
            text: Any = _("Account %(account)s was not refreshed. %(error)s") % {
                "account": credential,
                "error": error,
            }
            url = self._reconnect_url(request, credential)
            if isinstance(error, ReauthorizationRequired) and url:
                text = format_html('{} <a href="{}">{}</a>', text, url, _("Reconnect"))
            self.message_user(request, text, messages.ERROR)
            return error
        text = _("Account %(account)s has a new access token.") % {"account": credential}
        self.message_user(request, text, messages.SUCCESS)
        return None

    def _say_left_out(self, request: HttpRequest, count: int) -> None:
        text = ngettext(
            "%(count)d more account was left as it is.",
            "%(count)d more accounts were left as they are.",
            count,
        )
        self.message_user(request, text % {"count": count}, messages.WARNING)

    def _reconnect_url(self, request: HttpRequest, credential: Credential) -> str:
        """Return where the account is connected again; empty for who may not."""
        if not self.has_add_permission(request):
            return ""
        here = self._url("change", credential.pk)
        return self._authorize_url(here, credential=credential.pk)

    def _history_url(self, request: HttpRequest, credential: Credential) -> str:
        """Return the list of the credential's events; empty where there is none to be seen."""
        if not self.admin_site.is_registered(CredentialEvent):
            return ""
        if not self.admin_site.get_model_admin(CredentialEvent).has_view_permission(request):
            return ""
        url = reverse(
            "admin:django_infusionsoft_credentialevent_changelist",
            current_app=self.admin_site.name,
        )
        return f"{url}?{urlencode({'credential__id__exact': credential.pk})}"

    def _url(self, name: str, *args: Any) -> str:
        return reverse(
            f"admin:django_infusionsoft_credential_{name}",
            args=args,
            current_app=self.admin_site.name,
        )

    def _authorize_url(self, next_url: str, **parameters: Any) -> str:
        query = urlencode({**parameters, "next": next_url})
        return f"{reverse('django_infusionsoft:authorize')}?{query}"


def _status(credential: Credential) -> tuple[str, str, Any]:
    """Return a style, an icon and the words: never colour alone."""
    if credential.status == Status.DISCONNECTED:
        return "disconnected", "icon-unknown", credential.get_status_display()
    if credential.status != Status.CONNECTED:
        return "attention", "icon-no", credential.get_status_display()
    if credential.is_retrying:
        return "retrying", "icon-alert", _("retrying")
    return "connected", "icon-yes", credential.get_status_display()


def _relative(moment: datetime | None) -> str | None:
    """Return how long ago or ahead the moment is, with the moment itself on hovering."""
    if moment is None:
        return None
    now = timezone.now()
    distance = _distance(min(moment, now), max(moment, now))
    text = _("in %(distance)s") if moment > now else _("%(distance)s ago")
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        moment.isoformat(),
        localize(timezone.localtime(moment)),
        text % {"distance": distance},
    )


def _distance(start: datetime, end: datetime) -> str:
    seconds = round((end - start).total_seconds())
    if seconds >= SHORTEST_IN_MINUTES_SECONDS:
        return timesince(start, end, depth=1)
    return ngettext("%(count)d second", "%(count)d seconds", seconds) % {"count": seconds}
