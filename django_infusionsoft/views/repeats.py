"""Handles an authorization response once, and shows a repeated request the same result."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from django.db import Error, router
from django.http import HttpRequest
from django.utils.translation import gettext as _

from django_infusionsoft.connect import callbacks
from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.models import Credential
from django_infusionsoft.views import oauth_state
from django_infusionsoft.views.base import ErrorPage, not_stored
from django_infusionsoft.views.oauth_state import PendingAuthorization, StateError

Connection = tuple[Credential, PendingAuthorization]


def handle_once(
    request: HttpRequest,
    state: str,
    parameters: str,
    handle: Callable[[PendingAuthorization, callbacks.Response], Credential],
) -> Connection:
    """Return the connection that ``handle`` makes, or has made for an equal request.

    The requests may be under way at the same time: the second one waits.

    :raises ErrorPage: ``handle`` has raised it, or the state is unknown, used or expired.
    """
    response = callbacks.response_to(
        router.db_for_write(Credential),
        state=state,
        user_id=oauth_state.user_id_of(request),
        parameters=parameters,
    )
    if not (oauth_state.is_pending(request, state) and _claim(response)):
        return _repeated(response)
    result: dict[str, Any] = {}
    try:
        pending = _consume(request, state)
        credential = handle(pending, response)
        result = {"credential": credential.pk, "pending": asdict(pending)}
    except ErrorPage as page:
        result = {"error": page.as_dict()}
        raise
    finally:
        callbacks.finish(response, result)
    return credential, pending


def _claim(response: callbacks.Response) -> bool:
    try:
        return callbacks.claim(response)
    except (Error, DatabaseBusy) as error:
        raise not_stored() from error


def _repeated(response: callbacks.Response) -> Connection:
    try:
        return _connection_in(callbacks.result_of(response))
    except (Error, DatabaseBusy) as error:
        raise not_stored() from error


def _consume(request: HttpRequest, state: str) -> PendingAuthorization:
    try:
        return oauth_state.consume(request, state)
    except StateError:
        raise _not_pending() from None


def _connection_in(result: dict[str, Any] | None) -> Connection:
    """Return the connection that an equal request has made, or raise its error."""
    if result is None:
        raise _not_pending()
    if "error" in result:
        raise ErrorPage.from_dict(result["error"])
    credential = Credential.objects.filter(pk=result.get("credential", 0)).first()
    if credential is None:
        raise ErrorPage(
            _("This connection attempt was interrupted"),
            _("If the account is not connected, start again."),
            status=503,
        )
    return credential, PendingAuthorization(**result["pending"])


def _not_pending() -> ErrorPage:
    return ErrorPage(
        _("This connection attempt is no longer open"),
        _(
            "It has already been completed, took longer than ten minutes, or was not "
            "started in this browser. Nothing has changed. If the account is not "
            "connected yet, start again."
        ),
        detail=_(
            "If it was started in this browser, Keap redirected you to a different host "
            "name than the one where you started."
        ),
        status=400,
    )
