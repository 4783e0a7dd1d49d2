"""The documented probes of the health view fail unless they have seen its own answer."""

import re
import shutil
import subprocess
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import requests
from django.conf import settings
from django.conf.urls.i18n import i18n_patterns
from django.contrib.auth.decorators import login_not_required
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import include, path

from django_infusionsoft.models import Credential
from django_infusionsoft.views import HealthView
from tests.processes import ROOT
from tests.support import run
from tests.system.serving import serving

pytestmark = pytest.mark.django_db(transaction=True)

DOCUMENT = ROOT / "docs" / "monitoring.rst"
HEALTH = "/infusionsoft/health/"
# The URLs in the document, each with the probe of which it is a part.
URLS = {"cron": f"https://www.example.com{HEALTH}", "kubernetes": f"http://mysite{HEALTH}"}

includes = path("infusionsoft/", include("django_infusionsoft.urls"))
documented = path("keap-health/", login_not_required(HealthView.as_view()))


@login_not_required
def welcome(request: HttpRequest, path: str = "") -> HttpResponse:
    return HttpResponse('Welcome! {"status": "ok"}')


def urls(*patterns: Any) -> ModuleType:
    """Return a URLconf."""
    module = ModuleType("urls")
    vars(module)["urlpatterns"] = [*patterns, path("admin/login/", welcome, name="login")]
    return module


def middleware(name: str) -> dict[str, Any]:
    """Return the settings with another middleware."""
    return {"MIDDLEWARE": [*settings.MIDDLEWARE, name]}


SSL = {"SECURE_SSL_REDIRECT": True}
EXEMPT = {"SECURE_REDIRECT_EXEMPT": [r"^infusionsoft/health/$"]}
LANGUAGES = {
    **middleware("django.middleware.locale.LocaleMiddleware"),
    "ROOT_URLCONF": urls(*i18n_patterns(includes), documented),
}
LOGIN = {
    **middleware("django.contrib.auth.middleware.LoginRequiredMiddleware"),
    "LOGIN_URL": "login",
    "ROOT_URLCONF": urls(includes, documented),
}
# Settings with which something else answers at a path, and with which the view does.
IN_FRONT: dict[str, tuple[dict[str, Any], str]] = {
    "SECURE_SSL_REDIRECT": (SSL, HEALTH),
    "PREPEND_WWW": ({"PREPEND_WWW": True}, HEALTH),
    "APPEND_SLASH": ({}, HEALTH.rstrip("/")),
    "ALLOWED_HOSTS": ({"ALLOWED_HOSTS": ["www.example.com"]}, HEALTH),
    "i18n_patterns()": (LANGUAGES, HEALTH),
    "LoginRequiredMiddleware": (LOGIN, HEALTH),
    "": ({"ROOT_URLCONF": urls(path("<path:path>", welcome))}, HEALTH),
}
REMEDIES: dict[str, tuple[dict[str, Any], str]] = {
    "SECURE_SSL_REDIRECT": (SSL | EXEMPT, HEALTH),
    "i18n_patterns()": (LANGUAGES, "/en" + HEALTH),
    "i18n_patterns(), outside": (LANGUAGES, "/keap-health/"),
    "LoginRequiredMiddleware": (LOGIN, "/keap-health/"),
}


def documented_probes() -> dict[str, str]:
    """Return the shell commands in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    (cron,) = re.findall(rf"\*/5 \* \* \* \* (.*{re.escape(URLS['cron'])}.*)", text)
    (kubernetes,) = re.findall(r"- >-\n((?: {20,}.*\n)+)", text)
    return {"cron": cron, "kubernetes": " ".join(kubernetes.split())}


@pytest.fixture(params=URLS)
def probe(request: pytest.FixtureRequest, need: Callable[[str, str], None]) -> Callable[..., bool]:
    """Return a function that runs a documented probe, and returns whether it succeeds."""
    need("curl", "" if shutil.which("curl") else "curl is missing")
    command = documented_probes()[request.param]
    assert URLS[request.param] in command

    def succeeds(url: str, more: str = "") -> bool:
        process = subprocess.run(
            ["sh", "-c", command.replace(URLS[request.param], f"{url} {more}")],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        # Cron mails all output; Kubernetes regards the exit code.
        content = {"cron": not process.stdout + process.stderr}
        return content.get(request.param, process.returncode == 0)

    return succeeds


@pytest.fixture
def healthy(credential: Credential) -> Credential:
    """An account of a site whose worker is running."""
    run()
    return credential


def test_probe_succeeds_only_if_the_view_reports_no_problem(
    probe: Callable[..., bool], healthy: Credential
) -> None:
    with serving(get_wsgi_application()) as url:
        assert probe(url + HEALTH)
        Credential.objects.update(status="reauthorization_required", refresh_at=None)
        assert not probe(url + HEALTH)
    assert not probe(url + HEALTH)  # the site is down


def test_probe_fails_if_something_in_front_of_the_view_answers(
    probe: Callable[..., bool], healthy: Credential
) -> None:
    for name, (overridden, url_path) in IN_FRONT.items():
        with override_settings(**overridden), serving(get_wsgi_application()) as url:
            answer = requests.get(url + url_path, allow_redirects=False, timeout=10)
            assert answer.status_code in (200, 301, 302, 400), name
            assert not probe(url + url_path), name


def test_probe_reaches_the_view_with_the_documented_remedy(
    probe: Callable[..., bool], healthy: Credential
) -> None:
    for name, (overridden, url_path) in REMEDIES.items():
        with override_settings(**overridden), serving(get_wsgi_application()) as url:
            assert probe(url + url_path), name


def test_probe_reaches_the_view_under_the_host_with_www(
    probe: Callable[..., bool], healthy: Credential
) -> None:
    overridden: dict[str, Any] = {"PREPEND_WWW": True, "ALLOWED_HOSTS": ["www.example.com"]}
    with override_settings(**overridden), serving(get_wsgi_application()) as url:
        assert probe(url + HEALTH, '--header "Host: www.example.com"')


def test_document_names_everything_that_can_be_in_front_of_the_view() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    (table,) = re.findall(r"   \* - setting\n     - what to do\n((?:   .*\n)+)", text)
    assert re.findall(r"\* - ``(.+?)``", table) == [name for name in IN_FRONT if name]
    assert str(EXEMPT["SECURE_REDIRECT_EXEMPT"][0]) in text
