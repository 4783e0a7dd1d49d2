"""The code in the callback's URL reaches neither a login page nor the access log of Gunicorn."""

from pathlib import Path

import pytest
import requests
from django.conf import settings
from django.contrib.auth.models import User

from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox
from tests.system.web_servers import Browser, gunicorn
from tests.web import parameter

pytest.importorskip("gunicorn", reason="Gunicorn is not installed here")

LOGIN_REQUIRED = "django.contrib.auth.middleware.LoginRequiredMiddleware"


def test_code_is_in_no_login_url_and_no_access_log(
    sandbox: Sandbox, database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    site = {**sandbox.settings, "MIDDLEWARE": [*settings.MIDDLEWARE, LOGIN_REQUIRED]}
    server = gunicorn("--access-logfile", str(log), database_url=database_url, settings=site)
    with server as url, Browser(url, User.objects.create_superuser("ana")) as browser:
        callback = sandbox.authorize(browser.go_to_keap(), account="ab123")
        logged_out = requests.get(callback, timeout=60, allow_redirects=False)
        connected = browser.get(callback)
        browser.get(f"{url}/admin/")  # its only process has written the lines before by now
    assert (logged_out.status_code, connected.status_code) == (403, 200)
    assert Credential.objects.get().account == "ab123"
    lines = log.read_text(encoding="utf-8")
    assert lines.count('"GET /infusionsoft/callback/ HTTP/1.1"') == 2
    for name in ("code", "state"):
        secret = parameter(callback, name)
        assert secret not in lines
        assert secret not in f"{logged_out.headers} {connected.headers}"
