"""Signals, sent after the commit, each with ``credential`` (the instance) and the words below.

A receiver that raises is logged and stops nothing. Inside a caller's ``atomic()`` the pair is
committed already when the signal comes, but a receiver's own writes still belong to the caller.
"""

from django.dispatch import Signal

# created: bool (False where an account was connected again), user: the person, or None
credential_connected = Signal()
# generation: int, duration_seconds: float
credential_refreshed = Signal()
# exception: InfusionsoftError, one of the kinds that need no new authorization
refresh_failed = Signal()
# reason: str, one of Credential.Reason
reauthorization_required = Signal()
