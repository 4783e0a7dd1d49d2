"""Accounts: the list, and the page of each. No secret is ever shown."""

from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.core.paginator import Paginator
from django.db import router
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_infusionsoft.admin import icons, labels, links
from django_infusionsoft.admin.actions import CredentialActions
from django_infusionsoft.admin.filters import ApplicationFilter, ConditionFilter
from django_infusionsoft.admin.summary import Summary
from django_infusionsoft.choices import Status
from django_infusionsoft.models import Credential, CredentialEvent
from django_infusionsoft.monitoring.health import Health, health_of
from django_infusionsoft.storage.database import outside_atomic_requests

LINES_PER_PAGE: Final = 20
# The query parameter for the page of a timeline.
PAGE: Final = "timeline"


@admin.register(Credential)
class CredentialAdmin(CredentialActions):
    """Accounts: their state, and the operations on them."""

    list_display = [
        "account_label",
        "status_label",
        "expires",
        "last_refresh",
        "next_refresh",
        "application_label",
    ]
    list_filter = [ConditionFilter, ApplicationFilter]
    list_select_related = ["application"]
    fieldsets = [
        (
            None,
            {
                "fields": [
                    ("account_label", "application_label"),
                    ("access_token_expires", "refreshed_at", "refresh_due_at"),
                ]
            },
        ),
        (
            gettext_lazy("Authorization"),
            {"fields": [("authorized_by", "authorized_at"), ("keap_user", "keap_role")]},
        ),
    ]

    class Media:
        css = {"all": ["django_infusionsoft/admin.css"]}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Credential]:
        return super().get_queryset(request).defer("access_token", "refresh_token")

    def get_search_fields(self, request: HttpRequest) -> list[str]:
        username = f"authorized_by__{get_user_model().USERNAME_FIELD}"
        return ["account", "account_name", "keap_user", username]

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        # Events cannot be deleted alone, but are deleted with their credential.
        to_delete, counts, perms_needed, protected = super().get_deleted_objects(objs, request)
        return to_delete, counts, perms_needed - {CredentialEvent._meta.verbose_name}, protected

    @outside_atomic_requests
    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        # Called by the template, and so not for an action.
        context = {
            "summary": self._summary,
            "title": _("Keap accounts"),
            "key_url": self._url("key") if self.has_key_permission(request) else "",
            **(extra_context or {}),
        }
        return super().changelist_view(request, context)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        credential: Credential = context["original"]
        reconnect_url = self.reconnect_url(request, credential)
        may_refresh = self.has_refresh_permission(request) and credential.may_be_refreshed
        events = credential.events.select_related("user")
        timeline = Paginator(events, LINES_PER_PAGE).get_page(request.GET.get(PAGE))
        context |= {
            "headline": labels.headline(
                credential, _health(), may_reconnect=bool(reconnect_url), may_refresh=may_refresh
            ),
            "reconnect_url": reconnect_url,
            "title": credential.account_name or _("Keap account"),
            "may_refresh": may_refresh,
            "may_test": self.has_refresh_permission(request)
            and (credential.may_be_refreshed or credential.is_key),
            "may_disconnect": self.has_disconnect_permission(request)
            and credential.status != Status.DISCONNECTED,
            "timeline": timeline,
            "lines": [labels.Line(event) for event in timeline],
            "page_parameter": PAGE,
            "whole_history_url": self._history_url(request, credential),
        }
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.display(description=gettext_lazy("account"), ordering="account")
    def account_label(self, credential: Credential) -> str:
        name = credential.account_name
        label = format_html(' <span class="infusionsoft-name">{}</span>', name) if name else ""
        return format_html("{}{}", credential, label)

    @admin.display(description=gettext_lazy("status"), ordering="status")
    def status_label(self, credential: Credential) -> str:
        condition = credential.condition
        icon = icons.OF_CONDITIONS[condition]
        return format_html(
            '<span class="infusionsoft-status infusionsoft-{}">{} {}</span>',
            icon.tone,
            icon.svg,
            condition.label,
        )

    @admin.display(description=gettext_lazy("expires"), ordering="expires_at")
    def expires(self, credential: Credential) -> str | None:
        return labels.time_tag(_expires_at(credential))

    @admin.display(description=gettext_lazy("last refresh"), ordering="issued_at")
    def last_refresh(self, credential: Credential) -> str | None:
        return None if credential.is_key else labels.time_tag(credential.issued_at)

    @admin.display(description=gettext_lazy("next refresh"), ordering="refresh_at")
    def next_refresh(self, credential: Credential) -> str | None:
        return labels.time_tag(credential.refresh_at)

    @admin.display(description=gettext_lazy("application"), ordering="application__name")
    def application_label(self, credential: Credential) -> str:
        if credential.is_key:
            return _("key")
        return str(credential.application or _("client in the settings"))

    @admin.display(description=gettext_lazy("access token expires"))
    def access_token_expires(self, credential: Credential) -> str:
        return self._moment(_expires_at(credential))

    @admin.display(description=gettext_lazy("last refresh"))
    def refreshed_at(self, credential: Credential) -> str:
        return self._moment(None if credential.is_key else credential.issued_at)

    @admin.display(description=gettext_lazy("next refresh"))
    def refresh_due_at(self, credential: Credential) -> str:
        return self._moment(credential.refresh_at)

    @admin.display(description=gettext_lazy("authorized"))
    def authorized_at(self, credential: Credential) -> str:
        return self._moment(credential.connected_at)

    @admin.display(description=gettext_lazy("permissions at Keap"))
    def keap_role(self, credential: Credential) -> str:
        if credential.keap_user_is_admin is None:
            return self.get_empty_value_display()
        if credential.keap_user_is_admin:
            return _("administrator")
        return _("not an administrator: Keap may reject some calls")

    def _moment(self, moment: datetime | None) -> str:
        # On this page Django would show None as "None".
        return labels.moment_label(moment) if moment else self.get_empty_value_display()

    def _summary(self) -> Summary:
        return Summary(_health(), self.admin_site.name)

    def _history_url(self, request: HttpRequest, credential: Credential) -> str:
        """Return the URL of the credential's events; empty if the user cannot view them."""
        site = self.admin_site
        if not site.is_registered(CredentialEvent):
            return ""
        if not site.get_model_admin(CredentialEvent).has_view_permission(request):
            return ""
        url = links.page(site.name, "credentialevent_changelist")
        return f"{url}?{urlencode({'credential__id__exact': credential.pk})}"


def _expires_at(credential: Credential) -> datetime | None:
    is_gone = credential.status == Status.DISCONNECTED
    return None if is_gone else credential.access_token_expires_at


def _health() -> Health:
    return health_of(router.db_for_write(Credential))
