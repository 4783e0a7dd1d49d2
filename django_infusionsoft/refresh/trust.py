"""Whether the app believes Keap's rejections of grants.

Another valid client, or a server that rejects everybody, would end all accounts in one run. So
rejections in a row are counted for each client. After ``MAX_BELIEVED`` the application is blocked,
and its accounts are only retried, one at a time (``turns``), until one is accepted.
"""

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from django.db.models import F, QuerySet

from django_infusionsoft.choices import DOUBTFUL, Status
from django_infusionsoft.refresh import breaker, receivers
from django_infusionsoft.storage.applications import (
    ApplicationState,
    ClientState,
    row_of,
    state_of,
    states,
)
from django_infusionsoft.storage.credentials import CredentialRow, alias_of, credential_model
from django_infusionsoft.storage.database import DatabaseNow, own_transaction

logger = logging.getLogger("django_infusionsoft")

# So many rejections in a row, without a success, are believed one by one.
MAX_BELIEVED: Final = 5
BELIEVE_FOR: Final = timedelta(days=1)
DISTRUST: Final = (
    "Keap has rejected the grants of so many accounts in a row that the cause may not be the "
    "accounts: the client id and secret may be those of another client, or Keap's server has a "
    "problem. Check them first. If the accounts have really ended, as after restoring an old "
    "backup, run: manage.py infusionsoft_refresh --believe-rejections"
)
# As after a success, but with the same token pair.
RETRY_NOW: Final[Mapping[str, Any]] = {
    "status": Status.CONNECTED,
    "reason": "",
    "failures": 0,
    "failing_since": None,
    "failed_outcome": "",
    "last_error": "",
    # If they are rejected again, they count again.
    "is_doubted": False,
}


def is_believed(credential: CredentialRow) -> bool:
    """Count a rejection of a refresh token; return whether the account must be reconnected.

    A token that was rejected before does not count again. If the database's answer is lost, one
    may count twice: fewer are believed then.
    """
    alias, application = alias_of(credential), credential.application
    with own_transaction(alias):
        state = state_of(alias, application)
        if state.believed_until is not None and state.believed_until > state.database_now:
            return True
        client = _client(alias, state)
        if not credential.is_doubted:
            client.update(rejections=F("rejections") + 1)
            row_of(alias, state).update(is_suspect=True)
        rejections = client.get().rejections
    if rejections >= MAX_BELIEVED:
        breaker.distrust(alias, application, DISTRUST)
    return rejections < MAX_BELIEVED + (not credential.is_doubted)


def note_success(credential: CredentialRow) -> None:
    """Trust the client again, if there were rejections, and retry the accounts it concerned."""
    if not credential.is_suspect:
        return  # as the claim has read it: the success of a trusted client takes no statement
    alias = alias_of(credential)
    with own_transaction(alias):
        state = state_of(alias, credential.application)
        if not state.is_suspect:
            return
        _client(alias, state).update(rejections=0)
        row_of(alias, state).update(is_suspect=False, is_distrusted=False)
        doubted = _doubted(alias, state)
        breaker.trust(alias, state)
        if not state.is_distrusted:
            doubted.filter(status=Status.REAUTHORIZATION_REQUIRED).update(is_doubted=False)
            return
        doubted.update(**RETRY_NOW, refresh_at=DatabaseNow())


def believe_rejections(alias: str) -> int:
    """Believe the rejections of the blocked applications for a day; return how many accounts.

    The next run presents their refresh tokens once more.
    """
    count = 0
    with receivers.deferred(), own_transaction(alias):
        for state in states(alias).filter(is_distrusted=True):
            until = DatabaseNow() + BELIEVE_FOR
            row_of(alias, state).update(believed_until=until, is_distrusted=False)
            breaker.trust(alias, state)
            retrying = _doubted(alias, state).filter(status=Status.CONNECTED)
            count += retrying.update(refresh_at=DatabaseNow())
    return count


def _client(alias: str, state: ApplicationState) -> QuerySet[ClientState]:
    """The row that counts the rejections of this process's client."""
    key, mark = state.application_id or 0, breaker.mark_of(state.application)
    rows = ClientState._base_manager.using(alias)
    rows.get_or_create(application_key=key, mark=mark)
    return rows.filter(application_key=key, mark=mark)


def _doubted(alias: str, state: ApplicationState) -> QuerySet[CredentialRow]:
    """The accounts whose rejection was counted, and that no process is refreshing."""
    rows = credential_model()._base_manager.using(alias).filter(is_doubted=True)
    return rows.filter(
        application_key=state.application_id or 0,
        lease_until__isnull=True,
        reason__in=("", *DOUBTFUL),
    ).exclude(status=Status.DISCONNECTED)
