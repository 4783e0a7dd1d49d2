"""A process of the site that sends itself a signal at one step of a refresh.

``python -m tests.system.interrupted_process refresh|run [STEP SIGNAL [COUNT]]``: refreshes the
only credential, or those that are due. It sends itself the signal when it reaches the step for
the COUNTth time. It prints "done" or the name of the exception.
"""

import signal
import sys
from functools import wraps
from itertools import count
from typing import Any

import django
from django.core.management import call_command
from urllib3.connection import HTTPConnection

BEFORE, AFTER = False, True
# A process that hangs ends after this time.
MAX_SECONDS = 40


def steps() -> dict[str, tuple[bool, Any, str]]:
    """Return for each step whether it is before or after a function, and the function."""
    from django_infusionsoft.keap import oauth
    from django_infusionsoft.refresh import leases, receivers, single, spool, storing

    return {
        "not claimed": (BEFORE, single, "claim"),
        "picked": (BEFORE, leases, "_acquire"),
        "claimed": (BEFORE, oauth, "refresh"),
        "connected": (AFTER, HTTPConnection, "connect"),
        "waiting": (BEFORE, HTTPConnection, "getresponse"),
        "in the spool": (AFTER, spool, "save"),
        "stored": (AFTER, storing, "persist"),
        "out of the spool": (AFTER, spool.SpooledPair, "discard"),
        "reported": (AFTER, receivers, "send"),
    }


def interrupt_at(step: str, signal_name: str, which_time: str = "1") -> None:
    """Send this process the signal when it reaches the step."""
    is_after, owner, name = steps()[step]
    function, times = getattr(owner, name), count(1)

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs) if is_after else None
        if next(times) == int(which_time):
            signal.raise_signal(signal.Signals[signal_name])  # this thread stops here
        return result if is_after else function(*args, **kwargs)

    setattr(owner, name, wrapper)


def main(verb: str, *where: str) -> None:
    signal.alarm(MAX_SECONDS)
    django.setup()
    from django_infusionsoft.models import Credential

    if where:
        interrupt_at(*where)
    try:
        if verb == "run":
            call_command("infusionsoft_refresh")
        else:
            Credential.objects.get_default().refresh()
    except Exception as error:  # noqa: BLE001  # the test shows it
        print(type(error).__name__, flush=True)  # noqa: T201
    else:
        print("done", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
