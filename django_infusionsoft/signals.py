"""Signals, sent after the commit, with the words below; ``credential`` is the instance.

A receiver that raises is logged and stops nothing. Inside a caller's ``atomic()`` the pair is
committed already when the signal comes, but a receiver's own writes still belong to the caller.
"""

from django.dispatch import Signal

# credential, created: bool (False where it was connected again), user: the person, or None
credential_connected = Signal()
# credential, user: the person, or None
credential_disconnected = Signal()
# credential, generation: int, duration_seconds: float
credential_refreshed = Signal()
# credential, exception: InfusionsoftError, one of the kinds that need no new authorization
refresh_failed = Signal()
# credential, reason: str, one of Credential.Reason
reauthorization_required = Signal()
# application: Application, or None for the client in the settings; error: str
application_rejected = Signal()
# application, as above: Keap takes its client again
application_accepted = Signal()
