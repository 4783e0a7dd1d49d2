"""Filters of the list of credentials."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from django_infusionsoft.choices import SETTINGS_CLIENT, Condition
from django_infusionsoft.conf import conf
from django_infusionsoft.models import Application, Credential
from django_infusionsoft.storage.credentials import in_condition, is_refreshable


class ConditionFilter(admin.SimpleListFilter):
    """By the condition that the list shows as status."""

    title = _("status")
    parameter_name = "condition"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return list(Condition.choices)

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Credential]
    ) -> QuerySet[Credential] | None:
        value = self.value()
        if value is None or value not in Condition.values:
            return None
        return queryset.filter(in_condition(Condition(value)))


class ApplicationFilter(admin.SimpleListFilter):
    """By the OAuth client. Hidden unless there are several."""

    title = _("application")
    parameter_name = "application"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        rows = Application.objects.values_list("pk", "name").order_by("name", "pk")
        choices: list[tuple[str, Any]] = [(str(pk), name) for pk, name in rows]
        if conf.CLIENT_ID:
            choices.append((SETTINGS_CLIENT, _("client in the settings")))
        return choices

    def has_output(self) -> bool:
        return len(self.lookup_choices) > 1

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Credential]
    ) -> QuerySet[Credential] | None:
        value = self.value()
        if value is None or value not in dict(self.lookup_choices):
            return None
        if value == SETTINGS_CLIENT:
            return queryset.filter(is_refreshable(), application=None)
        return queryset.filter(application=int(value))
