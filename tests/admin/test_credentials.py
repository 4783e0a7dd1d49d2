"""The admin's lists: accounts, filters and permissions; no page contains a secret."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import time_machine
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client, override_settings
from django.urls import include, path, reverse
from django.utils import timezone
from django.utils.html import escape

from django_infusionsoft.admin import ApplicationAdmin, CredentialAdmin, icons
from django_infusionsoft.choices import BlockReason, Condition
from django_infusionsoft.models import Application, Credential, CredentialEvent
from django_infusionsoft.monitoring.history import fingerprint
from django_infusionsoft.sandbox import Sandbox, faults
from django_infusionsoft.storage.worker import process_name
from tests.web import (
    APPLICATIONS,
    DISCONNECTED,
    EVENTS,
    LEASED,
    LIST,
    LOST,
    OTHER_KEY,
    account,
    accounts_in,
    action_url,
    change_url,
    client_for,
    links,
    many,
    messages_of,
    page,
    plain,
    record_heartbeat,
    run_action,
    stop,
    texts,
    user_who_may,
)

pytestmark = pytest.mark.django_db

Connect = Callable[..., Credential]
CONDITIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "connected", "good"),
    (LEASED, "refreshing", "busy"),
    ({"failures": 2}, "retrying", "waiting"),
    ({"failures": 2, "expires_at": timedelta(minutes=-1)}, "failing", "bad"),
    (LOST, "needs attention", "bad"),
    (DISCONNECTED, "disconnected", "off"),
]
MARKUP = "<script>alert('1')</script>"

# A second admin site, with accounts and applications but without their history; and a third one
# with accounts only
backoffice = admin.AdminSite(name="backoffice")
backoffice.register(Credential, CredentialAdmin)
backoffice.register(Application, ApplicationAdmin)
credential_site = admin.AdminSite(name="credential_site")
credential_site.register(Credential, CredentialAdmin)
urlpatterns = [
    path("backoffice/", backoffice.urls),
    path("credential-site/", credential_site.urls),
    path("admin/", admin.site.urls),
    path("infusionsoft/", include("django_infusionsoft.urls")),
]


@pytest.fixture
def application() -> Application:
    return Application.objects.create(
        name="ours", client_id="sandbox-client", client_secret="sandbox-secret"
    )


def notices(client: Client, url: str = LIST) -> list[tuple[str, str]]:
    """Return the notices above the list, each with its tone."""
    markup = page(client, url)
    return [
        (tone, text)
        for tone in ("good", "busy", "waiting", "bad", "off")
        for text in texts(markup, "p", f"infusionsoft-notice infusionsoft-{tone}")
    ]


# The list


def test_list_shows_account_status_times_and_application(
    operator: Client, application: Application
) -> None:
    account("ab123", account_name="Acme Bakery")
    account("cd456", application=application)
    html = page(operator, LIST)
    assert texts(html, "th", "field-account_label") == ["ab123 Acme Bakery", "cd456"]
    assert texts(html, "td", "field-status_label") == ["connected", "connected"]
    assert texts(html, "td", "field-expires") == ["in 22 h"] * 2
    assert texts(html, "td", "field-last_refresh") == ["2 h ago"] * 2
    assert texts(html, "td", "field-next_refresh") == ["in 16 h"] * 2
    assert texts(html, "td", "field-application_label") == ["client in the settings", "ours"]


def test_unidentified_account_is_shown_by_its_primary_key(operator: Client) -> None:
    unidentified = account(None)
    assert accounts_in(page(operator, LIST)) == [f"#{unidentified.pk}"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (22.2 * 3600, "in 22 h"),
        (119, "in 119 s"),
        (1, "in 1 s"),
        (0, "0 s ago"),
        (-1, "1 s ago"),
        (-130, "2 min ago"),
        (-3 * 86400, "3 d ago"),
    ],
)
def test_times_are_shown_relative_to_now(operator: Client, seconds: float, words: str) -> None:
    with time_machine.travel(timezone.now(), tick=False):
        credential = account(expires_at=timedelta(seconds=seconds))
        html = page(operator, LIST)
    assert f">{words}</time>" in html
    assert f'<time datetime="{credential.expires_at.isoformat()}" title="' in html


def test_time_that_is_not_set_is_shown_as_a_dash(operator: Client) -> None:
    account(refresh_at=None)
    assert texts(page(operator, LIST), "td", "field-next_refresh") == ["-"]


def test_disconnected_account_shows_no_expiry(operator: Client) -> None:
    account(**DISCONNECTED)
    assert texts(page(operator, LIST), "td", "field-expires") == ["-"]


@pytest.mark.parametrize(("columns", "word", "tone"), CONDITIONS)
def test_condition_is_shown_as_text_beside_its_icon(
    operator: Client, columns: dict[str, Any], word: str, tone: str
) -> None:
    credential = account(**columns)
    icon = icons.OF_CONDITIONS[credential.condition]
    assert icon.tone == tone
    assert f'infusionsoft-status infusionsoft-{tone}">{icon.svg} {word}</span>' in page(
        operator, LIST
    )
    assert f'<p class="infusionsoft-status">{icon.svg} {word}</p>' in page(
        operator, change_url(credential)
    )


def test_every_condition_has_an_icon_of_its_own_shape() -> None:
    assert len({icons.OF_CONDITIONS[each].shape for each in Condition}) == len(Condition)


def test_icons_are_inline_and_hidden_from_screen_readers(operator: Client) -> None:
    account()
    found = re.findall('<svg class="infusionsoft-[^>]*>', page(operator, LIST))
    assert len(found) == len(Condition) + 2 + 1  # the counts, two notices and the account
    assert [each for each in found if 'aria-hidden="true"' not in each] == []


def test_list_needs_the_same_number_of_queries_for_many_accounts(
    operator: Client, django_assert_num_queries: Any
) -> None:
    record_heartbeat()
    page(operator, LIST)
    for count in (3, 60):
        Credential.objects.all().delete()
        many(count)
        with django_assert_num_queries(13):
            assert len(accounts_in(page(operator, LIST))) == count


def test_list_reads_no_token(operator: Client, django_assert_max_num_queries: Any) -> None:
    many(3)
    with django_assert_max_num_queries(13) as queries:
        page(operator, LIST)
    read = " ".join(query["sql"] for query in queries.captured_queries)
    assert "last_error" in read
    assert "access_token" not in read
    assert "refresh_token" not in read


@pytest.mark.parametrize("keys", [[OTHER_KEY], []])
def test_pages_decrypt_nothing(
    operator: Client, application: Application, keys: list[str]
) -> None:
    credential = account(application=application)
    urls = [LIST, EVENTS, APPLICATIONS, f"{LIST}add/", action_url(credential, "disconnect")]
    urls += [f"{LIST}{credential.pk}/{name}/" for name in ("change", "delete", "history")]
    urls += [f"{APPLICATIONS}{application.pk}/{name}/" for name in ("change", "delete")]
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=keys):
        for url in urls:
            page(operator, url)


def test_list_runs_outside_atomic_requests(
    transactional_db: None, operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    account()
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    assert accounts_in(page(operator, LIST)) == ["ab123"]


@pytest.mark.parametrize("url", [APPLICATIONS, EVENTS, "{}change/", "{}disconnect/", "{}delete/"])
def test_page_works_inside_atomic_requests(
    transactional_db: None, operator: Client, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    credential = account()
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    page(operator, url.format(f"{LIST}{credential.pk}/"))


# Above the list


def test_counts_are_shown_for_each_condition(operator: Client) -> None:
    for number, (columns, _, _) in enumerate(CONDITIONS):
        for copy in range(number):
            account(f"x{number}{copy}", **columns)
    (counts,) = texts(page(operator, LIST), "ul", "infusionsoft-counts")
    assert (
        counts == "0 connected 1 refreshing 2 retrying 3 failing 4 needs attention 5 disconnected"
    )


def test_condition_without_accounts_is_muted(operator: Client) -> None:
    account()
    html = page(operator, LIST)
    assert '<li class="infusionsoft-good"><a href="?condition=connected">' in html
    assert '<li class="infusionsoft-bad infusionsoft-none">' in html


@pytest.mark.parametrize("condition", Condition)
def test_count_links_to_the_accounts_that_it_counts(
    operator: Client, condition: Condition
) -> None:
    for columns, word, _ in CONDITIONS:
        account(word.replace(" ", "_"), **columns)
    query = f"?condition={condition.value}"
    html = page(operator, LIST)
    icon = icons.OF_CONDITIONS[condition].svg
    assert f'<a href="{query}">{icon} <strong>1</strong> {condition.label}</a>' in html
    assert accounts_in(page(operator, LIST + query)) == [condition.value]


def test_counts_include_all_accounts_when_the_list_is_filtered(operator: Client) -> None:
    account("ab123")
    account("cd456", **LOST)
    html = page(operator, LIST + "?condition=retrying")
    assert accounts_in(html) == []
    assert "1 connected" in plain(html)
    assert "1 needs attention" in plain(html)


def test_empty_list_says_how_to_connect_an_account(operator: Client) -> None:
    words = "No account is connected yet. Press “Connect a Keap account” to begin."
    html = page(operator, LIST)
    assert words in plain(html)
    assert notices(operator) == []
    assert "infusionsoft-counts" not in html


def test_empty_list_only_says_that_it_is_empty_without_the_connect_permission() -> None:
    html = page(client_for(user_who_may("view_credential")), LIST)
    assert "No account is connected yet." in plain(html)
    assert "to begin" not in html


def test_notice_says_that_no_worker_run_was_ever_recorded(operator: Client) -> None:
    account()
    words = (
        "The worker is not running. No worker run has ever been recorded. Start Celery's "
        "worker and beat, or the cron job."
    )
    assert notices(operator) == [("good", "No refresh is overdue."), ("bad", words)]


def test_notice_says_that_the_worker_is_running(operator: Client) -> None:
    account()
    record_heartbeat(minutes_ago=5.2)
    assert (
        "good",
        "The worker is running. The last worker run was recorded 5 min ago.",
    ) in notices(operator)


def test_notice_says_that_the_worker_is_not_running(operator: Client) -> None:
    account()
    record_heartbeat(minutes_ago=45.2)
    words = (
        "The worker is not running. The last worker run was recorded 45 min ago. Start "
        "Celery's worker and beat, or the cron job."
    )
    assert ("bad", words) in notices(operator)


@pytest.mark.parametrize("columns", [LOST, DISCONNECTED])
def test_worker_has_no_notice_when_no_account_is_connected(
    operator: Client, columns: dict[str, Any]
) -> None:
    account(**{**columns, "refresh_at": None})
    assert notices(operator) == []


def test_notice_says_that_a_refresh_is_due(operator: Client) -> None:
    record_heartbeat()
    account(refresh_at=timedelta(minutes=-5.2))
    assert ("busy", "1 refresh has been due for 5 min.") in notices(operator)


def test_notice_says_that_refreshes_are_overdue(operator: Client) -> None:
    record_heartbeat()
    account("ab123", refresh_at=timedelta(minutes=-20.2))
    account("cd456", refresh_at=timedelta(minutes=-5))
    assert ("bad", "2 refreshes are due, the oldest for 20 min.") in notices(operator)


@pytest.mark.parametrize(
    ("block_reason", "words", "tone"),
    [
        (BlockReason.REJECTED, "Keap rejects the client", "bad"),
        (BlockReason.UNANSWERED, "Keap accepts requests but does not reply", "waiting"),
        (BlockReason.UNAVAILABLE, "Keap cannot be reached or returns errors", "waiting"),
    ],
)
def test_notice_says_why_an_application_is_blocked_and_links_to_it(
    operator: Client, application: Application, block_reason: BlockReason, words: str, tone: str
) -> None:
    stop(application, block_reason)
    ((shown_tone, notice),) = notices(operator)
    assert shown_tone == tone
    assert notice.startswith(f"ours: {words} (since ")
    assert notice.endswith(" The next attempt will be made in 4 min.")
    html = page(operator, LIST)
    assert f'<a href="{APPLICATIONS}{application.pk}/change/">ours: {words}' in html


def test_notice_has_no_link_when_the_client_in_the_settings_is_blocked(operator: Client) -> None:
    stop(None)
    html = page(operator, LIST)
    (notice,) = texts(html, "p", "infusionsoft-notice")
    assert notice.startswith("client in the settings: Keap rejects the client (since ")
    assert f'href="{APPLICATIONS}None' not in html
    assert 'href=""' not in html


def test_notice_says_that_the_next_run_will_try_again_when_a_probe_is_due(
    operator: Client,
) -> None:
    state = stop(None)
    state.probe_at -= timedelta(hours=1)
    state.save()
    (notice,) = texts(page(operator, LIST), "p", "infusionsoft-notice")
    assert notice.endswith(" The next run will try again.")


# Filters and the search


def has_box(html: str, title: str) -> bool:
    return f"By {title}" in html


@pytest.mark.parametrize("condition", Condition)
def test_filter_lists_the_accounts_in_a_condition(operator: Client, condition: Condition) -> None:
    for columns, word, _ in CONDITIONS:
        account(word.replace(" ", "_"), **columns)
    html = page(operator, f"{LIST}?condition={condition.value}")
    assert accounts_in(html) == [condition.value]


def test_condition_filter_offers_every_condition(operator: Client) -> None:
    account()
    html = page(operator, LIST)
    assert has_box(html, "status")
    for condition in Condition:
        assert (f"?condition={condition.value}", str(condition.label)) in links(html)


def test_filter_lists_the_accounts_of_an_application(
    operator: Client, application: Application
) -> None:
    other = Application.objects.create(name="other", client_id="other", client_secret="x")
    account("ab123", application=application)
    account("cd456", application=other)
    account("ef789")
    for value, name in ((application.pk, "ab123"), (other.pk, "cd456"), ("settings", "ef789")):
        assert accounts_in(page(operator, f"{LIST}?application={value}")) == [name]
    html = page(operator, LIST)
    assert has_box(html, "application")
    assert (f"?application={application.pk}", "ours") in links(html)
    assert ("?application=settings", "client in the settings") in links(html)


def test_application_filter_omits_the_settings_when_they_define_no_client(
    operator: Client, application: Application
) -> None:
    Application.objects.create(name="other", client_id="other", client_secret="x")
    account()
    with override_settings(INFUSIONSOFT_CLIENT_ID=""):
        html = page(operator, LIST)
        assert accounts_in(page(operator, f"{LIST}?application=settings")) == ["ab123"]
    assert has_box(html, "application")
    assert "?application=settings" not in html


@pytest.mark.parametrize("client_id", ["", "sandbox-client"])
def test_application_filter_is_hidden_when_there_is_one_choice(
    operator: Client, client_id: str
) -> None:
    account()
    if not client_id:
        Application.objects.create(name="only", client_id="only", client_secret="x")
    with override_settings(INFUSIONSOFT_CLIENT_ID=client_id):
        assert not has_box(page(operator, LIST), "application")
        assert accounts_in(page(operator, f"{LIST}?application=settings")) == ["ab123"]


@pytest.mark.parametrize("value", ["", "x", "-1", "4711", "%00", "1%20OR%201=1", "9" * 30])
@pytest.mark.parametrize("name", ["condition", "application"])
def test_filter_is_ignored_when_its_value_is_invalid(
    operator: Client, application: Application, name: str, value: str
) -> None:
    account()
    assert accounts_in(page(operator, f"{LIST}?{name}={value}")) == ["ab123"]


@pytest.mark.parametrize("query", ["ab123", "acme", "ana%40", "bea"])
def test_search_finds_accounts(operator: Client, query: str) -> None:
    bea = User.objects.create_user("beatrix")
    account(account_name="Acme Bakery", keap_user="ana@example.test", authorized_by=bea)
    account("cd456", account_name="Blue Cycles", keap_user="cleo@example.test")
    assert accounts_in(page(operator, f"{LIST}?q={query}")) == ["ab123"]


def test_search_omits_accounts_that_do_not_match(operator: Client) -> None:
    account()
    assert accounts_in(page(operator, f"{LIST}?q=zz")) == []


# Permissions


def test_pages_have_no_buttons_with_only_the_view_permission() -> None:
    client = client_for(user_who_may("view_credential"))
    credential = account()
    for url in (LIST, change_url(credential)):
        html = page(client, url)
        for words in ("Connect a Keap", "Reconnect", "Refresh", "Test conn", "Disconnect"):
            assert words not in html
        for action in ("delete_selected", "refresh_selected", "disconnect_selected"):
            assert action not in html
        assert EVENTS not in html


def test_pages_are_forbidden_without_the_view_permission() -> None:
    verbs = ("connect_credential", "refresh_credential", "disconnect_credential")
    client = client_for(user_who_may(*verbs))
    assert client.get(LIST).status_code == 403
    assert client.get(change_url(account())).status_code == 403


# Delete


def test_deleting_a_credential_deletes_its_history(
    operator: Client, credential: Credential
) -> None:
    url = f"{LIST}{credential.pk}/delete/"
    assert "Are you sure" in page(operator, url)
    operator.post(url, {"post": "yes"})
    assert not Credential.objects.exists()
    assert not CredentialEvent.objects.exists()


def test_deleting_requires_no_permission_for_the_history(credential: Credential) -> None:
    client = client_for(user_who_may("view_credential", "delete_credential"))
    run_action(client, "delete_selected", credential, post="yes")
    assert not Credential.objects.exists()


# The history


@pytest.mark.parametrize("url", ["add/", "{}/delete/"])
def test_history_is_read_only(operator: Client, credential: Credential, url: str) -> None:
    assert operator.get(EVENTS + url.format(credential.events.get().pk)).status_code == 403


def test_event_can_be_viewed_but_not_changed(operator: Client, credential: Credential) -> None:
    url = f"{EVENTS}{credential.events.get().pk}/change/"
    assert "imported" in page(operator, url)
    assert operator.post(url, {"kind": "refreshed"}).status_code == 403


def test_event_list_needs_the_same_number_of_queries_for_many_events(
    operator: Client, django_assert_num_queries: Any
) -> None:
    for count in (3, 60):
        Credential.objects.all().delete()
        many(count)
        with django_assert_num_queries(4):
            page(operator, EVENTS)


def test_history_can_be_searched_by_the_fingerprint_of_a_refresh_token(
    operator: Client, credential: Credential, connect: Connect
) -> None:
    connect("cd456").refresh()
    presented = fingerprint(credential.refresh_token)
    credential.refresh()
    html = page(operator, f"{EVENTS}?q={presented}")
    assert presented in html
    assert process_name() in html
    assert "2 credential events" in html  # the import and the refresh


# Secrets, and escaping of untrusted text


def test_no_secret_is_in_any_page(
    operator: Client, sandbox: Sandbox, credential: Credential, application: Application
) -> None:
    form = {"name": "ours", "client_id": "sandbox-client"}
    changed = f"{APPLICATIONS}{application.pk}/change/"
    operator.post(changed, {**form, "new_secret": "first-secret"})
    operator.post(changed, {**form, "name": "", "new_secret": "second-secret"})
    responses = [operator.post(action_url(credential, verb)) for verb in ("refresh", "test")]
    sandbox.plan(faults.error_503())
    responses.append(operator.post(action_url(credential, "refresh")))
    responses.append(run_action(operator, "disconnect_selected", credential))
    stop(application)
    credential.refresh_from_db()
    secrets = [
        credential.access_token,
        credential.refresh_token,
        "sandbox-secret",
        "first-secret",
        *(str(credential.__dict__[name].value) for name in ("access_token", "refresh_token")),
    ]
    urls = [LIST, f"{LIST}add/", EVENTS, APPLICATIONS, "/admin/", "/admin/django_infusionsoft/"]
    urls.append(action_url(credential, "disconnect"))
    for url, pk in ((LIST, credential.pk), (APPLICATIONS, application.pk)):
        urls += [f"{url}{pk}/{name}/" for name in ("change", "delete", "history")]
    urls += [f"{EVENTS}{event.pk}/change/" for event in credential.events.all()]
    shown = [page(operator, url) for url in urls]
    shown += [f"{each.content.decode()} {messages_of(each)}" for each in responses]
    shown += [f"{entry} {entry.change_message}" for entry in LogEntry.objects.all()]
    assert LogEntry.objects.exists()
    assert credential.events.count() == 4
    assert [secret for secret in secrets if secret in " ".join(shown)] == []


@pytest.mark.parametrize("name", ["access_token", "refresh_token", "client_secret"])
def test_secrets_cannot_be_looked_up_through_the_query_string(operator: Client, name: str) -> None:
    account()
    for url in (LIST, APPLICATIONS):
        for lookup in ("", "__startswith", "__contains"):
            assert operator.get(f"{url}?{name}{lookup}=a").status_code in (302, 400)


def test_untrusted_text_is_escaped(operator: Client, application: Application) -> None:
    user = User.objects.create_user(MARKUP)
    Application.objects.update(name=MARKUP)
    stop(Application.objects.get())
    names = {"account_name": MARKUP, "keap_user": MARKUP, "last_error": MARKUP}
    credential = account(**names, failures=1, application=application, authorized_by=user)
    credential.events.create(kind="refresh_failed", generation=1, detail=MARKUP, user=user)
    lost = account("cd456", **{**LOST, "reason": ""}, last_error=MARKUP)
    urls = [LIST, f"{LIST}add/", change_url(credential), action_url(credential, "disconnect")]
    for url in (*urls, change_url(lost), APPLICATIONS, EVENTS):
        html = page(operator, url)
        assert escape(MARKUP) in html
        assert MARKUP not in html


# Another admin site


@pytest.mark.urls(__name__)
def test_second_admin_site_links_only_to_itself(
    operator: Client, sandbox: Sandbox, credential: Credential, application: Application
) -> None:
    stop(application)
    url = reverse("backoffice:django_infusionsoft_credential_changelist")
    html = page(operator, url)
    assert f'href="{url}add/" class="addlink"' in html
    assert "/backoffice/django_infusionsoft/application/" in html
    assert 'href="/admin/' not in html
    html = page(operator, f"{url}{credential.pk}/change/")
    for verb in ("refresh", "test"):
        assert f'action="{url}{credential.pk}/{verb}/"' in html
    assert f'href="{url}{credential.pk}/disconnect/"' in html
    assert 'href="/admin/' not in html
    for verb in ("refresh", "test", "disconnect"):
        response = operator.post(f"{url}{credential.pk}/{verb}/")
        assert response.headers["Location"] == f"{url}{credential.pk}/change/"


@pytest.mark.urls(__name__)
def test_connecting_returns_to_the_second_admin_site(operator: Client) -> None:
    url = reverse("backoffice:django_infusionsoft_credential_changelist")
    next_url = parse_qs(urlsplit(operator.get(url + "add/").headers["Location"]).query)["next"]
    assert next_url == [url]


@pytest.mark.urls(__name__)
def test_second_admin_site_links_its_applications_to_its_own_list(
    operator: Client, application: Application
) -> None:
    account(application=application)
    html = page(operator, reverse("backoffice:django_infusionsoft_application_changelist"))
    url = reverse("backoffice:django_infusionsoft_credential_changelist")
    assert f'<a href="{url}?application={application.pk}">in use by 1 credential</a>' in html


@pytest.mark.urls(__name__)
def test_notice_has_no_link_when_the_site_lacks_applications(
    operator: Client, application: Application
) -> None:
    stop(application)
    html = page(operator, reverse("credential_site:django_infusionsoft_credential_changelist"))
    (notice,) = texts(html, "p", "infusionsoft-notice")
    assert notice.startswith("ours: Keap rejects the client")
    assert f"application/{application.pk}" not in html
