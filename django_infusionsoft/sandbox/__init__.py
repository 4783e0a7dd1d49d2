"""A local stand-in for Keap: an authorization server and a small part of the API.

For demos and tests. It simulates what is publicly known about Keap; switches change what is
uncertain. It never contacts Keap's servers, and uses no Django settings.
"""

from . import faults
from .clock import Clock
from .faults import Fault, Gate
from .journal import ApiRequest, TokenRequest
from .messages import Reply
from .people import Account, Client, KeapUser
from .sandbox import Sandbox
from .state import Grant
from .storage import StateFileError
from .switches import Switches

__all__ = [
    "Account",
    "ApiRequest",
    "Client",
    "Clock",
    "Fault",
    "Gate",
    "Grant",
    "KeapUser",
    "Reply",
    "Sandbox",
    "StateFileError",
    "Switches",
    "TokenRequest",
    "faults",
]
