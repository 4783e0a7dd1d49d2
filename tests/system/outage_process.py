"""A process whose database becomes unavailable during a call to Keap.

``python -m tests.system.outage_process ACCOUNT [--full-disk]``: refreshes the account and prints
the result. It waits for the database for a shorter time than usual. With ``--full-disk`` it
cannot write to any file.
"""

import resource
import sys
from typing import Any

import django


def main(account: str, *options: str) -> None:
    django.setup()
    from django.db.backends.signals import connection_created

    from django_infusionsoft.models import Credential
    from django_infusionsoft.storage import database

    def shorten_timeout(connection: Any, **kwargs: Any) -> None:
        if connection.vendor == "sqlite":
            connection.cursor().execute("PRAGMA busy_timeout = 100")

    connection_created.connect(shorten_timeout)
    database.RETRY_PAUSES = (0.1, 0.2, 0.2)  # type: ignore[misc, assignment]
    credential = Credential.objects.for_account(account)
    if "--full-disk" in options:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        credential.refresh()
    except Exception as error:  # noqa: BLE001  # the test shows it
        print(type(error).__name__, flush=True)  # noqa: T201
    else:
        print("refreshed", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
