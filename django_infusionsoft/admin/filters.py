"""What narrows the list of credentials down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from django_infusionsoft.choices import SETTINGS_CLIENT, Condition
from django_infusionsoft.conf import conf
from django_infusionsoft.models import Application, Credential
from django_infusionsoft.rows import is_in

if TYPE_CHECKING:
    from django.db.models import QuerySet


class ConditionFilter(admin.SimpleListFilter):
    """By the word that stands in the list."""

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
        return queryset.filter(is_in(Condition(value)))


class ApplicationFilter(admin.SimpleListFilter):
    """By the OAuth client. Shown where there are several."""

    title = _("application")
    parameter_name = "application"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        rows = Application.objects.values_list("pk", "name").order_by("name", "pk")
        named = [(str(pk), name) for pk, name in rows]
        return (
            [*named, (SETTINGS_CLIENT, _("client in the settings"))] if conf.CLIENT_ID else named
        )

    def has_output(self) -> bool:
        return len(self.lookup_choices) > 1

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Credential]
    ) -> QuerySet[Credential] | None:
        value = self.value()
        if value is None or value not in dict(self.lookup_choices):
            return None
        return queryset.filter(application=None if value == SETTINGS_CLIENT else int(value))
