"""Real web servers that run the site of a test."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE
from typing import Any

import requests
from django.contrib.auth.models import User
from django.test import Client

from tests.processes import started
from tests.web import url_at_keap

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


class Browser(requests.Session):
    """A browser at a site, without JavaScript."""

    def __init__(self, url: str, user: User) -> None:
        super().__init__()
        self.url = url
        client = Client()
        client.force_login(user)
        self.cookies["sessionid"] = client.cookies["sessionid"].value

    def go_to_keap(self) -> str:
        """Press the button; return the URL at Keap."""
        page = self.get(f"{self.url}/infusionsoft/authorize/")
        token = re.findall('name="csrfmiddlewaretoken" value="(.+?)"', page.text)[0]
        return url_at_keap(self.post(page.url, {"csrfmiddlewaretoken": token}))
