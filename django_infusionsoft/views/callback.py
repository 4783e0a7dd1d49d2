"""The callback: exchange the authorization code, and store the token pair."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.db import Error as DatabaseError
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
    QueryDict,
)
from django.shortcuts import render
from django.utils.translation import gettext as _

from django_infusionsoft import waiting
from django_infusionsoft.connect import callbacks, connection_check, profiles
from django_infusionsoft.exceptions import (
    ConfigurationError,
    DatabaseBusy,
    GrantRejected,
    NotAllowed,
    TemporarilyUnavailable,
)
from django_infusionsoft.keap import oauth
from django_infusionsoft.models import Application, Credential
from django_infusionsoft.redaction import Secret, hide_query_from_sentry
from django_infusionsoft.storage.credentials import CredentialRow
from django_infusionsoft.storage.database import outside_atomic_requests
from django_infusionsoft.views.base import (
    ErrorPage,
    KeapView,
    misconfigured,
    not_stored,
    usable_client,
)
from django_infusionsoft.views.oauth_state import PendingAuthorization
from django_infusionsoft.views.repeats import handle_once


class CallbackView(KeapView):
    """Checks the state, exchanges the code, stores the token pair (access and refresh token)."""

    # Without HEAD: a link checker could use up the code.
    http_method_names = ["get", "options"]
    template_name = "django_infusionsoft/connected.html"

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., HttpResponseBase]:
        """Return the view, outside ATOMIC_REQUESTS: a later error must not undo the connection.

        LoginRequiredMiddleware leaves it alone. It would put the code into the login page's URL.
        """
        return login_not_required(outside_atomic_requests(super().as_view(**initkwargs)))

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)
        self._answer = request.GET
        _remove_query(request)

    def handle_no_permission(self) -> HttpResponse:  # type: ignore[override]
        if self.user is not None:
            return super().handle_no_permission()
        # No redirect to a login page: the code would be in its URL, or missing afterwards.
        return self.render_error(
            ErrorPage(
                _("You are not logged in to this site"),
                _("Nothing was connected. Log in and start again."),
                detail=_(
                    "If you are logged in, Keap redirected you to a different address than the "
                    "one where you started, or SESSION_COOKIE_SAMESITE is 'Strict'."
                ),
                status=403,
            )
        )

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        state = self._parameter("state")
        parameters = Secret(self._answer.urlencode())
        return self.connected(*handle_once(request, state, parameters, self._connect))

    def may_connect(self, pair_account: str | None, existing: Credential | None) -> bool:
        """Return whether the user may connect the account. Called before anything is stored.

        By default, a customer must not replace the token pair of an account that somebody else
        has connected.

        :param pair_account: the account that the user chose at Keap; ``None``: Keap names none.
        :param existing: the account's credential, if there is one. Its row is locked.
        """
        if self.is_for_staff:
            return True
        is_own = existing is None or (
            self.user is not None and existing.authorized_by_id == self.user.pk
        )
        return pair_account is not None and is_own

    def connected(self, credential: Credential, pending: PendingAuthorization) -> HttpResponse:
        """Return the response once the token pair is stored.

        Override this to record which user or customer has the account. It is called again if the
        same request comes again within a minute.

        :param pending: the authorization request, with ``next_url`` and, for a reconnection,
            ``credential_id``.
        """
        expected = _expected_of(pending)
        other = expected if expected != credential else None
        if not pending.next_url:
            context = {"credential": credential, "other": other}
            return render(self.request, self.template_name, context)
        self._add_message(credential, other)
        return HttpResponseRedirect(pending.next_url)

    def _add_message(self, credential: Credential, other: Credential | None) -> None:
        names = {"account": credential, "other": other}
        if other is None:
            text = _("Account %(account)s is connected.") % names
            messages.success(self.request, text, fail_silently=True)
        else:
            text = _(
                "You chose account %(account)s at Keap, and it is now connected. Account "
                "%(other)s is unchanged."
            )
            messages.warning(self.request, text % names, fail_silently=True)

    def _connect(self, pending: PendingAuthorization, response: callbacks.Response) -> Credential:
        if "error" in self._answer:
            raise _error_response(self._answer["error"], pending)
        code = self._parameter("code")
        if not code:
            raise ErrorPage(
                _("Keap sent no authorization code"),
                _("Nothing was connected. Start again."),
                status=400,
                pending=pending,
            )
        return self._exchange(code, pending, response)

    def _exchange(
        self, code: str, pending: PendingAuthorization, response: callbacks.Response
    ) -> Credential:
        try:
            application = _application_of(pending)
            client, expected = usable_client(application), _expected_of(pending)
            _require_few_exchanges(response, pending)
            pair = oauth.exchange_code(client, code=code, redirect_uri=pending.redirect_uri)
            with waiting.limited(callbacks.AFTER_EXCHANGE_SECONDS):
                return self._store(pair, application, expected, pending)
        except GrantRejected as error:
            raise ErrorPage(
                _("Keap rejected the authorization code"),
                _("It has already been used or has expired. Nothing was connected. Start again."),
                status=400,
                pending=pending,
            ) from error
        except ConfigurationError as error:
            raise misconfigured(error, pending) from error
        except (DatabaseError, DatabaseBusy) as error:
            raise not_stored(pending) from error
        except TemporarilyUnavailable as error:
            raise _unavailable(pending, error) from error

    def _store(
        self,
        pair: oauth.TokenPair,
        application: Application | None,
        expected: Credential | None,
        pending: PendingAuthorization,
    ) -> Credential:
        """Store the token pair, then what Keap says about the account."""
        if pair.account is None and not self.is_for_staff:
            pair = replace(pair, account=profiles.account_of(pair.access_token))
        try:
            credential = Credential.objects.connect(
                pair,
                application=application,
                user=self.user,
                expected=expected,
                may_connect=partial(self.may_connect, pair.account),
            )
        except NotAllowed as error:
            if error.existing is not None:
                connection_check.recheck(error.existing, user=self.user)
            raise _not_allowed(pair.account, error.existing, pending) from error
        return credential.fetch_profile()

    def _parameter(self, name: str) -> str:
        """Return the value; empty where it is missing or repeated (RFC 6749 section 3.1)."""
        values = self._answer.getlist(name)
        return Secret(values[0]) if len(values) == 1 else ""


def _remove_query(request: HttpRequest) -> None:
    """Remove the code and the state, so that they reach no log or error report."""
    request.GET = QueryDict()
    request.META["QUERY_STRING"] = ""
    for name in {"REQUEST_URI", "RAW_URI"} & request.META.keys():  # uWSGI's, Gunicorn's
        request.META[name] = request.META[name].partition("?")[0]
    hide_query_from_sentry()


def _require_few_exchanges(response: callbacks.Response, pending: PendingAuthorization) -> None:
    if not callbacks.reserve_exchange(
        response, user_id=pending.user_id, application_id=pending.application_id
    ):
        raise ErrorPage(
            _("Too many attempts"),
            _("Nothing was connected. Start again in a minute."),
            status=429,
            pending=pending,
            retry_after=callbacks.EXCHANGES_SECONDS,
        )


def _application_of(pending: PendingAuthorization) -> Application | None:
    if pending.application_id is None:
        return None
    application = Application.objects.filter(pk=pending.application_id).first()
    if application is None:
        raise ConfigurationError(_("The application has been deleted in the meantime."))
    return application


def _expected_of(pending: PendingAuthorization) -> Credential | None:
    """Return the credential to reconnect, unless it has been deleted."""
    if pending.credential_id is None:
        return None
    return Credential.objects.filter(pk=pending.credential_id).first()


def _not_allowed(
    account: str | None, existing: CredentialRow | None, pending: PendingAuthorization
) -> ErrorPage:
    if account is None:
        return ErrorPage(
            _("Keap did not say which account this is"),
            _("Nothing was connected. Start again in a few minutes."),
            status=503,
            pending=pending,
        )
    text = _("Nothing was connected. Ask a site administrator for permission.")
    if existing is not None:
        text = _(
            "Account %(account)s is already connected, and not by you. Nothing was connected. "
            "Ask a site administrator."
        )
    return ErrorPage(
        _("You are not allowed to connect this account"),
        text % {"account": account},
        status=403,
        pending=pending,
    )


def _unavailable(pending: PendingAuthorization, detail: object = "") -> ErrorPage:
    return ErrorPage(
        _("Keap is not responding"),
        _("Nothing was connected. Start again in a few minutes."),
        detail=detail,
        status=503,
        pending=pending,
    )


def _error_response(error: str, pending: PendingAuthorization) -> ErrorPage:
    """Return the page for an error code (RFC 6749 section 4.1.2.1).

    The response's ``error_description`` is not shown: anyone can craft such a link.
    """
    if error in ("server_error", "temporarily_unavailable"):
        return _unavailable(pending)
    if error == "access_denied":
        return ErrorPage(
            _("Access was denied at Keap"),
            _("Nothing was connected, and nothing has changed."),
            status=403,
            pending=pending,
        )
    return ErrorPage(
        _("Keap rejected the request"),
        _("Nothing was connected. A site administrator must look into the problem."),
        detail=_("Check the client id, INFUSIONSOFT_SCOPE and the redirect URI."),
        status=400,
        pending=pending,
    )
