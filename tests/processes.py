"""Real processes of the site, on the test's database and the test's sandbox."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django_infusionsoft.conf import conf

ROOT = Path(__file__).resolve().parent.parent


def environment(database_url: str, settings: dict[str, Any]) -> dict[str, str]:
    """Return what a child process needs to be the same site."""
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
    """Run ``python arguments`` until the block ends; nothing of it is left then."""
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
        os.killpg(process.pid, signal.SIGKILL)  # its children too, which Celery has
        process.communicate()
