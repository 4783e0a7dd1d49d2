"""gunicorn, which kills a worker that works on one request for too long."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import PIPE, STDOUT
from typing import Any

import pytest
import requests

from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox
from tests.processes import started
from tests.support import row

pytestmark = pytest.mark.django_db(transaction=True)

WAIT_SECONDS = 0.5
TIMEOUT_SECONDS = 5  # of gunicorn
WORKERS = {"sync": ["--worker-class", "sync"], "gthread": ["--threads", "2"]}


@contextmanager
def gunicorn(database_url: str, sandbox: Sandbox, *arguments: str) -> Iterator[tuple[Any, str]]:
    """Run a site with one worker; yield the process and the URL of its page."""
    settings = {
        **sandbox.settings,
        "ROOT_URLCONF": "tests.system.token_urls",
        "INFUSIONSOFT_WAIT_SECONDS": WAIT_SECONDS,
    }
    command = ["-m", "gunicorn", "example_project.wsgi", "--bind", "127.0.0.1:0"]
    command += ["--timeout", str(TIMEOUT_SECONDS), *arguments]
    options: dict[str, Any] = {"stdout": PIPE, "stderr": STDOUT}
    with started(*command, database_url=database_url, settings=settings, **options) as process:
        for line in process.stdout or ():
            if found := re.search(r"Listening at: (http://\S+)", line):
                break
        else:
            pytest.fail("gunicorn did not start.")
        yield process, found[1]


def get(url: str) -> tuple[int, str]:
    response = requests.get(url, timeout=30)
    return response.status_code, response.text


def becomes_true(condition: Callable[[], bool]) -> bool:
    ends_at = time.monotonic() + 20
    while not condition() and time.monotonic() < ends_at:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("worker", WORKERS)
def test_page_does_not_wait_for_keap_and_its_reply_is_stored(
    database_url: str, sandbox: Sandbox, expired: Credential, worker: str
) -> None:
    gate = sandbox.hold("after")
    with gunicorn(database_url, sandbox, *WORKERS[worker]) as (_, url):
        status, text = get(url)
        assert (status, text[:25]) == (503, "Keap has not replied for ")
        assert get(url)[0] == 503  # another process refreshes it
        gate.release()
        assert becomes_true(lambda: row(expired).generation == 2)
        assert get(url) == (200, row(expired).access_token)
    assert len(sandbox.token_requests) == 1


@pytest.mark.parametrize("worker", WORKERS)
def test_worker_that_is_stopped_waits_for_the_reply(
    database_url: str, sandbox: Sandbox, expired: Credential, worker: str
) -> None:
    gate = sandbox.hold("after")
    with gunicorn(database_url, sandbox, *WORKERS[worker]) as (process, url):
        assert get(url)[0] == 503
        process.terminate()
        for line in process.stdout:
            if "Worker exiting" in line:
                break
        gate.release()
        process.wait(timeout=30)
    assert row(expired).generation == 2
