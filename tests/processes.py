"""Processes of the site that use the test's database and sandbox."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from django_infusionsoft.conf import conf

ROOT = Path(__file__).resolve().parent.parent


def environment(database_url: str, settings: dict[str, Any]) -> dict[str, str]:
    """Return the environment in which a child process is the same site."""
    spool = str(conf.SPOOL_DIR)
    return os.environ | {
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "DATABASE_URL": database_url,
        "TESTS_SETTINGS": json.dumps({"INFUSIONSOFT_SPOOL_DIR": spool, **settings}),
    }


@contextmanager
def started(
    *arguments: str, database_url: str, settings: dict[str, Any], **options: Any
) -> Iterator["subprocess.Popen[str]"]:
    """Run ``python arguments``; kill it and its children at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment(database_url, settings),
        cwd=ROOT,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # the test has waited for its end
            os.killpg(process.pid, signal.SIGKILL)  # also its children, which Celery has
        process.communicate()
