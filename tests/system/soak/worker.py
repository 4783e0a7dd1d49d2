"""One process of the site: ``python -m tests.system.soak.worker refresher|reader FOLDER SEED``.

A refresher refreshes what is due, as Celery beat or cron would. A reader uses the accounts. Both
run until SIGTERM, or until the parent process is gone.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import django
import requests
from django.db import Error, connections

from django_infusionsoft.exceptions import DatabaseBusy, InfusionsoftError
from tests.system.soak import process_log
from tests.system.soak.process_log import ProcessLog

RUN_SECONDS = 2.0
Work = Callable[[], None]


def main(role: str, folder: Path, seed: int) -> None:
    stop, parent = threading.Event(), os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    django.setup()
    logging.basicConfig(format="%(asctime)s %(process)d %(message)s", level=logging.WARNING)
    log = ProcessLog(folder)
    process_log.record_refreshes(log)
    random = Random(seed)  # noqa: S311  # for a pause and a choice
    work = refresher() if role == "refresher" else reader(log, random)
    while not stop.is_set() and os.getppid() == parent:
        try:
            work()
        except (Error, DatabaseBusy) as error:
            log.write(process_log.DATABASE_ERROR, type(error).__name__)
            # As after a failed task or request: the next one has a new connection.
            connections.close_all()
        stop.wait(random.uniform(0.01, 0.1))


def refresher() -> Work:
    from django_infusionsoft.models import Credential

    def work() -> None:
        Credential.objects.refresh_due(time_limit_seconds=RUN_SECONDS)

    return work


def reader(log: ProcessLog, random: Random) -> Work:
    from django_infusionsoft.models import Credential

    def work() -> None:
        credential = random.choice(list(Credential.objects.all()))
        try:
            if random.random() < 0.5:
                credential.get_access_token()
                return
            response = credential.session().get("v1/account/profile")
        except DatabaseBusy:
            raise
        except (InfusionsoftError, requests.RequestException) as error:
            log.write(type(error).__name__)
            return
        log.write(process_log.API_CALL if response.ok else process_log.API_REFUSED)

    return work


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
