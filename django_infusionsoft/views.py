"""The two views of the authorization code grant: off to Keap, and back.

A site that lets its customers connect their own accounts subclasses both; see the docs.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.mixins import PermissionRequiredMixin
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.clickjacking import xframe_options_deny
from django.views.decorators.debug import sensitive_variables
from django.views.generic import View

from django_infusionsoft import oauth, states
from django_infusionsoft.conf import conf, require_endpoint
from django_infusionsoft.exceptions import (
    ConfigurationError,
    GrantRejected,
    TemporarilyUnavailable,
)
from django_infusionsoft.models import Application, Credential, client_of
from django_infusionsoft.states import Pending, StateError


class KeapView(PermissionRequiredMixin, View):
    """What both views share: who may, and what no cache and no other site may keep."""

    permission_required: Any = "django_infusionsoft.add_credential"
    authorize_url_name = "django_infusionsoft:authorize"
    callback_url_name = "django_infusionsoft:callback"
    referrer_policy = "no-referrer"
    request: HttpRequest

    @property
    def user(self) -> AbstractBaseUser | None:
        return self.request.user if self.request.user.is_authenticated else None

    def has_permission(self) -> bool:
        # An empty permission_required means every user, and never nobody.
        return self.request.user.is_authenticated and super().has_permission()

    @method_decorator(xframe_options_deny)
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response = super().dispatch(request, *args, **kwargs)
        response.headers["Cache-Control"] = "no-store"
        response.headers["Referrer-Policy"] = self.referrer_policy
        return response

    def problem(
        self, title: str, text: str, *, status: int, pending: Pending | None = None
    ) -> HttpResponse:
        """Show what went wrong and the way to try again."""
        context = {"title": title, "text": text, "again": self._authorize_url(pending)}
        return render(self.request, "django_infusionsoft/problem.html", context, status=status)

    def _authorize_url(self, pending: Pending | None) -> str:
        url = reverse(self.authorize_url_name)
        if pending is None:
            return url
        parameters = {
            "application": pending.application_id,
            "credential": pending.credential_id,
            "next": pending.next_url,
        }
        query = urlencode({name: value for name, value in parameters.items() if value})
        return f"{url}?{query}" if query else url


class AuthorizeView(KeapView):
    """GET shows what will happen, POST sends the person to Keap.

    Parameters, all optional: ``application`` (its id), ``credential`` (the id of one to be
    connected again), ``next`` (where to go afterwards, on this site).
    """

    # A form of a page under "no-referrer" is posted with "Origin: null", which Django's CSRF
    # check refuses. Nothing secret is in this page's own URL.
    referrer_policy = "same-origin"

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._prepared(self._show)

    def post(self, request: HttpRequest) -> HttpResponse:
        return self._prepared(self._start)

    def get_application(self) -> Application | None:
        """Return the application to connect with; ``None`` is the client in the settings.

        :raises ConfigurationError: there is none.
        """
        if (expected := self.get_expected()) is not None:
            return expected.application
        if pk := self._id("application"):
            return get_object_or_404(Application, pk=pk)
        return Application.objects.get_default()

    def get_expected(self) -> Credential | None:
        """Return the credential to be connected again, if the request names one."""
        if pk := self._id("credential"):
            return get_object_or_404(Credential.objects.select_related("application"), pk=pk)
        return None

    def get_redirect_uri(self) -> str:
        """Return the absolute URL that Keap sends the person back to.

        :raises ConfigurationError: it is plain HTTP, and not on this machine.
        """
        if conf.REDIRECT_URI:
            return conf.REDIRECT_URI
        url = self.request.build_absolute_uri(reverse(self.callback_url_name))
        return require_endpoint(
            url,
            "The callback URL built from this request",
            "Set INFUSIONSOFT_REDIRECT_URI, or SECURE_PROXY_SSL_HEADER behind a proxy.",
        )

    def _prepared(self, answer: Any) -> HttpResponse:
        application, expected = None, self.get_expected()
        try:
            application = self.get_application()
            client, redirect_uri = client_of(application), self.get_redirect_uri()
            return answer(application, expected, client, redirect_uri)  # type: ignore[no-any-return]
        except ConfigurationError as error:
            return self.problem(_("This site is not set up for Keap yet"), str(error), status=503)

    def _show(
        self,
        application: Application | None,
        expected: Credential | None,
        client: oauth.Client,
        redirect_uri: str,
    ) -> HttpResponse:
        context = {
            "application": application,
            "expected": expected,
            "redirect_uri": redirect_uri,
            "authorize_host": conf.AUTHORIZE_URL.split("/")[2],
            "cancel": self._next_url(),
        }
        return render(self.request, "django_infusionsoft/authorize.html", context)

    def _start(
        self,
        application: Application | None,
        expected: Credential | None,
        client: oauth.Client,
        redirect_uri: str,
    ) -> HttpResponse:
        pending = Pending(
            user_id=states.user_id_of(self.request),
            redirect_uri=redirect_uri,
            application_id=application.pk if application else None,
            credential_id=expected.pk if expected else None,
            next_url=self._next_url(),
        )
        state = states.begin(self.request, pending)
        url = oauth.authorization_url(client, redirect_uri=redirect_uri, state=state)
        return HttpResponseRedirect(url, headers={"Referrer-Policy": "no-referrer"})

    def _id(self, name: str) -> int | None:
        value = self.request.GET.get(name, "")
        return int(value) if value.isdecimal() and len(value) < 19 else None

    def _next_url(self) -> str:
        url = self.request.GET.get("next", "")
        is_ours = url_has_allowed_host_and_scheme(
            url, {self.request.get_host()}, require_https=self.request.is_secure()
        )
        return url if is_ours else ""


# Outside ATOMIC_REQUESTS: what happens after the pair is stored must not be able to undo it.
@method_decorator(transaction.non_atomic_requests, name="dispatch")
class CallbackView(KeapView):
    """Takes the person back from Keap: checks the state, exchanges the code, stores the pair."""

    def handle_no_permission(self) -> HttpResponseRedirect:
        # No redirect to a login page: it would carry the code along.
        return self.problem(  # type: ignore[return-value]
            _("You are not logged in, or may not connect accounts"),
            _("Nothing was connected. Log in as somebody who may, and start again."),
            status=403,
        )

    def get(self, request: HttpRequest) -> HttpResponse:
        try:
            pending = states.consume(request, request.GET.get("state", ""))
        except StateError as error:
            text = _("Nothing was connected: start again, in this browser. %s") % error
            return self.problem(_("Not a connection of yours"), text, status=400)
        if "error" in request.GET:
            return self._refused(pending, request.GET["error"])
        if not request.GET.get("code"):
            return self.problem(
                _("Keap sent no code"), _("Start again."), status=400, pending=pending
            )
        return self._exchanged(pending)

    def connected(self, credential: Credential, pending: Pending) -> HttpResponse:
        """Answer once the pair is stored; where a subclass notes whose account it is."""
        if pending.credential_id not in (None, credential.pk):
            messages.warning(
                self.request,
                _(
                    "You chose %(account)s at Keap: that account is connected now, and the other "
                    "one is as it was."
                )
                % {"account": credential},
                fail_silently=True,
            )
        else:
            messages.success(
                self.request,
                _("%(account)s is connected.") % {"account": credential},
                fail_silently=True,
            )
        if pending.next_url:
            return redirect(pending.next_url)
        return render(
            self.request, "django_infusionsoft/connected.html", {"credential": credential}
        )

    @sensitive_variables()
    def _exchanged(self, pending: Pending) -> HttpResponse:
        try:
            credential = self._connect(pending)
        except GrantRejected:
            title, status = _("Keap refused the code"), 400
            text = _("It may have been used or be too old. Nothing was connected: start again.")
        except ConfigurationError as error:
            title, status, text = _("This site is not set up for Keap yet"), 503, str(error)
        except TemporarilyUnavailable as error:
            title, status = _("Keap does not answer"), 503
            text = _("Nothing was connected: start again in a few minutes. %s") % error
        else:
            return self.connected(credential.fetch_profile(), pending)
        return self.problem(title, text, status=status, pending=pending)

    @sensitive_variables()
    def _connect(self, pending: Pending) -> Credential:
        application, expected = None, None
        if pending.application_id is not None:
            application = Application.objects.filter(pk=pending.application_id).first()
            if application is None:
                raise ConfigurationError(_("The application has been deleted meanwhile."))
        if pending.credential_id is not None:
            expected = Credential.objects.filter(pk=pending.credential_id).first()
        pair = oauth.exchange_code(
            client_of(application),
            code=self.request.GET["code"],
            redirect_uri=pending.redirect_uri,
        )
        return Credential.objects.connect(
            pair, application=application, user=self.user, expected=expected
        )

    def _refused(self, pending: Pending, error: str) -> HttpResponse:
        """Answer an error response (RFC 6749 section 4.1.2.1); its text is anybody's: unseen."""
        if error == "access_denied":
            title, status = _("Access was denied at Keap"), 403
            text = _("Nothing was connected, and nothing has changed.")
        elif error in ("server_error", "temporarily_unavailable"):
            title, status = _("Keap does not answer"), 503
            text = _("Nothing was connected: start again in a few minutes.")
        else:
            title, status = _("Keap refused the request"), 400
            text = _("Nothing was connected. Check the client id and the redirect URI.")
        return self.problem(title, text, status=status, pending=pending)
