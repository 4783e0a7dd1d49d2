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
from django_infusionsoft.checks.databases import check_client_exists, check_worker
from django_infusionsoft.checks.schedule import check_beat
from django_infusionsoft.models import Application, Credential
from django_infusionsoft.schedule import beat_schedule
from django_infusionsoft.views import CallbackView

PREFIX = "django_infusionsoft."
ROOT = Path(__file__).resolve().parent.parent
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


def test_nothing_is_found_when_all_is_well() -> None:
    assert ids() == []


# The settings of the app


@pytest.mark.parametrize("keys", [[], [""], ["short"], "a string"])
def test_site_stops_and_names_the_command_when_there_is_no_usable_key(keys: Any) -> None:
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
def test_key_that_is_not_random_is_a_warning_without_the_key(raw: bytes) -> None:
    key = urlsafe_b64encode(raw).decode()
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[key]):
        (message,) = [each for each in run_checks() if each.id == f"{PREFIX}W005"]
    assert key not in str(message)


def test_key_that_is_not_random_is_named_by_its_place(settings: Any) -> None:
    good, bad = settings.INFUSIONSOFT_ENCRYPTION_KEYS[0], urlsafe_b64encode(bytes(32)).decode()
    settings.INFUSIONSOFT_ENCRYPTION_KEYS = [good, "", bad]
    (message,) = [each for each in run_checks() if each.id == f"{PREFIX}W005"]
    assert message.msg.startswith("Key 3 of ")


def test_random_keys_are_fine() -> None:
    source = random.Random(20)  # noqa: S311  # so that the same pass always
    keys = [urlsafe_b64encode(source.randbytes(32)).decode() for _ in range(10_000)]
    assert ids(INFUSIONSOFT_ENCRYPTION_KEYS=keys) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKEN_URL", "http://keap.example/token"),
        ("LEASE_SECONDS", "long"),
        ("REFRESH_FRACTION", 2.0),
        ("REDIRECT_URI", "http://site.example/callback/"),
        ("ALERT_RECIPIENTS", "ops@site.example"),
    ],
)
def test_wrong_setting_is_an_error(name: str, value: Any) -> None:
    assert ids(**{f"INFUSIONSOFT_{name}": value}) == ["E002"]


def test_half_a_client_is_an_error() -> None:
    assert ids(INFUSIONSOFT_CLIENT_SECRET="") == ["E003"]
    assert ids(INFUSIONSOFT_CLIENT_ID="") == ["E003"]


def test_no_client_in_the_settings_is_fine() -> None:
    assert ids(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="") == []


def test_lease_that_a_call_can_outlast_is_an_error() -> None:
    assert ids(INFUSIONSOFT_LEASE_SECONDS=66) == ["E004"]
    assert ids(INFUSIONSOFT_LEASE_SECONDS=67) == []


@pytest.mark.parametrize("rate", [0, 25.5])
def test_rate_above_keaps_limit_is_a_warning(rate: float) -> None:
    assert ids(INFUSIONSOFT_REFRESH_RATE=rate) == ["W011"]


@pytest.mark.parametrize("rate", [0, 100])
def test_any_rate_is_fine_with_a_server_that_is_not_keaps(rate: float) -> None:
    url = "https://login.example/token"
    assert ids(INFUSIONSOFT_REFRESH_RATE=rate, INFUSIONSOFT_TOKEN_URL=url) == []


@pytest.mark.parametrize("rate", [0.5, 25])
def test_rate_within_keaps_limit_is_fine(rate: float) -> None:
    assert ids(INFUSIONSOFT_REFRESH_RATE=rate) == []


# The way to Keap and back


def test_missing_include_is_a_warning() -> None:
    assert ids(ROOT_URLCONF="django.contrib.auth.urls") == ["W002"]


def test_session_cookie_that_stays_behind_is_a_warning() -> None:
    assert ids(SESSION_COOKIE_SAMESITE="Strict") == ["W003"]


def test_sessions_in_cookies_are_a_warning() -> None:
    assert ids(SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies") == ["W012"]


@pytest.mark.parametrize("engine", ["cache", "cached_db", "file"])
def test_sessions_elsewhere_on_the_server_are_fine(engine: str) -> None:
    assert ids(SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}") == []


class OwnSessionMiddleware(SessionMiddleware):
    """A site's."""


@pytest.mark.parametrize("missing", [SESSIONS, USERS])
def test_missing_middleware_is_a_warning(settings: Any, missing: str) -> None:
    rest = [each for each in settings.MIDDLEWARE if each != missing]
    assert "W013" in ids(MIDDLEWARE=rest)


def test_middleware_made_from_the_needed_one_is_fine(settings: Any) -> None:
    own = f"{__name__}.{OwnSessionMiddleware.__name__}"
    middleware = [own if each == SESSIONS else each for each in settings.MIDDLEWARE]
    assert "W013" not in ids(MIDDLEWARE=middleware)


def test_missing_middleware_is_not_told_without_the_views() -> None:
    assert "W013" not in ids(MIDDLEWARE=[], ROOT_URLCONF="django.contrib.auth.urls")


@pytest.mark.parametrize("tail", ["?a=b", "#c"])
def test_redirect_uri_with_more_than_a_path_is_a_warning(tail: str) -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI=f"{CALLBACK}{tail}") == ["W001"]


@pytest.mark.parametrize("path", ["", "/", "/infusionsoft/callback", "/infusionsoft/authorize/"])
def test_redirect_uri_that_leads_elsewhere_is_a_warning(path: str) -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI=f"https://testserver{path}") == ["W006"]


@pytest.mark.parametrize("uri", [CALLBACK, "https://testserver/site/infusionsoft/callback/"])
def test_redirect_uri_of_the_callback_is_fine_wherever_a_server_mounts_the_site(uri: str) -> None:
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
def test_redirect_uri_with_the_script_name_is_fine(mounted: None, path: str) -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI=f"https://testserver/site/{path}") == []


class OwnCallbackView(CallbackView):
    """A site's."""


def elsewhere(request: Any) -> HttpResponse:
    return HttpResponse()


urlpatterns = [
    path("infusionsoft/", include("django_infusionsoft.urls")),
    path("keap/connected/", OwnCallbackView.as_view()),
    path("keap/elsewhere/", elsewhere),
]


@override_settings(ROOT_URLCONF=__name__)
def test_redirect_uri_of_a_view_made_from_the_callback_is_fine() -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI="https://testserver/keap/connected/") == []


@override_settings(ROOT_URLCONF=__name__)
def test_redirect_uri_of_a_function_is_a_warning() -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI="https://testserver/keap/elsewhere/") == ["W006"]


@pytest.mark.parametrize("hosts", [[], ["site.example"], [".site.example"]])
def test_redirect_uri_at_a_host_that_django_refuses_is_a_warning(hosts: list[str]) -> None:
    assert ids(INFUSIONSOFT_REDIRECT_URI=CALLBACK, ALLOWED_HOSTS=hosts) == ["W007"]


@pytest.mark.parametrize("hosts", [["*"], [".site.example"], ["eu.site.example"]])
def test_redirect_uri_at_a_host_that_django_allows_is_fine(hosts: list[str]) -> None:
    uri = "https://EU.site.example:8443/infusionsoft/callback/"
    assert ids(INFUSIONSOFT_REDIRECT_URI=uri, ALLOWED_HOSTS=hosts) == []


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
def test_redirect_uri_on_this_machine_is_fine_while_debugging(host: str) -> None:
    uri = f"http://{host}/infusionsoft/callback/"
    assert ids(INFUSIONSOFT_REDIRECT_URI=uri, ALLOWED_HOSTS=[], DEBUG=True) == []


# The database


def test_naive_datetimes_are_an_error() -> None:
    assert ids(USE_TZ=False) == ["E005"]


@pytest.fixture
def set_time_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Let the database have a ``TIME_ZONE``."""

    def forget() -> None:
        for name in ("timezone", "timezone_name"):  # computed once
            vars(connections["default"]).pop(name, None)

    def set_to(name: str) -> None:
        monkeypatch.setitem(connections["default"].settings_dict, "TIME_ZONE", name)
        forget()

    yield set_to
    monkeypatch.undo()
    forget()


def test_database_in_a_time_zone_is_an_error_where_that_moves_its_times(
    set_time_zone: Callable[[str], None],
) -> None:
    set_time_zone("Europe/London")  # as UTC in winter
    assert ids() == ([] if connection.vendor == "postgresql" else ["E006"])


@pytest.mark.parametrize("name", ["UTC", "Etc/UTC"])
def test_database_in_utc_by_name_is_fine(set_time_zone: Callable[[str], None], name: str) -> None:
    set_time_zone(name)
    assert ids() == []


def test_requests_in_transactions_are_a_warning_on_sqlite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    assert ids() == (["W014"] if connection.vendor == "sqlite" else [])


def of_database() -> list[str]:
    return ids_of(run_checks(databases=["default"]))


NO_CLIENT = {"INFUSIONSOFT_CLIENT_ID": "", "INFUSIONSOFT_CLIENT_SECRET": ""}


@pytest.mark.django_db
@override_settings(**NO_CLIENT)
def test_no_client_anywhere_is_a_warning_when_the_database_is_asked() -> None:
    assert of_database() == ["W008"]


@pytest.mark.django_db
@override_settings(**NO_CLIENT)
def test_client_in_the_admin_is_enough(second: Application) -> None:
    assert of_database() == []


@pytest.mark.django_db
def test_client_in_the_settings_is_enough() -> None:
    assert of_database() == []


def test_connected_account_without_a_run_is_a_warning_when_the_database_is_asked(
    credential: Credential,
) -> None:
    assert of_database() == ["W009"]


def test_run_that_was_seen_is_enough(credential: Credential) -> None:
    Credential.objects.refresh_due()
    assert of_database() == []


def test_run_is_not_missed_while_nothing_is_connected(credential: Credential) -> None:
    credential.disconnect()
    assert of_database() == []


@pytest.mark.parametrize("check", [check_client_exists, check_worker])
@override_settings(**NO_CLIENT)
def test_database_is_left_alone_when_it_is_not_asked_for(
    check: Callable[..., list[CheckMessage]],
) -> None:
    assert check(databases=["another"]) == []
    assert check(databases=None) == []


@pytest.mark.parametrize("check", [check_client_exists, check_worker])
@pytest.mark.django_db
@override_settings(**NO_CLIENT)
def test_database_that_has_no_tables_yet_is_fine(
    check: Callable[..., list[CheckMessage]],
) -> None:
    def refuse(*args: Any) -> None:
        raise OperationalError("no such table")

    with connection.execute_wrapper(refuse):
        assert check(databases=["default"]) == []


# Celery


def of_celery(**options: Any) -> list[str]:
    """Return the ids that a site with this Celery app gets.

    In a thread: Celery takes the newest app of a thread for the site's.
    """
    celery = pytest.importorskip("celery", reason="Celery is not installed here")
    receiver = options.pop("receiver", None)
    found: list[str] = []

    def check() -> None:
        app = celery.Celery("site", fixups=[], **options)  # else it stays the default
        if receiver:
            app.on_after_finalize.connect(receiver)
        found.extend(ids_of(check_beat()))

    thread = Thread(target=check)
    thread.start()
    thread.join()
    return found


@pytest.mark.parametrize("schedule", [{}, None, {"other": {"task": "other", "schedule": 5}}])
def test_celery_without_the_entry_is_a_warning(schedule: Any) -> None:
    assert of_celery(changes={"beat_schedule": schedule}) == ["W010"]


def test_celery_with_the_entry_is_fine() -> None:
    assert of_celery(changes={"beat_schedule": beat_schedule(seconds=30)}) == []


def test_celery_with_an_entry_that_a_receiver_adds_is_fine() -> None:
    def add(sender: Any, **kwargs: Any) -> None:
        from django_infusionsoft.tasks import refresh_due_credentials

        sender.add_periodic_task(60, refresh_due_credentials.s())

    assert of_celery(receiver=add) == []


def test_scheduler_that_keeps_its_entries_elsewhere_is_fine() -> None:
    scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    assert of_celery(changes={"beat_scheduler": scheduler}) == []


def test_celery_whose_settings_cannot_be_read_is_left_to_celery() -> None:
    assert of_celery(config_source="no_such_module") == []


def test_celery_that_is_installed_and_not_used_is_fine() -> None:
    pytest.importorskip("celery", reason="Celery is not installed here")
    code = (
        "import celery, django; django.setup();"
        "from django_infusionsoft.checks.schedule import check_beat; print(check_beat())"
    )
    # A process of its own: the first Celery app that others have made here stays the default.
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
def test_recipient_that_is_no_address_is_an_error(recipient: Any) -> None:
    site = "https://testserver"
    found = ids(INFUSIONSOFT_ALERT_RECIPIENTS=[recipient], INFUSIONSOFT_SITE_URL=site)
    assert found == ["E007"]


@pytest.mark.parametrize(
    "recipient", ["ops@site.example", "Keap <ops@site.example>", '"Ops, Keap" <ops@site.example>']
)
def test_recipient_with_or_without_a_name_is_fine(recipient: str) -> None:
    site = "https://testserver"
    assert ids(INFUSIONSOFT_ALERT_RECIPIENTS=[recipient], INFUSIONSOFT_SITE_URL=site) == []


def test_recipients_of_a_site_without_an_address_are_a_warning() -> None:
    assert ids(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"]) == ["W015"]


def test_recipients_of_a_site_that_has_a_redirect_uri_are_fine() -> None:
    recipients = ["ops@site.example"]
    assert ids(INFUSIONSOFT_ALERT_RECIPIENTS=recipients, INFUSIONSOFT_REDIRECT_URI=CALLBACK) == []


def by_smtp(timeout: float | None) -> dict[str, Any]:
    if django.VERSION < (6, 1):
        return {"EMAIL_BACKEND": SMTP, "EMAIL_TIMEOUT": timeout}
    options = {"host": "mail.site.example"} | ({"timeout": timeout} if timeout else {})
    return {"MAILERS": {"default": {"BACKEND": SMTP, "OPTIONS": options}}}


MAILS: dict[str, Any] = {
    "INFUSIONSOFT_ALERT_RECIPIENTS": ["ops@site.example"],
    "INFUSIONSOFT_SITE_URL": "https://testserver",
}


def test_mail_server_without_a_timeout_is_a_warning() -> None:
    assert ids(**MAILS, **by_smtp(None)) == ["W016"]


def test_mail_server_with_a_timeout_is_fine() -> None:
    assert ids(**MAILS, **by_smtp(10)) == []


def test_mail_server_without_a_timeout_is_fine_while_nobody_is_to_be_told() -> None:
    assert ids(**by_smtp(None)) == []


# Production


def test_redirect_uri_on_this_machine_is_a_warning_in_production() -> None:
    uri = "http://localhost:8000/infusionsoft/callback/"
    assert ids(deploy=True, INFUSIONSOFT_REDIRECT_URI=uri) == ["W017"]
    assert ids(INFUSIONSOFT_REDIRECT_URI=uri) == []


def test_redirect_uri_that_may_be_built_as_http_is_a_warning_in_production() -> None:
    assert ids(deploy=True) == ["W018"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INFUSIONSOFT_REDIRECT_URI", CALLBACK),
        ("SECURE_PROXY_SSL_HEADER", ("HTTP_X_FORWARDED_PROTO", "https")),
        ("SECURE_SSL_REDIRECT", True),
    ],
)
def test_redirect_uri_that_is_https_is_fine_in_production(name: str, value: Any) -> None:
    assert ids(deploy=True, **{name: value}) == []


@pytest.mark.parametrize("name", ["AUTHORIZE_URL", "TOKEN_URL", "API_URL"])
def test_endpoint_on_this_machine_is_a_warning_in_production(name: str) -> None:
    setting: dict[str, Any] = {f"INFUSIONSOFT_{name}": "http://127.0.0.1:8765/"}
    assert ids(deploy=True, INFUSIONSOFT_REDIRECT_URI=CALLBACK, **setting) == ["W019"]
    assert ids(**setting) == []


# The document


def test_document_has_every_id_and_no_other() -> None:
    package = Path(django_infusionsoft.__file__).parent / "checks"
    sources = [each.read_text(encoding="utf-8") for each in package.glob("*.py")]
    used = {id_ for each in sources for id_ in re.findall(rf'id="{PREFIX}(\w+)"', each)}
    told = re.findall(r"^   \* - ``(\w+)``$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert told == sorted(used)


def test_no_id_is_given_to_a_second_fault() -> None:
    package = Path(django_infusionsoft.__file__).parent / "checks"
    sources = [each.read_text(encoding="utf-8") for each in package.glob("*.py")]
    used = [id_ for each in sources for id_ in re.findall(rf'id="{PREFIX}(\w+)"', each)]
    assert len(used) == len(set(used))


def test_every_check_begins_with_its_id() -> None:
    package = Path(django_infusionsoft.__file__).parent / "checks"
    for source in package.glob("*.py"):
        text = source.read_text(encoding="utf-8")
        told = re.findall(r'    """([EW]\d{3}): ', text)
        assert told == re.findall(rf'id="{PREFIX}(\w+)"', text)
