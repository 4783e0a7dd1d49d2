"""The admin's operations on a credential: connect, refresh, test, disconnect.

Each has its own permission (testing needs the one to refresh). The history names the user.
"""

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.base_user import AbstractBaseUser
from django.core.exceptions import PermissionDenied
from django.db import router
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_http_methods, require_POST

from django_infusionsoft import waiting
from django_infusionsoft.admin import labels, links
from django_infusionsoft.admin.keys import KeyForm
from django_infusionsoft.admin.labels import REVOKE_AT_KEAP
from django_infusionsoft.choices import SETTINGS_CLIENT, Outcome, Status
from django_infusionsoft.connect.connection_check import Answer
from django_infusionsoft.exceptions import (
    InfusionsoftError,
    ReauthorizationRequired,
    TemporarilyUnavailable,
)
from django_infusionsoft.models import Application, Credential, CredentialQuerySet
from django_infusionsoft.redaction import clears_locals, hide_posted
from django_infusionsoft.storage.applications import blocked
from django_infusionsoft.storage.database import outside_atomic_requests

if TYPE_CHECKING:
    CredentialAdminBase = admin.ModelAdmin[Credential]
else:
    CredentialAdminBase = admin.ModelAdmin

# The user waits for these calls to Keap. More are left to the next run.
MAX_REFRESHED_AT_ONCE: Final = 20
# The confirmation page sends each of them back, and Django accepts 1,000 fields.
MAX_SELECTED: Final = 500
# How many accounts a confirmation page lists.
MAX_NAMED: Final = 20


class CredentialActions(CredentialAdminBase):
    """The buttons of a credential's page, and the actions of the list."""

    actions = ["refresh_selected", "disconnect_selected"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Adding a credential means connecting an account, which needs the app's URLs."""
        return _has_permission(request, "connect") and bool(links.authorize(next_url=""))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # and so all fields are read-only

    def has_key_permission(self, request: HttpRequest) -> bool:
        """Required for adding a key, which needs none of the app's URLs."""
        return _has_permission(request, "connect")

    def has_refresh_permission(self, request: HttpRequest) -> bool:
        """Required by the action, and for testing, which refreshes an expired access token."""
        return _has_permission(request, "refresh")

    def has_disconnect_permission(self, request: HttpRequest) -> bool:
        """Required by the action."""
        return _has_permission(request, "disconnect")

    def get_urls(self) -> list[URLPattern]:
        views = {
            "refresh": require_POST(self.refresh_view),
            "test": require_POST(self.test_view),
            "disconnect": require_http_methods(["GET", "HEAD", "POST"])(self.disconnect_view),
        }
        key_view = require_http_methods(["GET", "HEAD", "POST"])(self.key_view)
        return (
            [
                path(
                    "key/",
                    outside_atomic_requests(self.admin_site.admin_view(key_view)),
                    name="django_infusionsoft_credential_key",
                ),
            ]
            + [
                path(
                    f"<int:pk>/{name}/",
                    # A failing request must not roll back what a refresh has stored.
                    outside_atomic_requests(self.admin_site.admin_view(view)),
                    name=f"django_infusionsoft_credential_{name}",
                )
                for name, view in views.items()
            ]
            + super().get_urls()
        )

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Redirect the user to Keap; if there are several clients, let the user choose one."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        choices = Application.objects.choices()
        next_url = self._url("changelist")
        if len(choices) <= 1:
            return HttpResponseRedirect(links.authorize(next_url=next_url))
        title, shown = _("Connect a Keap account"), self._choices(choices, next_url)
        return self._render(request, "connect", {"title": title, "choices": shown})

    @clears_locals
    def key_view(self, request: HttpRequest) -> HttpResponse:
        """The page "Add a key", also for a new key in place of a rejected one."""
        if not self.has_key_permission(request):
            raise PermissionDenied
        data = request.POST.copy() if request.method == "POST" else None
        hide_posted(request, "key")
        form = KeyForm(data, initial={"account": request.GET.get("account", "")})
        credential = form.save(_user(request)) if form.is_valid() else None
        if credential is None:
            return self._render(request, "key", {"title": _("Add a key"), "form": form})
        text = _("Account %(account)s is connected with a key.") % {"account": credential}
        self.message_user(request, text, messages.SUCCESS)
        return HttpResponseRedirect(self._url("change", credential.pk))

    def refresh_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The button "Refresh now"."""
        credential = self._credential(request, pk, self.has_refresh_permission(request))
        self._refresh(request, credential)
        return HttpResponseRedirect(self._url("change", pk))

    def test_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The button "Test connection"."""
        credential = self._credential(request, pk, self.has_refresh_permission(request))
        try:
            answer = credential.test_connection(user=_user(request))
        except InfusionsoftError as error:
            text = _("Account %(account)s cannot be used right now. %(error)s")
            self._add_error(request, text, credential, error)
        else:
            level = messages.SUCCESS if answer.is_ok else messages.ERROR
            self.message_user(request, _test_result(answer, credential), level)
        return HttpResponseRedirect(self._url("change", pk))

    def disconnect_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The button "Disconnect", which asks for confirmation."""
        credential = self._credential(request, pk, self.has_disconnect_permission(request))
        if request.method != "POST":
            return self._ask_to_disconnect(request, [credential], self._url("change", pk))
        if credential.status != Status.DISCONNECTED:  # in another tab
            credential.disconnect(user=_user(request))
        self._add_disconnected(request, 1)
        return HttpResponseRedirect(self._url("change", pk))

    @admin.action(
        description=gettext_lazy("Refresh selected credentials"), permissions=["refresh"]
    )
    def refresh_selected(self, request: HttpRequest, queryset: CredentialQuerySet) -> None:
        """Refresh a few immediately; let the next run refresh many, or what takes too long."""
        left = list(queryset[: MAX_REFRESHED_AT_ONCE + 1])
        if len(left) > MAX_REFRESHED_AT_ONCE:
            self._request_refresh(request, queryset)
            return
        with waiting.limited():
            while left:
                error = self._refresh(request, left.pop(0))
                if left and not waiting.seconds_left():
                    rest = queryset.filter(pk__in=[each.pk for each in left])
                    self._request_refresh(request, rest)
                    return
                if left and isinstance(error, TemporarilyUnavailable):
                    self._add_skipped(request, len(left))
                    return

    @admin.action(
        description=gettext_lazy("Disconnect selected credentials"), permissions=["disconnect"]
    )
    def disconnect_selected(
        self, request: HttpRequest, queryset: QuerySet[Credential]
    ) -> HttpResponse | None:
        """Ask for confirmation, then disconnect."""
        selected = list(queryset.exclude(status=Status.DISCONNECTED)[: MAX_SELECTED + 1])
        if self._is_too_many(request, len(selected)):
            return None
        if not selected:
            self._add_nothing_to_do(request)
            return None
        if "confirmed" not in request.POST:
            return self._ask_to_disconnect(request, selected, self._url("changelist"))
        for credential in selected:
            credential.disconnect(user=_user(request))
        self._add_disconnected(request, len(selected))
        return None

    def reconnect_url(self, request: HttpRequest, credential: Credential) -> str:
        """Return the URL to reconnect the account; empty if the user lacks the permission."""
        if credential.is_key:
            query = urlencode({"account": credential.account or ""})
            return f"{self._url('key')}?{query}" if self.has_key_permission(request) else ""
        if not self.has_add_permission(request):
            return ""
        here = self._url("change", credential.pk)
        return links.authorize(next_url=here, credential=credential.pk)

    def _credential(self, request: HttpRequest, pk: int, is_permitted: bool) -> Credential:
        """Return the credential of the request.

        :raises PermissionDenied: the user lacks the permission for the operation, or to view it.
        """
        if not (is_permitted and self.has_view_permission(request)):
            raise PermissionDenied
        return get_object_or_404(self.get_queryset(request), pk=pk)

    def _refresh(self, request: HttpRequest, credential: Credential) -> InfusionsoftError | None:
        """Refresh, add a message about the outcome, and return the error, if any."""
        try:
            credential.refresh(user=_user(request))
        except InfusionsoftError as error:
            text = _("Account %(account)s was not refreshed. %(error)s")
            self._add_error(request, text, credential, error)
            return error
        text = _("Account %(account)s has a new access token.") % {"account": credential}
        self.message_user(request, text, messages.SUCCESS)
        return None

    def _request_refresh(self, request: HttpRequest, queryset: CredentialQuerySet) -> None:
        count = queryset.request_refresh(user=_user(request))
        if not count:
            self._add_nothing_to_do(request)
            return
        text = ngettext(
            "The next worker run will refresh %(count)d account.",
            "The next worker run will refresh %(count)d accounts.",
            count,
        )
        self.message_user(request, text % {"count": count}, messages.SUCCESS)

    def _ask_to_disconnect(
        self, request: HttpRequest, credentials: list[Credential], back_url: str
    ) -> HttpResponse:
        count = len(credentials)
        title = ngettext(
            "Disconnect %(count)d Keap account?", "Disconnect %(count)d Keap accounts?", count
        )
        context = {
            "title": title % {"count": count},
            "credentials": credentials,
            "named": credentials[:MAX_NAMED],
            "more": max(0, count - MAX_NAMED),
            "back_url": back_url,
            "is_action": "action" in request.POST,
            "action_checkbox_name": ACTION_CHECKBOX_NAME,
            "revoke_at_keap": REVOKE_AT_KEAP,
        }
        return self._render(request, "disconnect", context)

    def _render(self, request: HttpRequest, name: str, context: dict[str, Any]) -> HttpResponse:
        return TemplateResponse(
            request,
            f"admin/django_infusionsoft/credential/{name}.html",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "media": self.media,
                "list_url": self._url("changelist"),
                **context,
            },
        )

    def _choices(
        self, applications: list[Application | None], next_url: str
    ) -> list[dict[str, Any]]:
        """Return the page's data about each client that can connect the account."""
        states = blocked(router.db_for_write(Application))
        block_reasons = {state.application_id: labels.state(state) for state in states}
        keys = {each: each.pk if each else None for each in applications}
        return [
            {
                "application": application,
                "is_default": application.is_default if application else not applications[0],
                "url": links.authorize(next_url=next_url, application=pk or SETTINGS_CLIENT),
                "block_reason": block_reasons.get(pk, ""),
            }
            for application, pk in keys.items()
        ]

    def _add_error(
        self, request: HttpRequest, text: str, credential: Credential, error: InfusionsoftError
    ) -> None:
        """Add an error message, with the link to reconnect if that helps."""
        message: Any = text % {"account": credential, "error": error}
        url = self.reconnect_url(request, credential)
        if isinstance(error, ReauthorizationRequired) and url:
            message = format_html('{} <a href="{}">{}</a>', message, url, _("Reconnect"))
        self.message_user(request, message, messages.ERROR)

    def _add_skipped(self, request: HttpRequest, count: int) -> None:
        text = ngettext(
            "%(count)d other account was skipped.", "%(count)d other accounts were skipped.", count
        )
        self.message_user(request, text % {"count": count}, messages.WARNING)

    def _add_disconnected(self, request: HttpRequest, count: int) -> None:
        text = ngettext(
            "%(count)d account has been disconnected. Its tokens have been deleted from this "
            "site.",
            "%(count)d accounts have been disconnected. Their tokens have been deleted from this "
            "site.",
            count,
        )
        message = format_html("{} {}", text % {"count": count}, REVOKE_AT_KEAP)
        self.message_user(request, message, messages.SUCCESS)

    def _add_nothing_to_do(self, request: HttpRequest) -> None:
        text = _("Nothing to do: none of the selected accounts is connected and idle.")
        self.message_user(request, text, messages.WARNING)

    def _is_too_many(self, request: HttpRequest, count: int) -> bool:
        """Whether more are selected than one request can process; if so, add a message."""
        if count <= MAX_SELECTED:
            return False
        text = _("Select at most %(count)d accounts at a time.") % {"count": MAX_SELECTED}
        self.message_user(request, text, messages.ERROR)
        return True

    def _url(self, name: str, *args: Any) -> str:
        return links.page(self.admin_site.name, f"credential_{name}", *args)


def _has_permission(request: HttpRequest, verb: str) -> bool:
    return request.user.has_perm(f"django_infusionsoft.{verb}_credential")


def _user(request: HttpRequest) -> AbstractBaseUser | None:
    # Always a user: the admin lets no other in. The check is for the type.
    return request.user if request.user.is_authenticated else None


def _test_result(answer: Answer, credential: Credential) -> str:
    """Return the message about a connection test."""
    facts = {
        "account": answer.profile.account or credential,
        "user": answer.profile.keap_user,
        "milliseconds": answer.duration_ms,
        "status": answer.status_code,
    }
    if answer.outcome == Outcome.REJECTED:
        text = _(
            "Keap's API responded with HTTP %(status)s after %(milliseconds)s ms: it rejected "
            "this account's access token. Try again in a minute. If the problem persists, "
            "reconnect the account."
        )
    elif not answer.is_ok:
        text = _(
            "Keap's API responded with HTTP %(status)s after %(milliseconds)s ms: the problem is "
            "on Keap's side. Try again in a few minutes."
        )
    elif answer.profile.keap_user:
        text = _(
            "The connection works. Keap's API confirmed account %(account)s and user %(user)s "
            "after %(milliseconds)s ms."
        )
    else:
        text = _(
            "The connection works. Keap's API responded for account %(account)s after "
            "%(milliseconds)s ms."
        )
    return text % facts
