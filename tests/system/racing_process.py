"""A process whose threads use one account at the same time, in several rounds.

``python -m tests.system.racing_process THREADS [SECONDS]``: the clock of the process is so many
seconds ahead.

The process reads and writes lines of JSON. First it writes "ready". Each round begins with a line
that says how each thread uses the account, and whether all threads share one instance. The process
writes "loaded" when every thread has its instance. After another line it writes "under way" when
every thread has read the row as it was before the refresh, and finally the results.
"""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import StringIO
from threading import Barrier, Event
from typing import TYPE_CHECKING, Any

import django
import time_machine
from django.core.management import call_command
from django.db import connection

if TYPE_CHECKING:
    from django_infusionsoft.models import Credential

ACCOUNT = "ab123"
TURNS = 5  # of the uses that repeat


@dataclass
class Part:
    """The part of one thread in one round."""

    use: "Callable[[Credential], list[str]]"
    credential: "Credential"
    is_under_way: Event = field(default_factory=Event)

    def watch(self, execute: Any, sql: str, *rest: Any) -> Any:
        """Set the event at the first statement that depends on the lease; it decides the rest."""
        result = execute(sql, *rest)
        if "lease_until" in sql:
            self.is_under_way.set()
        return result


def take_part(part: Part, start: Barrier) -> dict[str, Any]:
    """Return the access tokens that the use returned, or the error."""
    try:
        start.wait()
        with connection.execute_wrapper(part.watch):
            return {"access_tokens": part.use(part.credential), "error": ""}
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the test shows it
        return {"access_tokens": [], "error": f"{type(error).__name__}: {error}"}
    finally:
        part.is_under_way.set()


# Ways to use an account. Each returns the access tokens that it got


def token(credential: "Credential") -> list[str]:
    return [credential.get_access_token()]


def tokens(credential: "Credential") -> list[str]:
    return [credential.get_access_token() for _ in range(TURNS)]


def session(credential: "Credential") -> list[str]:
    with credential.session() as api:
        api.get("v2/contacts").raise_for_status()
    return []


def refresh(credential: "Credential") -> list[str]:
    credential.refresh()
    return [credential.get_access_token()]


def rotate(credential: "Credential") -> list[str]:
    """Load and refresh the credential several times, one after the other."""
    return [access_token for _ in range(TURNS) for access_token in refresh(load())]


def task(credential: "Credential") -> list[str]:
    from django_infusionsoft.tasks import refresh_due_credentials

    counts = refresh_due_credentials()
    if sum(counts.values()) != counts["refreshed"]:
        raise RuntimeError(f"The run failed: {counts}.")
    return []


def command(credential: "Credential", **options: str) -> list[str]:
    call_command("infusionsoft_refresh", stdout=StringIO(), **options)
    return []


def command_for_account(credential: "Credential") -> list[str]:
    return command(credential, account=ACCOUNT)


def admin_action(credential: "Credential") -> list[str]:
    from django.contrib.auth.models import User
    from django.contrib.messages import get_messages
    from django.test import Client

    client = Client()
    client.force_login(User.objects.get())
    response = client.post(
        "/admin/django_infusionsoft/credential/",
        {"action": "refresh_selected", "_selected_action": credential.pk},
    )
    messages = list(get_messages(response.wsgi_request))
    if [each.level_tag for each in messages] != ["success"]:
        raise RuntimeError(f"HTTP {response.status_code}, {[str(each) for each in messages]}.")
    return []


USES = [
    token,
    tokens,
    session,
    refresh,
    rotate,
    task,
    command,
    command_for_account,
    admin_action,
]
WAYS = {each.__name__: each for each in USES}


def load() -> "Credential":
    from django_infusionsoft.models import Credential

    return Credential.objects.for_account(ACCOUNT)


def say(what: object) -> None:
    print(json.dumps(what), flush=True)  # noqa: T201


def run_rounds(pool: ThreadPoolExecutor, threads: int) -> None:
    start = Barrier(threads)
    say("ready")
    for line in sys.stdin:
        wanted = json.loads(line)
        credentials = list(pool.map(lambda _: load(), range(threads)))
        if wanted["is_shared"]:
            credentials = credentials[:1] * threads
        parts = [
            Part(WAYS[way], own) for way, own in zip(wanted["ways"], credentials, strict=True)
        ]
        say("loaded")
        sys.stdin.readline()
        calls = [pool.submit(take_part, part, start) for part in parts]
        for part in parts:
            part.is_under_way.wait()
        say("under way")
        say([call.result() for call in calls])


def main(threads: int, seconds_ahead: int = 0) -> None:
    # The monotonic clock stays right: it cannot be set.
    moved = time_machine.travel(datetime.now(UTC) + timedelta(seconds=seconds_ahead), tick=True)
    with moved if seconds_ahead else nullcontext(), ThreadPoolExecutor(threads) as pool:
        django.setup()
        run_rounds(pool, threads)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
