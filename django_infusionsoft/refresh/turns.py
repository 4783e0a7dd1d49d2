"""One attempt at a time for the applications whose rejections are not believed."""

from django.db.models import QuerySet

from django_infusionsoft.choices import BlockReason
from django_infusionsoft.refresh import breaker
from django_infusionsoft.refresh.leases import Claim, claim_batch
from django_infusionsoft.storage.applications import states
from django_infusionsoft.storage.credentials import CredentialRow
from django_infusionsoft.storage.database import own_transaction


def take_turns(due: QuerySet[CredentialRow]) -> list[Claim]:
    """Claim the most urgent account of each such application whose turn has come."""
    with own_transaction(due.db):
        found = list(states(due.db).filter(block_reason=BlockReason.DISTRUSTED))
    claims: list[Claim] = []
    for state in found:
        of_application = due.filter(application=state.application)
        if breaker.claim_turn(due.db, state):
            claims += claim_batch(of_application, 1, in_turn=True)
    return claims
