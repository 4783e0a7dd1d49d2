"""Lets one request handle an authorization response, and the others wait for its result.

Browsers, and scanners in front of them, may request the callback twice at once. A session's store
has no atomic operation for this, so the right to handle a response is a row in the database.
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from django.db import Error, IntegrityError, transaction
from django.db.models import QuerySet
from django.utils.crypto import salted_hmac

from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.keap.transport import longest_call_seconds
from django_infusionsoft.storage.applications import from_now
from django_infusionsoft.storage.callbacks import Callback
from django_infusionsoft.storage.database import DatabaseNow, own_transaction

# How long a result is shown: a server with one process handles two requests one after the other.
SHOWN_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.25
# For Keap's API, after the exchange of the code: a user waits for it.
AFTER_EXCHANGE_SECONDS: Final = 10.0
# A user can send any number of invalid codes with the site's client, and Keap counts them together
# with its refreshes. One user must not use up what the others need.
MAX_EXCHANGES_OF_USER: Final = 10
MAX_EXCHANGES_OF_APPLICATION: Final = 30
EXCHANGES_SECONDS: Final = 60
# Longer than a state is valid, whatever the clocks of the machines are.
RETENTION_SECONDS: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Response:
    """An authorization response, as hashes.

    ``response_hash`` is that of all that makes two requests equal: the user and the parameters.
    """

    alias: str
    state_hash: str
    response_hash: str

    @property
    def rows(self) -> QuerySet[Callback]:
        return Callback._base_manager.using(self.alias).filter(state_hash=self.state_hash)


def claim(response: Response) -> bool:
    """Claim the right to handle a response; return whether no request has had it yet."""
    rows = Callback._base_manager.using(response.alias)
    with own_transaction(response.alias):
        try:
            with transaction.atomic(using=response.alias):
                rows.create(
                    state_hash=response.state_hash,
                    response_hash=response.response_hash,
                    created_at=DatabaseNow(),
                )
        except IntegrityError:
            return False
    return True


def reserve_exchange(response: Response, *, user_id: str, application_id: int | None) -> bool:
    """Count an exchange of a code; return false if there were too many within a minute."""
    user_hash, application_key = _hash(user_id), application_id or 0
    with own_transaction(response.alias):
        response.rows.update(user_hash=user_hash, application_key=application_key)
    # Only now: of several at once, the last one to commit counts all others.
    with own_transaction(response.alias):
        recent = Callback._base_manager.using(response.alias).filter(
            created_at__gt=from_now(-EXCHANGES_SECONDS), application_key__isnull=False
        )
        of_user = recent.filter(user_hash=user_hash).count()
        of_application = recent.filter(application_key=application_key).count()
        if of_user <= MAX_EXCHANGES_OF_USER and of_application <= MAX_EXCHANGES_OF_APPLICATION:
            return True
        response.rows.update(application_key=None)
    return False


def finish(response: Response, result: Mapping[str, Any]) -> None:
    """Store the result for requests that wait for it, unless the database is unavailable.

    Old rows are deleted afterwards: if that fails, the response has its result.
    """
    with suppress(Error, DatabaseBusy), own_transaction(response.alias):
        response.rows.update(finished_at=DatabaseNow(), result=json.dumps(result))
        rows = Callback._base_manager.using(response.alias)
        rows.filter(created_at__lt=from_now(-RETENTION_SECONDS)).delete()


def result_of(response: Response) -> dict[str, Any] | None:
    """Return the result of an equal response, if need be after waiting for it.

    :returns: ``{}`` if the request that handled it was interrupted, ``None`` if no equal response
        was handled within the last minute.
    """
    same = response.rows.filter(response_hash=response.response_hash)
    columns = same.annotate(now=DatabaseNow()).values_list(
        "result", "created_at", "finished_at", "now"
    )
    while True:
        with own_transaction(response.alias):
            row = columns.first()
        if row is None:
            return None
        text, created_at, finished_at, now = row
        result: dict[str, Any] = json.loads(text)
        age = (now - (finished_at or created_at)).total_seconds()
        if finished_at is not None:
            return result if age < SHOWN_SECONDS else None
        if age > longest_seconds():
            return result
        time.sleep(POLL_SECONDS)


def longest_seconds() -> float:
    """Return how long one request can take to handle a response: the exchange, and the rest."""
    return longest_call_seconds() + AFTER_EXCHANGE_SECONDS


def response_to(alias: str, *, state: str, user_id: str, parameters: str) -> Response:
    """Return an authorization response with these parameters to the user's request."""
    return Response(alias, _hash(state), _hash(user_id, parameters))


def _hash(*parts: str) -> str:
    value = "\0".join(parts).encode(errors="surrogatepass")
    return salted_hmac("django_infusionsoft.callback", value, algorithm="sha256").hexdigest()
