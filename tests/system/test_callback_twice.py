"""A browser, or a scanner in front of it, requests the callback twice at once."""

from collections.abc import Iterator
from concurrent.futures import TimeoutError as Unfinished
from pathlib import Path

import pytest
import requests
from django.contrib.auth.models import User
from django.test import override_settings

from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox
from tests.support import threads
from tests.system.web_servers import Browser, gunicorn

pytest.importorskip("gunicorn", reason="Gunicorn is not installed here")

PROCESSES = ("--workers", "2")
THREADS = ("--worker-class", "gthread", "--threads", "2")


@pytest.fixture(
    params=[("db", PROCESSES), ("cache", PROCESSES), ("cached_db", THREADS)],
    ids=lambda param: " ".join([param[0], *param[1]]),
)
def browser(
    request: pytest.FixtureRequest, sandbox: Sandbox, database_url: str, tmp_path: Path
) -> Iterator[Browser]:
    """A user's browser, at a server whose sessions are in the database or in a cache."""
    engine, options = request.param
    cache = "django.core.cache.backends.filebased.FileBasedCache"
    settings = {
        **sandbox.settings,
        "SESSION_ENGINE": f"django.contrib.sessions.backends.{engine}",
        "CACHES": {"default": {"BACKEND": cache, "LOCATION": str(tmp_path / "cache")}},
    }
    with (
        override_settings(**settings),
        gunicorn(*options, database_url=database_url, settings=settings) as url,
        Browser(url, User.objects.create_superuser("ana")) as browser,
    ):
        yield browser


def test_code_is_exchanged_once_and_both_requests_show_the_same_page(
    browser: Browser, sandbox: Sandbox
) -> None:
    callback = sandbox.authorize(browser.go_to_keap(), account="ab123")
    gate = sandbox.hold(endpoint="exchange")
    with threads(2) as start:
        first = start(lambda: requests.get(callback, cookies=browser.cookies, timeout=60))
        gate.wait_until_arrived()
        second = start(lambda: requests.get(callback, cookies=browser.cookies, timeout=60))
        with pytest.raises(Unfinished):
            second.result(timeout=0.5)
        gate.release()
        pages = [each.result(timeout=60) for each in (first, second)]
    assert [page.status_code for page in pages] == [200, 200]
    assert pages[0].text == pages[1].text
    assert "Account ab123 is connected" in pages[0].text
    assert "Acme Bakery" in pages[0].text
    assert len(sandbox.token_requests) == 1
    assert Credential.objects.get().generation == 1
