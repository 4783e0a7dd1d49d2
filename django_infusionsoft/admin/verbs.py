"""What a person can do with a credential: connect, refresh, test, disconnect.

Each verb has its permission, and the history says who did it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_http_methods, require_POST

from django_infusionsoft.admin import addresses, words
from django_infusionsoft.admin.words import REVOKE_AT_KEAP
from django_infusionsoft.application_states import troubled
from django_infusionsoft.choices import SETTINGS_CLIENT, Outcome, Status
from django_infusionsoft.connectivity import Answer
from django_infusionsoft.database import outside_atomic_requests
from django_infusionsoft.exceptions import (
    InfusionsoftError,
    ReauthorizationRequired,
    TemporarilyUnavailable,
)
from django_infusionsoft.models import Application, Credential

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.db.models import QuerySet

    CredentialAdminBase = admin.ModelAdmin[Credential]
else:
    CredentialAdminBase = admin.ModelAdmin

# Somebody waits for them: as many calls as fit into a request that is still answered. What is
# more is left to the next run.
MOST_REFRESHED_AT_ONCE: Final = 20
# The page that asks sends each of them back, and Django takes 1,000 fields.
MOST_SELECTED: Final = 500
# Of accounts on a page that asks.
MOST_NAMED: Final = 20


class CredentialVerbs(CredentialAdminBase):
    """The buttons, and the actions of the list."""

    actions = ["refresh_selected", "disconnect_selected"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """To add a credential is to connect an account, for which our URLs must be there."""
        return _may(request, "connect") and bool(addresses.authorize(next_url=""))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_refresh_permission(self, request: HttpRequest) -> bool:
        """Django calls this for an action's ``permissions``. Testing needs it too: what has ended
        is refreshed for that.
        """
        return _may(request, "refresh")

    def has_disconnect_permission(self, request: HttpRequest) -> bool:
        """As above."""
        return _may(request, "disconnect")

    def get_urls(self) -> list[URLPattern]:
        views = {
            "refresh": require_POST(self.refresh_view),
            "test": require_POST(self.test_view),
            "disconnect": require_http_methods(["GET", "HEAD", "POST"])(self.disconnect_view),
        }
        return [
            path(
                f"<int:pk>/{name}/",
                # What a refresh has brought in must not be undone with the request.
                outside_atomic_requests(self.admin_site.admin_view(view)),
                name=f"django_infusionsoft_credential_{name}",
            )
            for name, view in views.items()
        ] + super().get_urls()

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Send the person to Keap, with the client that they choose where there are several."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        choices = Application.objects.choices()
        next_url = self._url("changelist")
        if len(choices) <= 1:
            return HttpResponseRedirect(addresses.authorize(next_url=next_url))
        context = {
            "title": _("Connect a Keap account"),
            "choices": self._choices(choices, next_url),
        }
        return self._render(request, "connect", context)

    def refresh_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The button "Refresh now"."""
        credential = self._credential(request, pk, self.has_refresh_permission(request))
        self._refresh(request, credential)
        return HttpResponseRedirect(self._url("change", pk))

    def test_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The button "Test connection"."""
        credential = self._credential(request, pk, self.has_refresh_permission(request))
        try:
            answer = credential.test_connection(user=_person(request))
        except InfusionsoftError as error:
            text = _("Account %(account)s cannot be used now. %(error)s")
            self._say_error(request, text, credential, error)
        else:
            level = messages.SUCCESS if answer.is_ok else messages.ERROR
            self.message_user(request, _told(answer, credential), level)
        return HttpResponseRedirect(self._url("change", pk))

    def disconnect_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The button "Disconnect", which asks first."""
        credential = self._credential(request, pk, self.has_disconnect_permission(request))
        if request.method != "POST":
            return self._ask_to_disconnect(request, [credential], self._url("change", pk))
        if credential.status != Status.DISCONNECTED:  # in another tab
            credential.disconnect(user=_person(request))
        self._say_disconnected(request, 1)
        return HttpResponseRedirect(self._url("change", pk))

    @admin.action(
        description=gettext_lazy("Refresh selected credentials"), permissions=["refresh"]
    )
    def refresh_selected(self, request: HttpRequest, queryset: QuerySet[Credential]) -> None:
        """Refresh a few at once; let the next run refresh many."""
        count = queryset.count()
        if count > MOST_REFRESHED_AT_ONCE:
            if not self._is_too_much(request, count):
                self._request_refresh(request, queryset)
            return
        waiting = list(queryset)
        while waiting:
            error = self._refresh(request, waiting.pop(0))
            if waiting and isinstance(error, TemporarilyUnavailable):
                self._say_left_out(request, len(waiting))
                return

    @admin.action(
        description=gettext_lazy("Disconnect selected credentials"), permissions=["disconnect"]
    )
    def disconnect_selected(
        self, request: HttpRequest, queryset: QuerySet[Credential]
    ) -> HttpResponse | None:
        """Ask, and then disconnect."""
        selected = list(queryset.exclude(status=Status.DISCONNECTED)[: MOST_SELECTED + 1])
        if self._is_too_much(request, len(selected)):
            return None
        if selected and "confirmed" not in request.POST:
            return self._ask_to_disconnect(request, selected, self._url("changelist"))
        if not selected:
            self._say_nothing_to_do(request)
            return None
        for credential in selected:
            credential.disconnect(user=_person(request))
        self._say_disconnected(request, len(selected))
        return None

    def reconnect_url(self, request: HttpRequest, credential: Credential) -> str:
        """Return where the account is connected again; empty for who may not."""
        if not self.has_add_permission(request):
            return ""
        here = self._url("change", credential.pk)
        return addresses.authorize(next_url=here, credential=credential.pk)

    def _credential(self, request: HttpRequest, pk: int, may: bool) -> Credential:
        """Return the credential that the request is about.

        :raises PermissionDenied: this person may not do that, or not see it.
        """
        if not (may and self.has_view_permission(request)):
            raise PermissionDenied
        return get_object_or_404(self.get_queryset(request), pk=pk)

    def _refresh(self, request: HttpRequest, credential: Credential) -> InfusionsoftError | None:
        """Refresh, say what came of it, and return what went wrong, if anything."""
        try:
            credential.refresh(user=_person(request))
        except InfusionsoftError as error:
            text = _("Account %(account)s was not refreshed. %(error)s")
            self._say_error(request, text, credential, error)
            return error
        text = _("Account %(account)s has a new access token.") % {"account": credential}
        self.message_user(request, text, messages.SUCCESS)
        return None

    def _request_refresh(self, request: HttpRequest, queryset: QuerySet[Credential]) -> None:
        asked = Credential.objects.get_queryset().filter(pk__in=queryset.values("pk"))
        count = asked.request_refresh(user=_person(request))
        if not count:
            self._say_nothing_to_do(request)
            return
        text = ngettext(
            "%(count)d account is refreshed by the next run of the worker.",
            "%(count)d accounts are refreshed by the next run of the worker.",
            count,
        )
        self.message_user(request, text % {"count": count}, messages.SUCCESS)

    def _ask_to_disconnect(
        self, request: HttpRequest, credentials: list[Credential], back_url: str
    ) -> HttpResponse:
        title = ngettext(
            "Disconnect %(count)d Keap account?",
            "Disconnect %(count)d Keap accounts?",
            len(credentials),
        )
        context = {
            "title": title % {"count": len(credentials)},
            "credentials": credentials,
            "named": credentials[:MOST_NAMED],
            "more": max(0, len(credentials) - MOST_NAMED),
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
        """Return what the page shows of each client that can be connected with."""
        states = troubled(router.db_for_write(Application))
        troubles = {state.application_id: words.state(state) for state in states}
        parameters = {each: each.pk if each else SETTINGS_CLIENT for each in applications}
        return [
            {
                "application": application,
                "is_default": application.is_default if application else not applications[0],
                "url": addresses.authorize(next_url=next_url, application=parameter),
                "trouble": troubles.get(application.pk if application else None, ""),
            }
            for application, parameter in parameters.items()
        ]

    def _say_error(
        self, request: HttpRequest, text: str, credential: Credential, error: InfusionsoftError
    ) -> None:
        """Say what went wrong, with the link that mends it where there is one."""
        message: Any = text % {"account": credential, "error": error}
        url = self.reconnect_url(request, credential)
        if isinstance(error, ReauthorizationRequired) and url:
            message = format_html('{} <a href="{}">{}</a>', message, url, _("Reconnect"))
        self.message_user(request, message, messages.ERROR)

    def _say_left_out(self, request: HttpRequest, count: int) -> None:
        text = ngettext(
            "%(count)d more account was left as it is.",
            "%(count)d more accounts were left as they are.",
            count,
        )
        self.message_user(request, text % {"count": count}, messages.WARNING)

    def _say_disconnected(self, request: HttpRequest, count: int) -> None:
        text = ngettext(
            "%(count)d account is disconnected: its tokens are forgotten here.",
            "%(count)d accounts are disconnected: their tokens are forgotten here.",
            count,
        )
        message = format_html("{} {}", text % {"count": count}, REVOKE_AT_KEAP)
        self.message_user(request, message, messages.SUCCESS)

    def _say_nothing_to_do(self, request: HttpRequest) -> None:
        text = _("Nothing to do: none of the selected accounts is connected and idle.")
        self.message_user(request, text, messages.WARNING)

    def _is_too_much(self, request: HttpRequest, count: int) -> bool:
        """Tell whether more are selected than one request can take, and say so."""
        if count <= MOST_SELECTED:
            return False
        text = _("Select at most %(count)d accounts at once.") % {"count": MOST_SELECTED}
        self.message_user(request, text, messages.ERROR)
        return True

    def _url(self, name: str, *args: Any) -> str:
        return addresses.page(self.admin_site.name, f"credential_{name}", *args)


def _may(request: HttpRequest, verb: str) -> bool:
    return request.user.has_perm(f"django_infusionsoft.{verb}_credential")


def _person(request: HttpRequest) -> AbstractBaseUser | None:
    """Return who it is. Nobody else than a user gets into the admin."""
    return request.user if request.user.is_authenticated else None


def _told(answer: Answer, credential: Credential) -> str:
    """Return Keap's answer in a sentence."""
    facts = {
        "account": answer.profile.account or credential,
        "user": answer.profile.keap_user,
        "milliseconds": answer.duration_ms,
        "status": answer.status_code,
    }
    if answer.outcome == Outcome.REJECTED:
        text = _(
            "Keap's API answered HTTP %(status)s after %(milliseconds)s ms: it does not accept "
            "this account's access token. Try again in a minute; if that lasts, reconnect."
        )
    elif not answer.is_ok:
        text = _(
            "Keap's API answered HTTP %(status)s after %(milliseconds)s ms: the trouble is at "
            "Keap. Try again in a few minutes."
        )
    elif answer.profile.keap_user:
        text = _(
            "The connection works: Keap's API answered after %(milliseconds)s ms that this is "
            "account %(account)s, and %(user)s."
        )
    else:
        text = _(
            "The connection works: Keap's API answered after %(milliseconds)s ms for account "
            "%(account)s."
        )
    return text % facts
