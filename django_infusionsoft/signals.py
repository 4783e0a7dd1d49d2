"""Signals, sent after the commit, with the arguments below; ``credential`` is the instance.

A run sends them some seconds later, while it holds no lease, so that no refresh waits for them.

An exception in a receiver is logged and has no other effect. Inside a caller's ``atomic()`` the
token pair is committed before the signal is sent, but a receiver's own writes belong to the
caller's transaction.
"""

from django.dispatch import Signal

# credential, created: bool (False if it was reconnected), user: the user, or None
credential_connected = Signal()
# credential, user: the user, or None
credential_disconnected = Signal()
# credential, generation: int, duration_seconds: float
credential_refreshed = Signal()
# credential, exception: InfusionsoftError, but not ReauthorizationRequired
refresh_failed = Signal()
# credential, reason: str, one of Credential.Reason
reauthorization_required = Signal()
# application: Application, or None for the client in the settings; error: str. Keap rejects its
# client or one account after the other, or no request can be made.
application_rejected = Signal()
# application, as above: its client can be used again
application_accepted = Signal()
