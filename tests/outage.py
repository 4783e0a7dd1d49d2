"""One process whose database goes away while Keap is being asked.

``python -m tests.outage ACCOUNT [--full-disk]``: refreshes the account, waits a short while for
the database where it would wait long, and prints what came of it. With a full disk it can write
no byte to a file.
"""

import resource
import sys
from typing import Any

import django


def main(account: str, *options: str) -> None:
    django.setup()
    from django.db.backends.signals import connection_created

    from django_infusionsoft import database
    from django_infusionsoft.models import Credential

    def impatient(connection: Any, **kwargs: Any) -> None:
        if connection.vendor == "sqlite":
            connection.cursor().execute("PRAGMA busy_timeout = 100")

    connection_created.connect(impatient)
    database.RETRY_PAUSES = (0.1, 0.2, 0.2)  # type: ignore[misc, assignment]
    credential = Credential.objects.for_account(account)
    if "--full-disk" in options:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        credential.refresh()
    except Exception as error:  # noqa: BLE001  # the test shows whatever it was
        print(type(error).__name__, flush=True)  # noqa: T201
    else:
        print("refreshed", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
