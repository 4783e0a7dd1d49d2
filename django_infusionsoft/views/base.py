"""The base of the views of the authorization code grant (RFC 6749 section 4.1)."""

from dataclasses import asdict
from typing import Any, TypeVar

from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.mixins import PermissionRequiredMixin
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.generic import View

from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.fields import get_cipher
from django_infusionsoft.keap import oauth
from django_infusionsoft.models import Application
from django_infusionsoft.redaction import clears_locals
from django_infusionsoft.storage.applications import client_of
from django_infusionsoft.views.oauth_state import PendingAuthorization

Response = TypeVar("Response", bound=HttpResponseBase)


class ErrorPage(Exception):
    """Ends the request with an error page.

    :param detail: the technical cause, for site administrators.
    :param pending: the authorization request that failed, so that the user can start it again.
    :param retry_after: the seconds after which it may succeed, if known (RFC 9110 section 10.2.3).
    """

    def __init__(
        self,
        title: str,
        text: str,
        *,
        status: int,
        detail: object = "",
        pending: PendingAuthorization | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(title)
        self.title, self.text, self.status = title, text, status
        self.detail, self.pending = str(detail), pending
        self.retry_after = retry_after

    def as_dict(self) -> dict[str, Any]:
        """Return it in the types of JSON."""
        return vars(self) | {"pending": self.pending and asdict(self.pending)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ErrorPage":
        pending = values["pending"]
        return cls(**values | {"pending": pending and PendingAuthorization(**pending)})


class KeapView(PermissionRequiredMixin, View):
    """Requires the permission, and keeps codes out of caches, referrers and frames.

    An empty ``permission_required`` allows every user who is logged in. The names of the URLs are
    reversed with the arguments of this request's URL.
    """

    permission_required: Any = "django_infusionsoft.connect_credential"
    authorize_url_name = "django_infusionsoft:authorize"
    callback_url_name = "django_infusionsoft:callback"
    template_name: str
    error_template_name = "django_infusionsoft/error.html"
    referrer_policy = "no-referrer"
    request: HttpRequest

    @property
    def user(self) -> AbstractBaseUser | None:
        return self.request.user if self.request.user.is_authenticated else None

    @property
    def is_for_staff(self) -> bool:
        """Whether it requires the permission to connect any account, as the app's own views do.

        All other views are for customers.
        """
        required = self.get_permission_required()
        return KeapView.permission_required in required and self.request.user.has_perms(required)

    def may_name_application(self) -> bool:
        """Whether ``?application=`` may name the client. By default only in views for staff."""
        return self.is_for_staff

    def has_permission(self) -> bool:
        return self.user is not None and super().has_permission()

    def handle_no_permission(self) -> HttpResponse:  # type: ignore[override]  # or a redirect
        # Returns its page: a mixin before this class calls it outside this class's dispatch().
        if self.user is None:
            return super().handle_no_permission()
        return self.render_error(
            ErrorPage(
                _("You are not allowed to connect Keap accounts"),
                _("Ask a site administrator for permission."),
                status=403,
            )
        )

    @clears_locals
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            response = super().dispatch(request, *args, **kwargs)
        except ErrorPage as error_page:
            return self.render_error(error_page)
        return self._protected(response)

    def render_error(self, error_page: ErrorPage) -> HttpResponse:
        """Return the response for an error page."""
        pending = error_page.pending
        context = {
            "error": error_page,
            "retry_url": self._authorize_url(pending),
            "back_url": pending.next_url if pending else "",
        }
        response = render(
            self.request, self.error_template_name, context, status=error_page.status
        )
        if error_page.retry_after is not None:
            response.headers["Retry-After"] = str(error_page.retry_after)
        return self._protected(response)

    def _protected(self, response: Response) -> Response:
        """Return the response with headers against caches, referrers and frames."""
        response.headers["Cache-Control"] = "no-store"
        response.headers.setdefault("Referrer-Policy", self.referrer_policy)
        response.headers.setdefault("X-Frame-Options", "DENY")
        return response

    def _url(self, name: str, query: dict[str, Any] | None = None) -> str:
        return reverse(name, args=self.args, kwargs=self.kwargs, query=query)

    def _authorize_url(self, pending: PendingAuthorization | None) -> str:
        parameters = pending and {
            "application": pending.application_id if self.may_name_application() else None,
            "credential": pending.credential_id,
            "next": pending.next_url,
        }
        query = {name: value for name, value in (parameters or {}).items() if value}
        return self._url(self.authorize_url_name, query)


def usable_client(application: Application | None) -> oauth.Client:
    """Return the client, if a new token pair could also be stored.

    :raises ConfigurationError: a setting is missing or invalid.
    """
    get_cipher()
    conf.REFRESH_FRACTION  # noqa: B018
    return client_of(application)


def misconfigured(
    error: ConfigurationError, pending: PendingAuthorization | None = None
) -> ErrorPage:
    return ErrorPage(
        _("This site is not configured for Keap"),
        _("Nothing was connected. A site administrator must fix the configuration first."),
        detail=error,
        status=503,
        pending=pending,
    )


def not_stored(pending: PendingAuthorization | None = None) -> ErrorPage:
    return ErrorPage(
        _("The connection could not be stored"),
        _("The database did not save it. Start again in a few minutes."),
        status=503,
        pending=pending,
    )
