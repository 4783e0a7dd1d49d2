"""One process of the site that a signal meets at one step of a refresh.

``python -m tests.victim refresh|run [STEP SIGNAL [COUNT]]``: refreshes the only credential, or
those that are due. Sends itself the signal when it comes to the step for the COUNTth time. Prints
"done", or what was raised.
"""

import signal
import sys
from functools import wraps
from itertools import count
from typing import Any

import django
from django.core.management import call_command
from urllib3.connection import HTTPConnection

from django_infusionsoft import attempts, leases, oauth, refresh, signals, spool

BEFORE, AFTER = False, True
# Where each step is: before or after which function.
STEPS: dict[str, tuple[bool, Any, str]] = {
    "not claimed": (BEFORE, refresh, "claim"),
    "picked": (BEFORE, leases, "_take"),
    "claimed": (BEFORE, oauth, "refresh"),
    "connected": (AFTER, HTTPConnection, "connect"),
    "waiting": (BEFORE, HTTPConnection, "getresponse"),
    "in the spool": (AFTER, spool, "keep"),
    "stored": (AFTER, attempts, "persist"),
    "out of the spool": (AFTER, spool.Slip, "forget"),
    "told": (AFTER, signals.credential_refreshed, "send_robust"),
}
# No test waits for a victim for ever.
LIFE_SECONDS = 40


def meet(step: str, signal_name: str, which_time: str = "1") -> None:
    """Send this process the signal at the step."""
    is_after, owner, name = STEPS[step]
    function, times = getattr(owner, name), count(1)

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs) if is_after else None
        if next(times) == int(which_time):
            signal.raise_signal(signal.Signals[signal_name])  # this thread goes no further
        return result if is_after else function(*args, **kwargs)

    setattr(owner, name, wrapper)


def main(verb: str, *where: str) -> None:
    signal.alarm(LIFE_SECONDS)
    django.setup()
    from django_infusionsoft.models import Credential

    if where:
        meet(*where)
    try:
        if verb == "run":
            call_command("infusionsoft_refresh")
        else:
            Credential.objects.get_default().refresh()
    except Exception as error:  # noqa: BLE001  # the test shows whatever it was
        print(type(error).__name__, flush=True)  # noqa: T201
    else:
        print("done", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
