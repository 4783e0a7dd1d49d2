"""System checks, by their ids."""

import os
import random
import re
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import django
import pytest
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.checks import CheckMessage, run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection, connections
from django.db.utils import OperationalError
from django.http import HttpResponse
from django.test import override_settings
from django.urls import include, path, set_script_prefix

import django_infusionsoft
from django_infusionsoft.checks.databases import (
    check_client_exists,
    check_database_of_users,
    check_worker,
)
from django_infusionsoft.checks.schedule import check_beat
from django_infusionsoft.conf import Conf
from django_infusionsoft.models import Application, Credential
from django_infusionsoft.refresh import spool_folder
from django_infusionsoft.schedule import beat_schedule
from django_infusionsoft.views import CallbackView
from tests.processes import ROOT

PREFIX = "django_infusionsoft."
DOCUMENT = ROOT / "docs" / "checks.rst"
CALLBACK = "https://testserver/infusionsoft/callback/"
SMTP = "django.core.mail.backends.smtp.EmailBackend"
SESSIONS, USERS = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)


def ids(*, deploy: bool = False, **settings: Any) -> list[str]:
    with override_settings(**settings):
        return ids_of(run_checks(include_deployment_checks=deploy))


def ids_of(messages: list[CheckMessage]) -> list[str]:
    found = [str(message.id) for message in messages]
    return [each.removeprefix(PREFIX) for each in found if each.startswith(PREFIX)]


SHARED = "22 1 8:1 / / rw - ext4 /dev/sda1 rw"
PRIVATE = "90 22 8:1 /var/tmp/systemd-private-1/tmp /var/tmp rw - ext4 /dev/sda1 rw"
MOUNTS = {
    "a disk": (SHARED, ""),
    "a service": (f"{SHARED}\n{PRIVATE}", "private"),
    "in memory": (f"{SHARED}\n90 22 0:5 / /var rw - tmpfs none rw", "/var is of type tmpfs"),
    "a container": ("22 1 0:5 / / rw - overlay o rw", "/ is of type overlay"),
    "a volume": ("22 1 0:5 / / rw - overlay o rw\n9 22 8:1 /v /var/tmp rw - ext4 /d rw", ""),
}


@pytest.mark.parametrize("place", MOUNTS)
def test_warning_when_the_default_spool_does_not_last(tmp_path: Path, place: str) -> None:
    mounts, expected = MOUNTS[place]
    (tmp_path / "mountinfo").write_text(mounts)
    with override_settings(INFUSIONSOFT_SPOOL_DIR=Conf.SPOOL_DIR.default):
        found = spool_folder.volatility(tmp_path / "mountinfo")
        assert expected in found
        assert bool(found) == bool(expected)
        assert ("W031" in ids(deploy=True)) == bool(spool_folder.volatility())
    assert "W031" not in ids(deploy=True)


def test_nothing_is_reported_when_the_site_is_configured() -> None:
    assert ids() == []


# The settings of the app


@pytest.mark.parametrize("keys", [[], [""], ["short"], "a string"])
def test_error_names_the_command_when_there_is_no_usable_key(keys: Any) -> None:
    assert "E001" in ids(INFUSIONSOFT_ENCRYPTION_KEYS=keys)
    with (
        override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=keys),
        pytest.raises(SystemCheckError, match="infusionsoft_key"),
    ):
        call_command("check")


@pytest.mark.parametrize(
    "raw",
    [
        b"tests-only-tests-only-tests-only",
        b"0123456789abcdef0123456789abcdef",
        bytes(32),
        bytes(range(32)),
        bytes(range(255, 95, -5)),
        b"Zu5\xe1\x07\xc4\x9b!\xf0\x16\xa8\x33\xd2\x7e\x4c\x8a" * 2,
    ],
    ids=["text", "hex digits", "zeroes", "counted", "counted down", "twice the same"],
)
def test_warning_about_a_key_that_is_not_random_omits_the_key(raw: bytes) -> None:
    key = urlsafe_b64encode(raw).decode()
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[key]):
        (message,) = [each for each in run_checks() if each.id == f"{PREFIX}W005"]
    assert key not in str(message)


def test_warning_about_a_key_that_is_not_random_names_its_position(settings: Any) -> None:
    good, bad = settings.INFUSIONSOFT_ENCRYPTION_KEYS[0], urlsafe_b64encode(bytes(32)).decode()
    settings.INFUSIONSOFT_ENCRYPTION_KEYS = [good, "", bad]
    (message,) = [each for each in run_checks() if each.id == f"{PREFIX}W005"]
    assert message.msg.startswith("Key 3 of ")


def test_random_keys_are_accepted() -> None:
    source = random.Random(20)  # noqa: S311  # the same keys in every run
    keys = [urlsafe_b64encode(source.randbytes(32)).decode() for _ in range(10_000)]
    assert ids(INFUSIONSOFT_ENCRYPTION_KEYS=keys) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKEN_URL", "http://keap.example/token"),
        ("WAIT_SECONDS", "long"),
        ("REFRESH_FRACTION", 2.0),
        ("REDIRECT_URI", "http://site.example/callback/"),
        ("ALERT_RECIPIENTS", "ops@site.example"),
    ],
)
def test_invalid_setting_is_an_error(name: str, value: Any) -> None:
    assert ids(**{f"INFUSIONSOFT_{name}": value}) == ["E002"]


def test_incomplete_client_is_an_error() -> None:
    assert ids(INFUSIONSOFT_CLIENT_SECRET="") == ["E003"]
    assert ids(INFUSIONSOFT_CLIENT_ID="") == ["E003"]


def test_settings_without_a_client_are_accepted() -> None:
    assert ids(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="") == []


@pytest.mark.parametrize("rate", [0, 25.5])
def test_rate_above_keaps_limit_is_a_warning(rate: float) -> None:
    assert ids(INFUSIONSOFT_REFRESH_RATE=rate) == ["W011"]


@pytest.mark.parametrize("rate", [0, 100])
def test_any_rate_is_accepted_for_a_server_other_than_keaps(rate: float) -> None:
    url = "https://login.example/token"
    assert ids(INFUSIONSOFT_REFRESH_RATE=rate, INFUSIONSOFT_TOKEN_URL=url) == []


@pytest.mark.parametrize("rate", [0.5, 25])
def test_rate_within_keaps_limit_is_accepted(rate: float) -> None:
    assert ids(INFUSIONSOFT_REFRESH_RATE=rate) == []


# URLs, sessions and the redirect URI


def test_missing_url_include_is_a_warning() -> None:
    assert ids(ROOT_URLCONF="django.contrib.auth.urls") == ["W002"]


def test_strict_session_cookie_is_a_warning() -> None:
    assert ids(SESSION_COOKIE_SAMESITE="Strict") == ["W003"]


@pytest.mark.parametrize("engine", ["cache", "cached_db", "file", "signed_cookies"])
def test_sessions_of_every_kind_are_accepted(engine: str) -> None:
    assert ids(SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}") == []


class OwnSessionMiddleware(SessionMiddleware):
    """Defined by the site."""


@pytest.mark.parametrize("missing", [SESSIONS, USERS])
def test_missing_middleware_is_a_warning(settings: Any, missing: str) -> None:
    rest = [each for each in settings.MIDDLEWARE if each != missing]
    assert "W013" in ids(MIDDLEWARE=rest)


def test_subclass_of_the_required_middleware_is_accepted(settings: Any) -> None:
    own = f"{__name__}.{OwnSessionMiddleware.__name__}"
    middleware = [own if each == SESSIONS else each for each in settings.MIDDLEWARE]
    assert "W013" not in ids(MIDDLEWARE=middleware)


def test_missing_middleware_is_not_reported_without_the_views() -> None:
    assert "W013" not in ids(MIDDLEWARE=[], ROOT_URLCONF="django.contrib.auth.urls")


@pytest.mark.parametrize("tail", ["?a=b", "#c"])
def test_redirect_uri_with_query_or_fragment_is_a_warning(tail: str) -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI=f"{CALLBACK}{tail}") == ["W001"]


@pytest.mark.parametrize("path", ["", "/", "/infusionsoft/callback", "/infusionsoft/authorize/"])
def test_redirect_uri_that_does_not_match_the_callback_is_a_warning(path: str) -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI=f"https://testserver{path}") == ["W006"]


@pytest.mark.parametrize("uri", [CALLBACK, "https://testserver/site/infusionsoft/callback/"])
def test_redirect_uri_of_the_callback_is_accepted_under_any_prefix(uri: str) -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI=uri) == []


@pytest.fixture
def mounted() -> Iterator[None]:
    """The site under the prefix ``/site/``, as with ``FORCE_SCRIPT_NAME``."""
    set_script_prefix("/site/")
    yield
    set_script_prefix("/")


def test_redirect_uri_without_the_script_name_is_a_warning(mounted: None) -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI=CALLBACK) == ["W006"]


@pytest.mark.parametrize("path", ["infusionsoft/callback/", "keap/connected/"])
@override_settings(ROOT_URLCONF=__name__)
def test_redirect_uri_with_the_script_name_is_accepted(mounted: None, path: str) -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI=f"https://testserver/site/{path}") == []


class OwnCallbackView(CallbackView):
    """Defined by the site."""


def other_view(request: Any) -> HttpResponse:
    return HttpResponse()


urlpatterns = [
    path("infusionsoft/", include("django_infusionsoft.urls")),
    path("keap/connected/", OwnCallbackView.as_view()),
    path("keap/other/", other_view),
]


@override_settings(ROOT_URLCONF=__name__)
def test_redirect_uri_of_a_subclass_of_the_callback_is_accepted() -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI="https://testserver/keap/connected/") == []


@override_settings(ROOT_URLCONF=__name__)
def test_redirect_uri_of_another_view_is_a_warning() -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI="https://testserver/keap/other/") == ["W006"]


@pytest.mark.parametrize("hosts", [[], ["site.example"], [".site.example"]])
def test_redirect_uri_at_a_disallowed_host_is_a_warning(hosts: list[str]) -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI=CALLBACK, ALLOWED_HOSTS=hosts) == ["W007"]


@pytest.mark.parametrize("hosts", [["*"], [".site.example"], ["eu.site.example"]])
def test_redirect_uri_at_an_allowed_host_is_accepted(hosts: list[str]) -> None:
    uri = "https://EU.site.example:8443/infusionsoft/callback/"
    assert ids(INFUSIONSOFT_REDIRECT_URI=uri, ALLOWED_HOSTS=hosts) == []


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
def test_redirect_uri_on_localhost_is_accepted_in_debug_mode(host: str) -> None:
    uri = f"http://{host}/infusionsoft/callback/"
    assert ids(INFUSIONSOFT_REDIRECT_URI=uri, ALLOWED_HOSTS=[], DEBUG=True) == []


# The database


def test_naive_datetimes_are_an_error() -> None:
    assert ids(USE_TZ=False) == ["E005"]


@pytest.fixture
def set_time_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set the ``TIME_ZONE`` of the database."""

    def clear_cached() -> None:
        for name in ("timezone", "timezone_name"):  # cached properties
            vars(connections["default"]).pop(name, None)

    def set_to(name: str) -> None:
        monkeypatch.setitem(connections["default"].settings_dict, "TIME_ZONE", name)
        clear_cached()

    yield set_to
    monkeypatch.undo()
    clear_cached()


def test_database_time_zone_is_an_error_when_it_shifts_stored_times(
    set_time_zone: Callable[[str], None],
) -> None:
    set_time_zone("Europe/London")  # the same as UTC in winter
    assert ids() == ([] if connection.vendor == "postgresql" else ["E006"])


@pytest.mark.parametrize("name", ["UTC", "Etc/UTC"])
def test_database_time_zone_utc_is_accepted(
    set_time_zone: Callable[[str], None], name: str
) -> None:
    set_time_zone(name)
    assert ids() == []


class KeapRouter:
    """Routes the app's models to the alias ``keap``."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "keap" if model._meta.app_label == "django_infusionsoft" else None


@pytest.mark.parametrize(("name", "problems"), [("", []), ("other", ["E008"])])
def test_another_database_than_that_of_the_users_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str, problems: list[str]
) -> None:
    same = connections.settings["default"]
    keap = {**same, "NAME": name or same["NAME"], "TIME_ZONE": None}
    monkeypatch.setitem(connections.settings, "keap", keap)
    with override_settings(DATABASE_ROUTERS=["tests.checks.test_checks.KeapRouter"]):
        found = check_database_of_users()
    assert [each.id for each in found] == [PREFIX + each for each in problems]


def test_atomic_requests_are_a_warning_on_sqlite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    assert ids() == (["W014"] if connection.vendor == "sqlite" else [])


def database_ids() -> list[str]:
    return ids_of(run_checks(databases=["default"]))


NO_CLIENT = {"INFUSIONSOFT_CLIENT_ID": "", "INFUSIONSOFT_CLIENT_SECRET": ""}


@pytest.mark.django_db
@override_settings(**NO_CLIENT)
def test_missing_client_is_a_warning_when_the_database_is_checked() -> None:
    assert database_ids() == ["W008"]


@pytest.mark.django_db
@override_settings(**NO_CLIENT)
def test_client_in_the_database_is_accepted(second: Application) -> None:
    assert database_ids() == []


@pytest.mark.django_db
def test_client_in_the_settings_is_accepted() -> None:
    assert database_ids() == []


def test_missing_worker_run_is_a_warning_when_the_database_is_checked(
    credential: Credential,
) -> None:
    assert database_ids() == ["W009"]


def test_recorded_worker_run_is_accepted(credential: Credential) -> None:
    Credential.objects.refresh_due()
    assert database_ids() == []


def test_missing_worker_run_is_accepted_when_no_account_is_connected(
    credential: Credential,
) -> None:
    credential.disconnect()
    assert database_ids() == []


@pytest.mark.parametrize("check", [check_client_exists, check_worker])
@override_settings(**NO_CLIENT)
def test_database_is_not_queried_when_it_is_not_selected(
    check: Callable[..., list[CheckMessage]],
) -> None:
    assert check(databases=["another"]) == []
    assert check(databases=None) == []


@pytest.mark.parametrize("check", [check_client_exists, check_worker])
@pytest.mark.django_db
@override_settings(**NO_CLIENT)
def test_missing_tables_are_accepted(
    check: Callable[..., list[CheckMessage]],
) -> None:
    def fail(*args: Any) -> None:
        raise OperationalError("no such table")

    with connection.execute_wrapper(fail):
        assert check(databases=["default"]) == []


# Celery


def celery_ids(**options: Any) -> list[str]:
    """Return the ids reported for a site with this Celery app.

    A thread of its own is needed: Celery's current app is the newest app of the thread.
    """
    celery = pytest.importorskip("celery", reason="Celery is not installed here")
    receiver = options.pop("receiver", None)
    found: list[str] = []

    def check() -> None:
        # Without Celery's fixup for Django, which would make it the default app.
        app = celery.Celery("site", fixups=[], **options)
        if receiver:
            app.on_after_finalize.connect(receiver)
        found.extend(ids_of(check_beat()))

    thread = Thread(target=check)
    thread.start()
    thread.join()
    return found


@pytest.mark.parametrize("schedule", [{}, None, {"other": {"task": "other", "schedule": 5}}])
def test_missing_schedule_entry_is_a_warning(schedule: Any) -> None:
    assert celery_ids(changes={"beat_schedule": schedule}) == ["W010"]


def test_schedule_entry_is_accepted() -> None:
    assert celery_ids(changes={"beat_schedule": beat_schedule(seconds=30)}) == []


def test_schedule_entry_added_by_a_receiver_is_accepted() -> None:
    def add(sender: Any, **kwargs: Any) -> None:
        from django_infusionsoft.tasks import refresh_due_credentials

        sender.add_periodic_task(60, refresh_due_credentials.s())

    assert celery_ids(receiver=add) == []


def test_scheduler_that_stores_its_entries_elsewhere_is_accepted() -> None:
    scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    assert celery_ids(changes={"beat_scheduler": scheduler}) == []


def test_nothing_is_reported_when_celery_cannot_read_its_settings() -> None:
    assert celery_ids(config_source="no_such_module") == []


def test_nothing_is_reported_when_celery_is_installed_but_not_used() -> None:
    pytest.importorskip("celery", reason="Celery is not installed here")
    code = (
        "import celery, django; django.setup();"
        "from django_infusionsoft.checks.schedule import check_beat; print(check_beat())"
    )
    # A separate process: in this one, the first Celery app of another test stays the default.
    environment = os.environ | {"TESTS_SETTINGS": '{"CELERY_BEAT_SCHEDULE": {}}'}
    command = [sys.executable, "-c", code]
    output = subprocess.check_output(command, cwd=ROOT, env=environment, text=True)
    assert output.strip() == "[]"


# Mails


@pytest.mark.parametrize(
    "recipient",
    [
        "",
        "ops",
        "ops@",
        "o ps@site.example",
        "a@site.example, b@site.example",
        7,
        "ops@site.example\nBcc: x@y.example",
        "Ops <ops>",
    ],
)
def test_invalid_recipient_is_an_error(recipient: Any) -> None:
    site = "https://testserver"
    found = ids(INFUSIONSOFT_ALERT_RECIPIENTS=[recipient], INFUSIONSOFT_SITE_URL=site)
    assert found == ["E007"]


@pytest.mark.parametrize(
    "recipient", ["ops@site.example", "Keap <ops@site.example>", '"Ops, Keap" <ops@site.example>']
)
def test_recipient_with_or_without_a_name_is_accepted(recipient: str) -> None:
    site = "https://testserver"
    assert ids(INFUSIONSOFT_ALERT_RECIPIENTS=[recipient], INFUSIONSOFT_SITE_URL=site) == []


def test_recipients_without_a_site_url_are_a_warning() -> None:
    assert ids(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"]) == ["W015"]


def test_recipients_with_a_redirect_uri_are_accepted() -> None:
    recipients = ["ops@site.example"]
    assert ids(INFUSIONSOFT_ALERT_RECIPIENTS=recipients, INFUSIONSOFT_REDIRECT_URI=CALLBACK) == []


def smtp_settings(timeout: float | None) -> dict[str, Any]:
    if django.VERSION < (6, 1):
        return {"EMAIL_BACKEND": SMTP, "EMAIL_TIMEOUT": timeout}
    options = {"host": "mail.site.example"} | ({"timeout": timeout} if timeout else {})
    return {"MAILERS": {"default": {"BACKEND": SMTP, "OPTIONS": options}}}


MAILS: dict[str, Any] = {
    "INFUSIONSOFT_ALERT_RECIPIENTS": ["ops@site.example"],
    "INFUSIONSOFT_SITE_URL": "https://testserver",
}


def test_mail_server_without_a_timeout_is_a_warning() -> None:
    assert ids(**MAILS, **smtp_settings(None)) == ["W016"]


def test_mail_server_with_a_timeout_is_accepted() -> None:
    assert ids(**MAILS, **smtp_settings(10)) == []


def test_mail_server_without_a_timeout_is_accepted_without_recipients() -> None:
    assert ids(**smtp_settings(None)) == []


# Production


def test_redirect_uri_on_localhost_is_a_warning_in_production() -> None:
    uri = "http://localhost:8000/infusionsoft/callback/"
    assert ids(deploy=True, INFUSIONSOFT_REDIRECT_URI=uri) == ["W017"]
    assert ids(INFUSIONSOFT_REDIRECT_URI=uri) == []


def test_possible_http_redirect_uri_is_a_warning_in_production() -> None:
    assert ids(deploy=True) == ["W018"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INFUSIONSOFT_REDIRECT_URI", CALLBACK),
        ("SECURE_PROXY_SSL_HEADER", ("HTTP_X_FORWARDED_PROTO", "https")),
        ("SECURE_SSL_REDIRECT", True),
    ],
)
def test_https_redirect_uri_is_accepted_in_production(name: str, value: Any) -> None:
    assert ids(deploy=True, **{name: value}) == []


@pytest.mark.parametrize("host", ["*", ".site.test"])
def test_redirect_uri_from_the_request_is_a_warning_with_a_wildcard_in_production(
    host: str,
) -> None:
    hosts: dict[str, Any] = {
        "ALLOWED_HOSTS": ["testserver", host],
        "SECURE_SSL_REDIRECT": True,
    }
    assert ids(deploy=True, **hosts) == ["W023"]
    assert ids(deploy=True, **hosts, INFUSIONSOFT_REDIRECT_URI=CALLBACK) == []
    assert ids(**hosts) == []


@pytest.mark.parametrize("name", ["AUTHORIZE_URL", "TOKEN_URL", "API_URL"])
def test_endpoint_on_localhost_is_a_warning_in_production(name: str) -> None:
    setting: dict[str, Any] = {f"INFUSIONSOFT_{name}": "http://127.0.0.1:8765/"}
    assert ids(deploy=True, INFUSIONSOFT_REDIRECT_URI=CALLBACK, **setting) == ["W019"]
    assert ids(**setting) == []


# The documentation


def used_ids(source: str) -> list[str]:
    return re.findall(rf'(?:id="{PREFIX}|problem\(\s+")([EW]\d+)"', source)


def test_docs_list_exactly_the_used_ids() -> None:
    package = Path(django_infusionsoft.__file__).parent / "checks"
    sources = [each.read_text(encoding="utf-8") for each in package.glob("*.py")]
    used = {id_ for each in sources for id_ in used_ids(each)}
    found = re.findall(r"^   \* - ``(\w+)``$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert found == sorted(used)


def test_every_id_is_used_once() -> None:
    package = Path(django_infusionsoft.__file__).parent / "checks"
    sources = [each.read_text(encoding="utf-8") for each in package.glob("*.py")]
    used = [id_ for each in sources for id_ in used_ids(each)]
    assert len(used) == len(set(used))


def test_every_docstring_starts_with_the_id() -> None:
    package = Path(django_infusionsoft.__file__).parent / "checks"
    for source in package.glob("*.py"):
        text = source.read_text(encoding="utf-8")
        found = re.findall(r'    """([EW]\d{3}): ', text)
        assert found == used_ids(text)
