"""The authorization request: a page that announces it, and a page that redirects to Keap."""

from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.http.request import split_domain_port, validate_host
from django.shortcuts import render
from django.utils.decorators import method_decorator
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.csrf import csrf_protect

from django_infusionsoft.choices import SETTINGS_CLIENT
from django_infusionsoft.conf import conf, is_loopback, named_hosts, require_endpoint
from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.keap import oauth
from django_infusionsoft.models import Application, Credential
from django_infusionsoft.views import oauth_state
from django_infusionsoft.views.base import ErrorPage, KeapView, misconfigured, usable_client
from django_infusionsoft.views.oauth_state import PendingAuthorization

Row = TypeVar("Row", Application, Credential)


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """The parameters of an authorization request, checked and complete."""

    client: oauth.Client
    redirect_uri: str
    application: Application | None
    expected: Credential | None


@method_decorator(csrf_protect, name="dispatch")
class AuthorizeView(KeapView):
    """GET shows what will happen, POST shows a page that redirects the user to Keap at once.

    A response that redirects would be blocked by ``Content-Security-Policy: form-action 'self'``,
    which browsers also apply to redirects after a form.

    Parameters, all optional: ``application`` (its id, or ``settings`` for the client in the
    settings), ``credential`` (the id of one to reconnect), ``next`` (a URL of this site to go to
    afterwards).
    """

    http_method_names = ["get", "head", "post", "options"]
    template_name = "django_infusionsoft/authorize.html"
    leaving_template_name = "django_infusionsoft/leaving.html"
    # With "no-referrer", browsers post a form with "Origin: null", which Django's CSRF check
    # rejects. This page's own URL contains no secret.
    referrer_policy = "same-origin"

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        authorization = self._authorization_request()
        context = {
            "application": authorization.application,
            "expected": authorization.expected,
            "redirect_uri": authorization.redirect_uri,
            "keap_host": _keap_host(),
            "back_url": self._next_url(),
        }
        return render(request, self.template_name, context)

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        authorization = self._authorization_request()
        pending = PendingAuthorization(
            user_id=oauth_state.user_id_of(request),
            redirect_uri=authorization.redirect_uri,
            application_id=authorization.application.pk if authorization.application else None,
            credential_id=authorization.expected.pk if authorization.expected else None,
            next_url=self._next_url(),
        )
        state = oauth_state.begin(request, pending)
        url = oauth.authorization_url(
            authorization.client, redirect_uri=authorization.redirect_uri, state=state
        )
        context = {"keap_url": url, "keap_host": _keap_host()}
        response = render(request, self.leaving_template_name, context)
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    def get_credentials(self) -> QuerySet[Credential]:
        """Return the credentials that this user may reconnect: a customer, only their own."""
        rows = Credential.objects.all()
        return rows if self.is_for_staff else rows.filter(authorized_by=self.request.user.pk)

    def get_application(self) -> Application | None:
        """Return the application for a new account; ``None`` is the client in the settings.

        :raises ConfigurationError: there is no client.
        """
        applications = Application.objects.all()
        if not self.may_name_application():
            applications = applications.none()
        elif self.request.GET.get("application") == SETTINGS_CLIENT and conf.CLIENT_ID:
            return None
        return self._named("application", applications) or Application.objects.get_default()

    def get_redirect_uri(self) -> str:
        """Return the absolute URL that Keap redirects the user to.

        This is ``INFUSIONSOFT_REDIRECT_URI`` if it is set. A subclass with another callback view
        takes only the scheme and the host from it.

        :raises ConfigurationError: the URL is plain HTTP, and not on this machine. Or, in views
            for customers, the setting is empty, and a wildcard allows the request's host.
        """
        if conf.REDIRECT_URI and self.callback_url_name == KeapView.callback_url_name:
            return conf.REDIRECT_URI
        if not (conf.REDIRECT_URI or self.is_for_staff):
            _require_named(self.request.get_host())
        base = conf.REDIRECT_URI or self.request.build_absolute_uri("/")
        return require_endpoint(
            urljoin(base, self._url(self.callback_url_name)),
            "The callback URL built from this request",
            "Set INFUSIONSOFT_REDIRECT_URI, or SECURE_PROXY_SSL_HEADER behind a proxy.",
        )

    def _authorization_request(self) -> AuthorizationRequest:
        expected = self._named("credential", self.get_credentials())
        try:
            application = expected.application if expected else self.get_application()
            client, redirect_uri = usable_client(application), self.get_redirect_uri()
        except ConfigurationError as error:
            raise misconfigured(error) from error
        return AuthorizationRequest(client, redirect_uri, application, expected)

    def _named(self, name: str, rows: QuerySet[Row]) -> Row | None:
        """Return the row whose id is the parameter's value; ``None`` without the parameter."""
        value = self.request.GET.get(name)
        if value is None:
            return None
        row = rows.filter(pk=value).first() if _is_id(value) else None
        if row is None:
            raise ErrorPage(
                _("Nothing to connect here"),
                _(
                    "The account or application in this link does not exist any more. Start again "
                    "without the link."
                ),
                status=404,
            )
        return row

    def _next_url(self) -> str:
        url = self.request.GET.get("next", "")
        is_safe = url_has_allowed_host_and_scheme(
            url, {self.request.get_host()}, require_https=self.request.is_secure()
        )
        return url if is_safe else ""


def _require_named(host: str) -> None:
    """Raise an error unless the site names the host: the code would be sent to any other, too."""
    domain, _port = split_domain_port(host)
    if not (is_loopback(domain.strip("[]")) or validate_host(domain, named_hosts())):
        raise ConfigurationError(
            f"ALLOWED_HOSTS does not name the host of this request, {host}. Set "
            f"INFUSIONSOFT_REDIRECT_URI, or name the host there instead of a wildcard."
        )


def _keap_host() -> str:
    return urlsplit(conf.AUTHORIZE_URL).netloc


def _is_id(value: str) -> bool:
    return value.isascii() and value.isdecimal() and len(value) < 19  # fits into a BigAutoField
