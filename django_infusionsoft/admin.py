"""The admin: see that all is well, connect, refresh. No secret is ever shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils.formats import localize
from django.utils.html import format_html, format_html_join
from django.utils.timezone import localtime
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_POST

from django_infusionsoft.choices import Status
from django_infusionsoft.exceptions import InfusionsoftError
from django_infusionsoft.models import Application, Credential, CredentialEvent

if TYPE_CHECKING:
    from django.db.models import QuerySet

    ApplicationAdminBase = admin.ModelAdmin[Application]
    CredentialAdminBase = admin.ModelAdmin[Credential]
    CredentialEventAdminBase = admin.ModelAdmin[CredentialEvent]
    ApplicationFormBase = forms.ModelForm[Application]
else:
    ApplicationAdminBase = CredentialAdminBase = CredentialEventAdminBase = admin.ModelAdmin
    ApplicationFormBase = forms.ModelForm

HISTORY_LINES = 25


class ApplicationForm(ApplicationFormBase):
    """Takes a client secret and never gives one back."""

    client_secret = forms.CharField(
        label=_("Client secret"),
        required=False,
        strip=True,
        widget=forms.PasswordInput(attrs={"autocomplete": "off", "size": 40}),
    )

    class Meta:
        model = Application
        fields = ["name", "client_id", "is_default"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        is_new = self.instance.pk is None
        self.fields["client_secret"].required = is_new
        if not is_new:
            self.fields["client_secret"].help_text = _(
                "A secret is stored. Leave this empty to keep it."
            )

    def save(self, commit: bool = True) -> Application:
        if secret := self.cleaned_data["client_secret"]:
            self.instance.client_secret = secret
        return super().save(commit)


@admin.register(Application)
class ApplicationAdmin(ApplicationAdminBase):
    """OAuth clients."""

    form = ApplicationForm
    fields = ["name", "client_id", "client_secret", "is_default"]
    list_display = ["name", "client_id", "is_default"]


@admin.register(Credential)
class CredentialAdmin(CredentialAdminBase):
    """Accounts: how they are, and what can be done."""

    list_display = [
        "account_label",
        "account_name",
        "application",
        "status_label",
        "expires_at",
        "issued_at",
        "refresh_at",
    ]
    list_filter = ["status", "application"]
    list_select_related = ["application"]
    search_fields = ["account", "account_name", "keap_user"]
    actions = ["refresh_selected"]
    fields = [
        "account_label",
        "account_name",
        "application",
        "status_label",
        "expires_at",
        "issued_at",
        "refresh_at",
        "authorized_by",
        "keap_user",
        "connected_at",
        "history_lines",
    ]
    readonly_fields = fields  # type: ignore[assignment]  # the stubs forbid what Django allows

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

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

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """To add a credential is to connect an account."""
        return HttpResponseRedirect(self._authorize_url(self._url("changelist")))

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        extra_context = (extra_context or {}) | {
            "may_connect": self.has_add_permission(request),
            "may_refresh": self.has_refresh_permission(request),
            "reconnect_url": self._authorize_url(
                self._url("change", object_id), credential=object_id
            ),
        }
        return super().change_view(request, object_id, form_url, extra_context)

    def refresh_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The button "Refresh now"."""
        if not (self.has_view_permission(request) and self.has_refresh_permission(request)):
            raise PermissionDenied
        self._refresh(request, get_object_or_404(Credential, pk=pk))
        return HttpResponseRedirect(self._url("change", pk))

    @admin.action(description=_("Refresh selected credentials"), permissions=["refresh"])
    def refresh_selected(self, request: HttpRequest, queryset: QuerySet[Credential]) -> None:
        for credential in queryset:
            self._refresh(request, credential)

    @admin.display(description=_("account"), ordering="account")
    def account_label(self, credential: Credential) -> str:
        return str(credential)

    @admin.display(description=_("status"), ordering="status")
    def status_label(self, credential: Credential) -> str:
        return format_html(
            '<span class="infusionsoft-{}"><span aria-hidden="true">{}</span> {}</span>{}',
            *_status(credential),
            format_html(" ({})", credential.last_error) if credential.last_error else "",
        )

    @admin.display(description=_("history"))
    def history_lines(self, credential: Credential) -> str:
        events = credential.events.select_related("user")[:HISTORY_LINES]
        rows = format_html_join(
            "",
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            (
                (
                    localize(localtime(event.created_at)),
                    event.get_kind_display(),
                    f"{event.duration_ms} ms" if event.duration_ms is not None else "",
                    " ".join(filter(None, [str(event.user or ""), event.detail])),
                )
                for event in events
            ),
        )
        more = reverse(
            "admin:django_infusionsoft_credentialevent_changelist",
            current_app=self.admin_site.name,
        )
        return format_html(
            '<table class="infusionsoft-history"><thead><tr><th scope="col">{}</th>'
            '<th scope="col">{}</th><th scope="col">{}</th><th scope="col">{}</th></tr></thead>'
            '<tbody>{}</tbody></table><a href="{}?credential__id__exact={}">{}</a>',
            _("Time"),
            _("Event"),
            _("Duration"),
            _("Detail"),
            rows,
            more,
            credential.pk,
            _("The whole history"),
        )

    def _refresh(self, request: HttpRequest, credential: Credential) -> None:
        try:
            credential.refresh()
        except InfusionsoftError as error:
            self.message_user(request, f"{credential}: {error}", messages.ERROR)
        else:
            text = _("%(account)s has a new access token.") % {"account": credential}
            self.message_user(request, text, messages.SUCCESS)

    def _url(self, name: str, *args: Any) -> str:
        return reverse(
            f"admin:django_infusionsoft_credential_{name}",
            args=args,
            current_app=self.admin_site.name,
        )

    def _authorize_url(self, next_url: str, **parameters: Any) -> str:
        query = urlencode({**parameters, "next": next_url})
        return f"{reverse('django_infusionsoft:authorize')}?{query}"


@admin.register(CredentialEvent)
class CredentialEventAdmin(CredentialEventAdminBase):
    """What happened, read-only."""

    list_display = [
        "created_at",
        "credential",
        "kind",
        "outcome",
        "reason",
        "generation",
        "fingerprint",
        "duration_ms",
        "user",
        "detail",
    ]
    list_filter = ["kind", ("credential", admin.RelatedOnlyFieldListFilter)]
    list_select_related = ["credential", "user"]
    search_fields = ["credential__account"]
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def _status(credential: Credential) -> tuple[str, str, Any]:
    """Return a style, an icon and a word: never colour alone."""
    if credential.status != Status.CONNECTED:
        return "attention", "\N{WARNING SIGN}", credential.get_reason_display()
    if credential.failures:
        return "retrying", "\N{CLOCKWISE OPEN CIRCLE ARROW}", _("retrying")
    return "connected", "\N{CHECK MARK}", credential.get_status_display()
