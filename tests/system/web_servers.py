"""Real web servers that run the site of a test."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE
from typing import Any

from tests.processes import started

APPLICATION = "django.core.wsgi:get_wsgi_application()"


@contextmanager
def gunicorn(*options: str, database_url: str, settings: dict[str, Any]) -> Iterator[str]:
    """Run Gunicorn with these options; yield its URL."""
    arguments = ["-m", "gunicorn", APPLICATION, "--bind", "127.0.0.1:0", *options]
    with started(*arguments, database_url=database_url, settings=settings, stderr=PIPE) as process:
        assert process.stderr
        lines = iter(process.stderr.readline, "")
        found = (re.search(r"Listening at: (\S+)", line) for line in lines)
        yield next(match[1] for match in found if match)
