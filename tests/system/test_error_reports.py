"""No error report contains a secret: neither Sentry's, with its defaults, nor Django's."""

import errno
import json
import os
import secrets as secrets_module
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.fernet import MultiFernet
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import OperationalError, connection
from django.http import HttpRequest
from django.test import override_settings
from django.utils import timezone
from django.views import debug
from django.views.debug import (
    SafeExceptionReporterFilter,
)

from django_infusionsoft.conf import conf
from django_infusionsoft.keap import oauth
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults
from django_infusionsoft.storage import database
from tests.error_reports import Browser, Reports, Secrets, mailing, reporting
from tests.web import APPLICATIONS, LIST, client_for, go_to_keap, parameter

pytestmark = pytest.mark.django_db

# Invented now: reports show lines of this file.
NEW_SECRET = secrets_module.token_urlsafe()
CSRF_TOKEN = "x" * 32
CALLBACK_STATUS = {
    "no failure": 200,
    "spool": 200,
    "invalid_grant": 400,
    "bug": 500,
    "cipher": 500,
}
CALLS: dict[str, Callable[[Sandbox], object]] = {
    "session().get()": lambda _: only().session().get("v2/contacts"),
    "get_access_token()": lambda _: only().get_access_token(),
    "access_token_instead_of()": lambda _: only().access_token_instead_of(only().access_token),
    "refresh()": lambda _: only().refresh(),
    "test_connection()": lambda _: only().test_connection(),
    "fetch_profile()": lambda _: only().fetch_profile(),
    "refresh_due()": lambda _: Credential.objects.refresh_due(),
    "import_tokens()": lambda sandbox: Credential.objects.import_tokens(
        **export(sandbox), expires_at=timezone.now()
    ),
    "import_tokens() of no time": lambda sandbox: Credential.objects.import_tokens(
        **export(sandbox), expires_at=cast("Any", "tomorrow")
    ),
}


class SiteFilter(SafeExceptionReporterFilter):
    """A site's own filter of Django's reports."""

    def get_safe_request_meta(self, request: HttpRequest) -> dict[str, Any]:
        return {"FILTERED_BY": "the site"}


def only() -> Credential:
    return Credential.objects.get(account="ab123")


def export(sandbox: Sandbox) -> dict[str, Any]:
    reply = sandbox.issue("cd456")
    names = ("access_token", "refresh_token")
    return {"account": "cd456", **{name: reply[name] for name in names}}


@contextmanager
def failing_database() -> Iterator[None]:
    """Let each statement of the app fail that writes, except for claims."""

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        is_ours = sql.startswith(("UPDATE", "INSERT")) and "django_infusionsoft" in sql
        if is_ours and 'abandoned_lease_id" = ' not in sql.replace("`", '"'):
            raise OperationalError("gone")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        yield


@contextmanager
def without_certificates() -> Iterator[None]:
    urls = {
        "INFUSIONSOFT_TOKEN_URL": "https://127.0.0.1:9/token",
        "INFUSIONSOFT_API_URL": "https://127.0.0.1:9/",
    }
    with pytest.MonkeyPatch.context() as patch, override_settings(**urls):
        patch.setenv("REQUESTS_CA_BUNDLE", "/not/there.pem")
        yield


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


def no_space(*args: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def broken(*args: Any) -> Any:
    raise KeyError("an error of the app's own")


def unable(self: MultiFernet, msg: bytes) -> bytes:
    raise OSError("no random numbers")


@contextmanager
def keap(sandbox: Sandbox, fault: faults.Fault) -> Iterator[None]:
    sandbox.plan(fault, endpoint="any", times=None)
    yield


FAILURES: dict[str, Callable[[Sandbox], Any]] = {
    "no failure": lambda _: nullcontext(),
    "503": lambda sandbox: keap(sandbox, faults.error_503()),
    "no answer": lambda sandbox: keap(sandbox, faults.latency_after(1)),
    "dropped": lambda sandbox: keap(sandbox, faults.drop_after()),
    "cut off": lambda sandbox: keap(sandbox, faults.drop_midway()),
    "garbage": lambda sandbox: keap(sandbox, faults.html()),
    "half a pair": lambda sandbox: keap(
        sandbox, faults.edited(lambda reply: {**reply, "refresh_token": 5})
    ),
    "invalid_grant": lambda sandbox: keap(sandbox, faults.answer(400, {"error": "invalid_grant"})),
    "database": lambda _: failing_database(),
    "encryption key": lambda _: override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[]),
    "spool": lambda _: patched(os, "write", no_space),
    "cipher": lambda _: patched(MultiFernet, "encrypt", unable),
    "certificates": lambda _: without_certificates(),
    "bug": lambda _: patched(oauth, "_token_pair", broken),
}


@pytest.fixture(scope="module")
def all_reports() -> Iterator[Reports]:
    with reporting() as reports:
        yield reports


@pytest.fixture
def reports(
    all_reports: Reports, monkeypatch: pytest.MonkeyPatch, settings: Any, spool: Path
) -> Iterator[Reports]:
    """The reports of a test, in which nothing takes long."""
    monkeypatch.setattr(database, "RETRY_PAUSES", ())
    settings.INFUSIONSOFT_READ_TIMEOUT_SECONDS = 0.2
    all_reports.texts.clear()
    with mailing(all_reports):
        yield all_reports
    for file in spool.glob("*") if spool.is_dir() else ():  # of a failing database
        file.unlink()


@pytest.fixture
def secrets(connect: Callable[..., Credential], sandbox: Sandbox) -> Secrets:
    """The secrets of two accounts, and of the client."""
    found = Secrets()
    connect("ab123", seconds_left=-1)
    connect("cd456")
    found.add_grants(sandbox)
    found.values["client secret"] = conf.CLIENT_SECRET
    found.values["new client secret"] = NEW_SECRET
    return found


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("call", CALLS)
def test_no_report_of_a_failed_call_contains_a_secret(
    call: str, failure: str, sandbox: Sandbox, secrets: Secrets, reports: Reports
) -> None:
    with FAILURES[failure](sandbox):
        reports.of(lambda: CALLS[call](sandbox))
    secrets.add_grants(sandbox)
    assert reports.leaks(secrets) == []


@pytest.fixture
def browser(secrets: Secrets) -> Browser:
    """A superuser's browser."""
    site = Browser(SERVER_NAME="localhost")
    site.force_login(User.objects.create_superuser("boss"))
    site.cookies["csrftoken"] = CSRF_TOKEN
    return site


@pytest.mark.parametrize("failure", FAILURES)
def test_no_report_of_a_failed_callback_contains_a_secret(
    failure: str, sandbox: Sandbox, secrets: Secrets, browser: Browser, reports: Reports
) -> None:
    begun = client_for()
    begun.cookies = browser.cookies
    at_keap = go_to_keap(begun)

    def come_back() -> str:
        url = sandbox.authorize(at_keap, account="cd456")
        secrets.values["code"] = parameter(url, "code")
        return url

    with FAILURES[failure](sandbox):
        status = browser.visit(come_back).status_code
    secrets.add_grants(sandbox)
    assert (status, reports.leaks(secrets)) == (CALLBACK_STATUS.get(failure, 503), [])


@pytest.mark.parametrize("failure", FAILURES)
def test_no_report_of_a_key_contains_it(
    failure: str, sandbox: Sandbox, secrets: Secrets, reports: Reports
) -> None:
    secrets.values["key"] = sandbox.issue_key("ef789")
    secrets.values["rejected key"] = sandbox.issue_key("cd456")
    Credential.objects.get(account="cd456").disconnect()
    keyed = Credential.objects.add_key(key=secrets.values["rejected key"])
    sandbox.revoke_key(secrets.values["rejected key"])
    with FAILURES[failure](sandbox):
        reports.of(lambda: Credential.objects.add_key(key=secrets.values["key"]))
        reports.of(lambda: keyed.session().get("v2/contacts"))
    assert reports.leaks(secrets) == []


@pytest.mark.parametrize("failure", ["no failure", "database", "encryption key", "cipher", "503"])
def test_no_report_of_the_form_for_keys_contains_a_secret(
    failure: str, sandbox: Sandbox, secrets: Secrets, browser: Browser, reports: Reports
) -> None:
    secrets.values["key"] = sandbox.issue_key("ef789")
    form = {"key": secrets.values["key"], "csrfmiddlewaretoken": CSRF_TOKEN}
    with FAILURES[failure](sandbox):
        response = browser.post(f"{LIST}key/", form)
    expected = {"no failure": 302, "database": 500, "cipher": 500}.get(failure, 200)
    assert (response.status_code, reports.leaks(secrets)) == (expected, [])


@pytest.mark.parametrize("failure", ["no failure", "database", "encryption key"])
def test_no_report_of_a_form_contains_a_secret(
    failure: str, sandbox: Sandbox, secrets: Secrets, browser: Browser, reports: Reports
) -> None:
    form = {"name": "Second", "client_id": "second", "csrfmiddlewaretoken": CSRF_TOKEN}
    with FAILURES[failure](sandbox):
        response = browser.post(f"{APPLICATIONS}add/", form | {"new_secret": NEW_SECRET})
    expected = {"no failure": 302, "database": 500, "encryption key": 200}[failure]
    assert (response.status_code, reports.leaks(secrets)) == (expected, [])
    assert reports.texts


def test_filter_of_the_site_is_used_for_the_views_of_the_app(
    sandbox: Sandbox, browser: Browser, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debug, "get_default_exception_reporter_filter", SiteFilter)
    begun = client_for()
    begun.cookies = browser.cookies
    url = sandbox.authorize(go_to_keap(begun), account="cd456")
    with FAILURES["bug"](sandbox):
        assert browser.visit(lambda: url).status_code == 500
    assert any("FILTERED_BY" in text for text in reports.texts)


@pytest.mark.parametrize("failure", ["database", "encryption key"])
def test_no_report_of_a_failed_import_contains_a_secret(
    failure: str, sandbox: Sandbox, secrets: Secrets, reports: Reports, tmp_path: Path
) -> None:
    file = tmp_path / "export.jsonl"
    file.write_text(json.dumps({**export(sandbox), "expires_at": 0}))
    secrets.add_grants(sandbox)
    with FAILURES[failure](sandbox):
        reports.of(lambda: call_command("infusionsoft_import", str(file)))
    assert reports.texts
    assert reports.leaks(secrets) == []
