"""Keap on this machine: a stand-in authorization server and a slice of the API.

For demos and tests. It plays what is publicly known of Keap, and switches where that is not
sure. It has nothing to do with Keap's servers and uses no Django settings.
"""

from . import faults
from .clock import Clock
from .faults import Fault, Gate
from .journal import TokenRequest
from .messages import Reply
from .people import Account, Client, KeapUser
from .sandbox import Sandbox
from .state import Grant
from .storage import StateFileError
from .switches import Switches

__all__ = [
    "Account",
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
