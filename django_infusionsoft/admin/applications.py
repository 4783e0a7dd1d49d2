"""OAuth clients. A secret goes in and never comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.fields import get_cipher
from django_infusionsoft.models import Application

if TYPE_CHECKING:
    ApplicationAdminBase = admin.ModelAdmin[Application]
    ApplicationFormBase = forms.ModelForm[Application]
else:
    ApplicationAdminBase = admin.ModelAdmin
    ApplicationFormBase = forms.ModelForm


class ApplicationForm(ApplicationFormBase):
    """Takes a client secret and never gives one back."""

    # Not by the column's name: Django refuses a field for a column that is not editable.
    new_secret = forms.CharField(
        label=_("Client secret"),
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password", "size": 40}),
    )

    class Meta:
        model = Application
        fields = ["name", "client_id", "is_default"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk is not None:
            self.fields["new_secret"].required = False
            self.fields["new_secret"].help_text = _(
                "A secret is stored. Leave this empty to keep it."
            )

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
    list_display = ["name", "client_id", "is_default"]

    def get_fields(self, request: HttpRequest, obj: Application | None = None) -> Any:
        may_write = obj is None or self.has_change_permission(request, obj)
        return ["name", "client_id", *(["new_secret"] if may_write else []), "is_default"]
