"""OAuth clients: their use, and whether Keap accepts them. Secrets can be set but not read."""

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db import router
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_infusionsoft.admin import icons, labels, links
from django_infusionsoft.admin.filters import ApplicationFilter
from django_infusionsoft.choices import ACTION_REQUIRED, SETTINGS_CLIENT, BlockReason
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.fields import get_cipher
from django_infusionsoft.models import Application, ApplicationState, Credential
from django_infusionsoft.redaction import clears_locals, hide_posted
from django_infusionsoft.storage.applications import states

if TYPE_CHECKING:
    ApplicationAdminBase = admin.ModelAdmin[Application]
    ApplicationFormBase = forms.ModelForm[Application]
else:
    ApplicationAdminBase = admin.ModelAdmin
    ApplicationFormBase = forms.ModelForm


class ApplicationForm(ApplicationFormBase):
    """Accepts a client secret and never shows one."""

    # Not the column's name: Django rejects a field for a column that is not editable.
    new_secret = forms.CharField(
        label=gettext_lazy("Client secret"),
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password", "size": 40}),
    )

    class Meta:
        model = Application
        fields = ["name", "client_id", "is_default"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk is not None:
            self.fields["new_secret"].required = False
            self.fields["new_secret"].help_text = self._stored_secret_help()

    def _stored_secret_help(self) -> str:
        try:
            self.instance.client  # noqa: B018  # decrypts the secret
        except ConfigurationError:
            return _(
                "No encryption key of this site can decrypt the stored secret. Enter it again."
            )
        return _("A secret is stored. Leave this field empty to keep it.")

    def clean_new_secret(self) -> str:
        secret: str = self.cleaned_data["new_secret"]
        if secret:
            try:
                get_cipher()
            except ConfigurationError as error:
                raise ValidationError(str(error)) from error
        return secret

    def save(self, commit: bool = True) -> Application:
        if secret := self.cleaned_data["new_secret"]:
            self.instance.client_secret = secret
        return super().save(commit)


@admin.register(Application)
class ApplicationAdmin(ApplicationAdminBase):
    """OAuth clients."""

    form = ApplicationForm
    list_display = ["name", "client_id", "default_label", "use", "state_label"]
    list_select_related = ["state"]
    readonly_fields = ["use", "state_label"]
    search_fields = ["name", "client_id"]

    class Media:
        css = {"all": ["django_infusionsoft/admin.css"]}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Application]:
        rows = super().get_queryset(request).defer("client_secret")
        return rows.annotate(used_by=Count("credentials"))

    def get_fields(self, request: HttpRequest, obj: Application | None = None) -> Any:
        if obj is None:
            return ["name", "client_id", "new_secret", "is_default"]
        secret = ["new_secret"] if self.has_change_permission(request, obj) else []
        return ["name", "client_id", *secret, "is_default", "use", "state_label"]

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """List used applications as protected, without their credentials: there may be 100,000."""
        used = [each for each in objs if each.credentials.exists()]
        if not used:
            return super().get_deleted_objects(objs, request)
        return [], {}, set(), [f"{each}: {_use(each.credentials.count())}" for each in used]

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        context = {"settings_client": self._settings_client, **(extra_context or {})}
        return super().changelist_view(request, context)

    @clears_locals
    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: Any = None,
    ) -> HttpResponse:
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        finally:
            hide_posted(request, "new_secret")

    @admin.display(description=gettext_lazy("default"), ordering="is_default", empty_value="")
    def default_label(self, application: Application) -> str | None:
        # As a word: Django's red cross would make the others look faulty.
        return _("default") if application.is_default else None

    @admin.display(description=gettext_lazy("use"), ordering="used_by")
    def use(self, application: Application) -> str:
        count: int = application.used_by  # type: ignore[attr-defined]  # annotated
        return self._link_to_users(count, application.pk)

    @admin.display(description=gettext_lazy("status at Keap"))
    def state_label(self, application: Application) -> str:
        return _state_label(getattr(application, "state", None))

    def _settings_client(self) -> dict[str, Any] | None:
        """Return the page's data about the client in the settings, if there is one."""
        if not conf.CLIENT_ID:
            return None
        count = Credential.objects.filter(application=None).count()
        # This client has no application to select.
        found = states(router.db_for_write(ApplicationState)).select_related(None)
        found = found.filter(application=None)
        return {
            "client_id": conf.CLIENT_ID,
            "use": self._link_to_users(count, SETTINGS_CLIENT),
            "state": _state_label(found.first()),
        }

    def _link_to_users(self, count: int, parameter: object) -> str:
        text = _use(count)
        url = links.page_if_any(self.admin_site.name, "credential_changelist")
        if not count or not url:
            return text
        query = urlencode({ApplicationFilter.parameter_name: parameter})
        return format_html('<a href="{}?{}">{}</a>', url, query, text)


def _use(count: int) -> str:
    if not count:
        return _("not used by any credential")
    text = ngettext("in use by %(count)d credential", "in use by %(count)d credentials", count)
    return text % {"count": count}


def _state_label(state: ApplicationState | None) -> str:
    block_reason = state.block_reason if state else BlockReason.NONE
    icon = icons.GOOD if not block_reason else icons.WAITING
    icon = icons.BAD if block_reason in ACTION_REQUIRED else icon
    return format_html(
        '<span class="infusionsoft-{}">{} {}</span>', icon.tone, icon.svg, labels.state(state)
    )
