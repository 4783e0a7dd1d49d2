"""The history of all credentials."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest

from django_infusionsoft.models import CredentialEvent

if TYPE_CHECKING:
    CredentialEventAdminBase = admin.ModelAdmin[CredentialEvent]
else:
    CredentialEventAdminBase = admin.ModelAdmin


@admin.register(CredentialEvent)
class CredentialEventAdmin(CredentialEventAdminBase):
    """The events, read-only."""

    list_display = [
        "created_at",
        "credential",
        "kind",
        "outcome",
        "duration_ms",
        "user",
        "worker",
        "fingerprint",
    ]
    list_filter = ["kind"]
    list_select_related = ["credential", "user"]
    search_fields = ["credential__account", "=fingerprint"]
    show_full_result_count = False

    class Media:
        css = {"all": ["django_infusionsoft/admin.css"]}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
