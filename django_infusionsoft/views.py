"""The two views of the authorization code grant: off to Keap, and back.

A site that lets its customers connect their own accounts subclasses both; see the docs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

from django.contrib import messages
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.mixins import PermissionRequiredMixin
from django.db import Error as DatabaseError
from django.db.models import QuerySet
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
    QueryDict,
)
from django.shortcuts import render
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.debug import SafeExceptionReporterFilter
from django.views.decorators.clickjacking import xframe_options_deny
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_variables
from django.views.generic import View

from django_infusionsoft import oauth, states
from django_infusionsoft.choices import SETTINGS_CLIENT
from django_infusionsoft.conf import conf, require_endpoint
from django_infusionsoft.database import outside_atomic_requests
from django_infusionsoft.exceptions import (
    ConfigurationError,
    GrantRejected,
    TemporarilyUnavailable,
)
from django_infusionsoft.fields import get_cipher
from django_infusionsoft.models import Application, Credential, client_of
from django_infusionsoft.states import Pending, StateError

Row = TypeVar("Row", Application, Credential)


class Problem(Exception):
    """Ends a request with a page: the fact, the next step, and the way there.

    :param detail: the cause in technical words, for whoever runs the site.
    :param pending: what the person was about to do, to start it again.
    """

    def __init__(
        self,
        title: str,
        text: str,
        *,
        status: int,
        detail: object = "",
        pending: Pending | None = None,
    ) -> None:
        super().__init__(title)
        self.title = title
        self.text = text
        self.status = status
        self.detail = str(detail)
        self.pending = pending


class SecretsFilter(SafeExceptionReporterFilter):
    """Keeps what ``sensitive_variables`` names off the page that Django shows under DEBUG, too."""

    def is_active(self, request: HttpRequest | None) -> bool:
        return True


class KeapView(PermissionRequiredMixin, View):
    """What both views share: who may, and what no cache and no other site may keep.

    ``permission_required`` may be empty, for every user who is logged in. The URLs of both views
    are looked up by their names, with the arguments of the URL of this request.
    """

    permission_required: Any = "django_infusionsoft.connect_credential"
    authorize_url_name = "django_infusionsoft:authorize"
    callback_url_name = "django_infusionsoft:callback"
    template_name: str
    problem_template_name = "django_infusionsoft/problem.html"
    referrer_policy = "no-referrer"
    request: HttpRequest

    @property
    def user(self) -> AbstractBaseUser | None:
        return self.request.user if self.request.user.is_authenticated else None

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)
        request.exception_reporter_filter = SecretsFilter()

    def has_permission(self) -> bool:
        return self.user is not None and super().has_permission()

    def handle_no_permission(self) -> HttpResponseRedirect:
        if self.user is None:
            return super().handle_no_permission()
        raise Problem(
            _("You may not connect Keap accounts"),
            _("Ask somebody who runs this site to allow you that."),
            status=403,
        )

    @method_decorator(xframe_options_deny)
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            response = super().dispatch(request, *args, **kwargs)
        except Problem as problem:
            response = self.show(problem)
        response.headers["Cache-Control"] = "no-store"
        response.headers.setdefault("Referrer-Policy", self.referrer_policy)
        return response

    def show(self, problem: Problem) -> HttpResponse:
        """Return the page of a problem."""
        pending = problem.pending
        context = {
            "problem": problem,
            "again_url": self._authorize_url(pending),
            "back_url": pending.next_url if pending else "",
        }
        return render(self.request, self.problem_template_name, context, status=problem.status)

    def _url(self, name: str) -> str:
        return reverse(name, args=self.args, kwargs=self.kwargs)

    def _authorize_url(self, pending: Pending | None) -> str:
        url = self._url(self.authorize_url_name)
        if pending is None:
            return url
        parameters = {
            "application": pending.application_id,
            "credential": pending.credential_id,
            "next": pending.next_url,
        }
        query = urlencode({name: value for name, value in parameters.items() if value})
        return f"{url}?{query}" if query else url


@dataclass(frozen=True, slots=True)
class Start:
    """What a request comes to, before anybody is sent anywhere."""

    client: oauth.Client
    redirect_uri: str
    application: Application | None
    expected: Credential | None


@method_decorator(csrf_protect, name="dispatch")
class AuthorizeView(KeapView):
    """GET shows what will happen, POST sends the person to Keap.

    Parameters, all optional: ``application`` (its id; ``settings`` is the client there),
    ``credential`` (the id of one to be connected again), ``next`` (where to go afterwards, on this
    site).
    """

    http_method_names = ["get", "head", "post", "options"]
    template_name = "django_infusionsoft/authorize.html"
    # From a page under "no-referrer" browsers post a form with "Origin: null", which Django's
    # CSRF check refuses. Nothing secret is in this page's own URL.
    referrer_policy = "same-origin"

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        start = self._start()
        context = {
            "application": start.application,
            "expected": start.expected,
            "redirect_uri": start.redirect_uri,
            "keap_host": urlsplit(conf.AUTHORIZE_URL).netloc,
            "back_url": self._next_url(),
        }
        return render(request, self.template_name, context)

    @sensitive_variables()
    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        start = self._start()
        pending = Pending(
            user_id=states.user_id_of(request),
            redirect_uri=start.redirect_uri,
            application_id=start.application.pk if start.application else None,
            credential_id=start.expected.pk if start.expected else None,
            next_url=self._next_url(),
        )
        state = states.begin(request, pending)
        url = oauth.authorization_url(start.client, redirect_uri=start.redirect_uri, state=state)
        return HttpResponseRedirect(url, headers={"Referrer-Policy": "no-referrer"})

    def get_credentials(self) -> QuerySet[Credential]:
        """Return the credentials that this person may name, to connect them again."""
        return Credential.objects.all()

    def get_application(self) -> Application | None:
        """Return the application for a new account; ``None`` is the client in the settings.

        :raises ConfigurationError: there is none.
        """
        if self.request.GET.get("application") == SETTINGS_CLIENT and conf.CLIENT_ID:
            return None
        applications = Application.objects.all()
        return self._named("application", applications) or Application.objects.get_default()

    def get_redirect_uri(self) -> str:
        """Return the absolute URL that Keap sends the person back to.

        That is ``INFUSIONSOFT_REDIRECT_URI`` where it is set. A subclass with another callback
        takes only scheme and host from there.

        :raises ConfigurationError: it is plain HTTP, and not on this machine.
        """
        is_ours = self.callback_url_name == KeapView.callback_url_name
        if conf.REDIRECT_URI and is_ours:
            return conf.REDIRECT_URI
        base = conf.REDIRECT_URI or self.request.build_absolute_uri("/")
        return require_endpoint(
            urljoin(base, self._url(self.callback_url_name)),
            "The callback URL built from this request",
            "Set INFUSIONSOFT_REDIRECT_URI, or SECURE_PROXY_SSL_HEADER behind a proxy.",
        )

    def _start(self) -> Start:
        expected = self._named("credential", self.get_credentials())
        try:
            application = expected.application if expected else self.get_application()
            client, redirect_uri = _usable_client(application), self.get_redirect_uri()
        except ConfigurationError as error:
            raise _misconfigured(error) from error
        return Start(client, redirect_uri, application, expected)

    def _named(self, name: str, rows: QuerySet[Row]) -> Row | None:
        """Return the row whose id the parameter gives, if there is such a parameter."""
        value = self.request.GET.get(name)
        if value is None:
            return None
        row = rows.filter(pk=value).first() if _is_id(value) else None
        if row is None:
            raise Problem(
                _("There is nothing to be connected here"),
                _("The link leads to something that has been deleted. Start without it."),
                status=404,
            )
        return row

    def _next_url(self) -> str:
        url = self.request.GET.get("next", "")
        is_safe = url_has_allowed_host_and_scheme(
            url, {self.request.get_host()}, require_https=self.request.is_secure()
        )
        return url if is_safe else ""


class CallbackView(KeapView):
    """Takes the person back from Keap: checks the state, exchanges the code, stores the pair."""

    # Without HEAD: a link checker's would spend the code.
    http_method_names = ["get", "options"]
    template_name = "django_infusionsoft/connected.html"

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., HttpResponseBase]:
        """Return the view, outside ATOMIC_REQUESTS.

        What happens after the pair is stored must not be able to undo it.
        """
        return outside_atomic_requests(super().as_view(**initkwargs))

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)
        self._answer = request.GET
        _forget_query(request)

    def handle_no_permission(self) -> HttpResponseRedirect:
        if self.user is not None:
            return super().handle_no_permission()
        # No redirect to a login page: it would carry the code along.
        raise Problem(
            _("You are not logged in here"),
            _("Nothing was connected. Log in, and start again."),
            detail=_(
                "If you are logged in: Keap has sent you to another address than the one where "
                "you began, or SESSION_COOKIE_SAMESITE is 'Strict'."
            ),
            status=403,
        )

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        credential, pending = self._connect()
        return self.connected(credential, pending)

    def connected(self, credential: Credential, pending: Pending) -> HttpResponse:
        """Answer once the pair is stored; where a subclass notes whose account it is.

        :param pending: what was remembered when the person was sent to Keap, with ``next_url``
            and, where an account was to be connected again, its ``credential_id``.
        """
        expected = _expected_of(pending)
        other = expected if expected != credential else None
        if not pending.next_url:
            context = {"credential": credential, "other": other}
            return render(self.request, self.template_name, context)
        self._say(credential, other)
        return HttpResponseRedirect(pending.next_url)

    def _say(self, credential: Credential, other: Credential | None) -> None:
        names = {"account": credential, "other": other}
        if other is None:
            text = _("Account %(account)s is connected.") % names
            messages.success(self.request, text, fail_silently=True)
        else:
            text = _(
                "You chose account %(account)s at Keap: it is connected now. Account %(other)s "
                "is as it was."
            )
            messages.warning(self.request, text % names, fail_silently=True)

    @sensitive_variables()
    def _connect(self) -> tuple[Credential, Pending]:
        pending = self._pending()
        if "error" in self._answer:
            raise _refused(self._answer["error"], pending)
        code = self._parameter("code")
        if not code:
            raise Problem(
                _("Keap sent no code"),
                _("Nothing was connected: start again."),
                status=400,
                pending=pending,
            )
        credential = self._exchange(code, pending)
        return credential.fetch_profile(), pending

    def _pending(self) -> Pending:
        try:
            return states.consume(self.request, self._parameter("state"))
        except StateError:
            raise Problem(
                _("This connection is not waiting for an answer"),
                _(
                    "It was completed already, took longer than ten minutes, or was not started "
                    "in this browser. Nothing has changed: if the account is not connected yet, "
                    "start again."
                ),
                detail=_(
                    "If it was started in this browser: Keap has sent you to another host name "
                    "than the one where you began."
                ),
                status=400,
            ) from None

    def _exchange(self, code: str, pending: Pending) -> Credential:
        try:
            application = _application_of(pending)
            client, expected = _usable_client(application), _expected_of(pending)
            pair = oauth.exchange_code(client, code=code, redirect_uri=pending.redirect_uri)
            return Credential.objects.connect(
                pair, application=application, user=self.user, expected=expected
            )
        except GrantRejected as error:
            raise Problem(
                _("Keap refused the code"),
                _("It was used already, or is too old. Nothing was connected: start again."),
                status=400,
                pending=pending,
            ) from error
        except ConfigurationError as error:
            raise _misconfigured(error, pending) from error
        except TemporarilyUnavailable as error:
            raise _unavailable(pending, error) from error
        except DatabaseError as error:
            raise Problem(
                _("The connection could not be stored"),
                _("The database did not take it: start again in a few minutes."),
                status=503,
                pending=pending,
            ) from error

    def _parameter(self, name: str) -> str:
        """Return the value; empty where it is missing or repeated (RFC 6749 section 3.1)."""
        values = self._answer.getlist(name)
        return values[0] if len(values) == 1 else ""


def _forget_query(request: HttpRequest) -> None:
    """Take code and state out of the request, and so out of logs and error reports."""
    request.GET = QueryDict()
    request.META["QUERY_STRING"] = ""
    for name in {"REQUEST_URI", "RAW_URI"} & request.META.keys():  # uWSGI's, Gunicorn's
        request.META[name] = request.META[name].partition("?")[0]


def _is_id(value: str) -> bool:
    return value.isascii() and value.isdecimal() and len(value) < 19  # as databases hold it


def _usable_client(application: Application | None) -> oauth.Client:
    # What a pair needs to be stored: better found missing before there is one.
    get_cipher()
    conf.REFRESH_FRACTION  # noqa: B018
    return client_of(application)


def _application_of(pending: Pending) -> Application | None:
    if pending.application_id is None:
        return None
    application = Application.objects.filter(pk=pending.application_id).first()
    if application is None:
        raise ConfigurationError(_("The application has been deleted meanwhile."))
    return application


def _expected_of(pending: Pending) -> Credential | None:
    """Return the credential to be connected again, unless it has been deleted meanwhile."""
    if pending.credential_id is None:
        return None
    return Credential.objects.filter(pk=pending.credential_id).first()


def _misconfigured(error: ConfigurationError, pending: Pending | None = None) -> Problem:
    return Problem(
        _("This site is not set up for Keap"),
        _("Nothing was connected. Somebody who runs this site has to mend it first."),
        detail=error,
        status=503,
        pending=pending,
    )


def _unavailable(pending: Pending, detail: object = "") -> Problem:
    return Problem(
        _("Keap does not answer"),
        _("Nothing was connected: start again in a few minutes."),
        detail=detail,
        status=503,
        pending=pending,
    )


def _refused(error: str, pending: Pending) -> Problem:
    """Return what an error response says (RFC 6749 section 4.1.2.1); its text is anybody's."""
    if error in ("server_error", "temporarily_unavailable"):
        return _unavailable(pending)
    if error == "access_denied":
        return Problem(
            _("Access was denied at Keap"),
            _("Nothing was connected, and nothing has changed."),
            status=403,
            pending=pending,
        )
    return Problem(
        _("Keap refused the request"),
        _("Nothing was connected. Somebody who runs this site has to look into it."),
        detail=_("Check the client id, INFUSIONSOFT_SCOPE and the redirect URI."),
        status=400,
        pending=pending,
    )
