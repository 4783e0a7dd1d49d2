"""The admin's form for keys: Keap's personal access tokens and service account keys."""

from typing import Any

from django import forms
from django.contrib.auth.base_user import AbstractBaseUser
from django.utils.translation import gettext_lazy as _

from django_infusionsoft.exceptions import InfusionsoftError
from django_infusionsoft.models import Credential


class KeyForm(forms.Form):
    """A key, which is never shown again. ``save()`` asks Keap whether it is valid."""

    key = forms.CharField(
        label=_("Key"),
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text=_(
            "Create a personal access token or a service account key in Keap under Settings, API "
            "Settings. It is stored encrypted, and never shown again."
        ),
    )
    account = forms.CharField(
        label=_("Account"),
        required=False,
        max_length=100,
        help_text=_("Such as ab123. Only needed if Keap does not name it."),
    )
    name = forms.CharField(label=_("Account name"), required=False, max_length=200)

    def save(self, user: AbstractBaseUser | None) -> Credential | None:
        """Store the key; if that is not possible, add the error to the form."""
        values: dict[str, Any] = self.cleaned_data
        try:
            return Credential.objects.add_key(
                key=values["key"],
                account=values["account"] or None,
                name=values["name"],
                user=user,
            )
        except (InfusionsoftError, ValueError) as error:
            self.add_error("key", str(error))
            return None
