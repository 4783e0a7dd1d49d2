"""OAuth clients: are they used, and does Keap take them? A secret goes in and never comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db import router
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_infusionsoft.admin import addresses, signs, words
from django_infusionsoft.admin.filters import ApplicationFilter
from django_infusionsoft.application_states import states
from django_infusionsoft.choices import SETTINGS_CLIENT, Trouble
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.fields import get_cipher
from django_infusionsoft.models import Application, ApplicationState, Credential

if TYPE_CHECKING:
    from django.db.models import QuerySet

    ApplicationAdminBase = admin.ModelAdmin[Application]
    ApplicationFormBase = forms.ModelForm[Application]
else:
    ApplicationAdminBase = admin.ModelAdmin
    ApplicationFormBase = forms.ModelForm


class ApplicationForm(ApplicationFormBase):
    """Takes a client secret and never gives one back."""

    # Not by the column's name: Django refuses a field for a column that is not editable.
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
            self.fields["new_secret"].help_text = self._about_the_stored_one()

    def _about_the_stored_one(self) -> str:
        try:
            self.instance.client  # noqa: B018  # whether a key opens it
        except ConfigurationError:
            return _("No key of this site opens the stored secret: enter it again.")
        return _("A secret is stored. Leave this empty to keep it.")

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
        may_write = obj is None or self.has_change_permission(request, obj)
        secret = ["new_secret"] if may_write else []
        told = [] if obj is None else ["use", "state_label"]
        return ["name", "client_id", *secret, "is_default", *told]

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Name what is in use, and not its credentials: there may be a hundred thousand."""
        used = [each for each in objs if each.credentials.exists()]
        if not used:
            return super().get_deleted_objects(objs, request)
        told = [f"{each}: {_use(each.credentials.count())}" for each in used]
        return [], {}, set(), told

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        context = {"settings_client": self._settings_client, **(extra_context or {})}
        return super().changelist_view(request, context)

    @admin.display(description=gettext_lazy("default"), ordering="is_default", empty_value="")
    def default_label(self, application: Application) -> str | None:
        # In a word: that the others are not is no fault, which a red cross would say.
        return _("default") if application.is_default else None

    @admin.display(description=gettext_lazy("use"), ordering="used_by")
    def use(self, application: Application) -> str:
        count: int = application.used_by  # type: ignore[attr-defined]  # annotated
        return self._link_to_users(count, application.pk)

    @admin.display(description=gettext_lazy("at Keap"))
    def state_label(self, application: Application) -> str:
        return _state_label(getattr(application, "state", None))

    def _settings_client(self) -> dict[str, Any] | None:
        """Return what there is to tell of the client in the settings, if there is one."""
        if not conf.CLIENT_ID:
            return None
        count = Credential.objects.filter(application=None).count()
        # Without the columns of an application, which it has not.
        found = states(router.db_for_write(ApplicationState)).select_related(None)
        found = found.filter(application=None)
        return {
            "client_id": conf.CLIENT_ID,
            "use": self._link_to_users(count, SETTINGS_CLIENT),
            "state": _state_label(found.first()),
        }

    def _link_to_users(self, count: int, parameter: object) -> str:
        text = _use(count)
        try:
            url = addresses.page(self.admin_site.name, "credential_changelist")
        except NoReverseMatch:  # a site's own choice
            return text
        query = urlencode({ApplicationFilter.parameter_name: parameter})
        return format_html('<a href="{}?{}">{}</a>', url, query, text) if count else text


def _use(count: int) -> str:
    if not count:
        return _("not used by any credential")
    text = ngettext("in use by %(count)d credential", "in use by %(count)d credentials", count)
    return text % {"count": count}


def _state_label(state: ApplicationState | None) -> str:
    trouble = state.trouble if state else Trouble.NONE
    sign = {Trouble.NONE: signs.GOOD, Trouble.REJECTED: signs.BAD}.get(
        Trouble(trouble), signs.WAITING
    )
    return format_html(
        '<span class="infusionsoft-{}">{} {}</span>', sign.tone, sign.svg, words.state(state)
    )
