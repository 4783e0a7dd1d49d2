"""The admin's lists: how all accounts are, who may see them, and that no secret is in any page."""

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

from django_infusionsoft.admin import ApplicationAdmin, CredentialAdmin, signs
from django_infusionsoft.choices import Condition, Trouble
from django_infusionsoft.history import fingerprint
from django_infusionsoft.models import Application, Credential, CredentialEvent
from django_infusionsoft.rows import process_name
from django_infusionsoft.sandbox import Sandbox, faults
from tests.visits import (
    APPLICATIONS,
    DISCONNECTED,
    EVENTS,
    LEASED,
    LIST,
    LOST,
    OTHER_KEY,
    account,
    accounts_in,
    act,
    links,
    many,
    messages_of,
    page,
    page_of,
    plain,
    see_run,
    stop,
    texts,
    user_who_may,
    verb_of,
    visitor,
)

pytestmark = pytest.mark.django_db

Connect = Callable[..., Credential]
CONDITIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "connected", "good"),
    (LEASED, "refreshing", "busy"),
    ({"failures": 2}, "retrying", "waiting"),
    (LOST, "needs attention", "bad"),
    (DISCONNECTED, "disconnected", "off"),
]
MARKUP = "<script>alert('1')</script>"

# A second admin site, with accounts and applications and without their history; and a third one,
# with accounts alone
backoffice = admin.AdminSite(name="backoffice")
backoffice.register(Credential, CredentialAdmin)
backoffice.register(Application, ApplicationAdmin)
desk = admin.AdminSite(name="desk")
desk.register(Credential, CredentialAdmin)
urlpatterns = [
    path("backoffice/", backoffice.urls),
    path("desk/", desk.urls),
    path("admin/", admin.site.urls),
    path("infusionsoft/", include("django_infusionsoft.urls")),
]


@pytest.fixture
def application() -> Application:
    return Application.objects.create(
        name="ours", client_id="sandbox-client", client_secret="sandbox-secret"
    )


def notices(client: Client, url: str = LIST) -> list[tuple[str, str]]:
    """Return the sentences above the list, each with its tone."""
    markup = page(client, url)
    return [
        (tone, text)
        for tone in ("good", "busy", "waiting", "bad", "off")
        for text in texts(markup, "p", f"infusionsoft-notice infusionsoft-{tone}")
    ]


# The list


def test_list_tells_account_status_times_and_application(
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


def test_account_without_a_name_is_told_by_its_number(operator: Client) -> None:
    nameless = account(None)
    assert accounts_in(page(operator, LIST)) == [f"#{nameless.pk}"]


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
def test_times_are_told_as_seen_from_now(operator: Client, seconds: float, words: str) -> None:
    with time_machine.travel(timezone.now(), tick=False):
        credential = account(expires_at=timedelta(seconds=seconds))
        html = page(operator, LIST)
    assert f">{words}</time>" in html
    assert f'<time datetime="{credential.expires_at.isoformat()}" title="' in html


def test_time_that_is_not_set_is_told_as_none(operator: Client) -> None:
    account(refresh_at=None)
    assert texts(page(operator, LIST), "td", "field-next_refresh") == ["-"]


def test_disconnected_account_has_no_end_of_an_access_token(operator: Client) -> None:
    account(**DISCONNECTED)
    assert texts(page(operator, LIST), "td", "field-expires") == ["-"]


@pytest.mark.parametrize(("columns", "word", "tone"), CONDITIONS)
def test_condition_is_told_by_a_word_beside_its_sign(
    operator: Client, columns: dict[str, Any], word: str, tone: str
) -> None:
    credential = account(**columns)
    sign = signs.OF_CONDITIONS[credential.condition]
    assert sign.tone == tone
    assert f'infusionsoft-status infusionsoft-{tone}">{sign.svg} {word}</span>' in page(
        operator, LIST
    )
    assert f'<p class="infusionsoft-status">{sign.svg} {word}</p>' in page(
        operator, page_of(credential)
    )


def test_conditions_differ_in_the_shape_of_their_signs() -> None:
    assert len({signs.OF_CONDITIONS[each].shape for each in Condition}) == len(Condition)


def test_signs_are_drawn_in_the_page_and_left_out_by_screen_readers(operator: Client) -> None:
    account()
    drawn = re.findall('<svg class="infusionsoft-[^>]*>', page(operator, LIST))
    assert len(drawn) == len(Condition) + 2 + 1  # the counts, two notices, and the account
    assert [each for each in drawn if 'aria-hidden="true"' not in each] == []


def test_list_needs_as_many_queries_for_many_as_for_few(
    operator: Client, django_assert_num_queries: Any
) -> None:
    see_run()
    page(operator, LIST)
    for count in (3, 60):
        Credential.objects.all().delete()
        many(count)
        with django_assert_num_queries(11):
            assert len(accounts_in(page(operator, LIST))) == count


def test_list_reads_no_token(operator: Client, django_assert_max_num_queries: Any) -> None:
    many(3)
    with django_assert_max_num_queries(12) as queries:
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
    urls = [LIST, EVENTS, APPLICATIONS, f"{LIST}add/", verb_of(credential, "disconnect")]
    urls += [f"{LIST}{credential.pk}/{name}/" for name in ("change", "delete", "history")]
    urls += [f"{APPLICATIONS}{application.pk}/{name}/" for name in ("change", "delete")]
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=keys):
        for url in urls:
            page(operator, url)


def test_list_is_made_outside_atomic_requests(
    transactional_db: None, operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    account()
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    assert accounts_in(page(operator, LIST)) == ["ab123"]


@pytest.mark.parametrize("url", [APPLICATIONS, EVENTS, "{}change/", "{}disconnect/", "{}delete/"])
def test_pages_are_made_inside_atomic_requests_too(
    transactional_db: None, operator: Client, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    credential = account()
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    page(operator, url.format(f"{LIST}{credential.pk}/"))


# Above the list


def test_counts_are_told_for_each_condition(operator: Client) -> None:
    for number, (columns, _, _) in enumerate(CONDITIONS):
        for copy in range(number):
            account(f"x{number}{copy}", **columns)
    (counts,) = texts(page(operator, LIST), "ul", "infusionsoft-counts")
    assert counts == "0 connected 1 refreshing 2 retrying 3 needs attention 4 disconnected"


def test_condition_in_which_there_is_none_is_quiet(operator: Client) -> None:
    account()
    html = page(operator, LIST)
    assert '<li class="infusionsoft-good"><a href="?condition=connected">' in html
    assert '<li class="infusionsoft-bad infusionsoft-none">' in html


@pytest.mark.parametrize("condition", Condition)
def test_count_leads_to_the_accounts_that_it_counts(
    operator: Client, condition: Condition
) -> None:
    for columns, word, _ in CONDITIONS:
        account(word.replace(" ", "_"), **columns)
    query = f"?condition={condition.value}"
    html = page(operator, LIST)
    sign = signs.OF_CONDITIONS[condition].svg
    assert f'<a href="{query}">{sign} <strong>1</strong> {condition.label}</a>' in html
    assert accounts_in(page(operator, LIST + query)) == [condition.value]


def test_counts_are_of_all_accounts_whatever_the_list_shows(operator: Client) -> None:
    account("ab123")
    account("cd456", **LOST)
    html = page(operator, LIST + "?condition=retrying")
    assert accounts_in(html) == []
    assert "1 connected" in plain(html)
    assert "1 needs attention" in plain(html)


def test_empty_list_says_how_to_begin(operator: Client) -> None:
    words = "No account is connected yet. Press “Connect a Keap account” to begin."
    html = page(operator, LIST)
    assert words in plain(html)
    assert notices(operator) == []
    assert "infusionsoft-counts" not in html


def test_empty_list_tells_who_may_not_connect_only_that_it_is_empty() -> None:
    html = page(visitor(user_who_may("view_credential")), LIST)
    assert "No account is connected yet." in plain(html)
    assert "to begin" not in html


def test_worker_that_was_never_seen_is_told(operator: Client) -> None:
    account()
    words = (
        "The worker does not run. No run of a worker has ever been seen. Start the worker and "
        "beat, or cron."
    )
    assert notices(operator) == [("good", "No refresh is overdue."), ("bad", words)]


def test_worker_that_runs_is_told(operator: Client) -> None:
    account()
    see_run(minutes_ago=5.2)
    assert ("good", "The worker runs. The last run was seen 5 min ago.") in notices(operator)


def test_worker_that_is_late_is_told(operator: Client) -> None:
    account()
    see_run(minutes_ago=45.2)
    words = (
        "The worker does not run. The last run was seen 45 min ago. Start the worker and beat, or "
        "cron."
    )
    assert ("bad", words) in notices(operator)


@pytest.mark.parametrize("columns", [LOST, DISCONNECTED])
def test_worker_is_not_told_where_it_has_nothing_to_do(
    operator: Client, columns: dict[str, Any]
) -> None:
    account(**{**columns, "refresh_at": None})
    assert notices(operator) == []


def test_refresh_that_is_due_is_told(operator: Client) -> None:
    see_run()
    account(refresh_at=timedelta(minutes=-5.2))
    assert ("busy", "1 refresh is due, for 5 min.") in notices(operator)


def test_refreshes_that_are_overdue_are_told(operator: Client) -> None:
    see_run()
    account("ab123", refresh_at=timedelta(minutes=-20.2))
    account("cd456", refresh_at=timedelta(minutes=-5))
    assert ("bad", "2 refreshes are due, the oldest for 20 min.") in notices(operator)


@pytest.mark.parametrize(
    ("trouble", "words", "tone"),
    [
        (Trouble.REJECTED, "Keap refuses the client", "bad"),
        (Trouble.UNANSWERED, "Keap takes requests and does not answer", "waiting"),
        (Trouble.UNAVAILABLE, "Keap cannot be reached, or answers with errors", "waiting"),
    ],
)
def test_trouble_of_an_application_is_told_with_the_way_to_it(
    operator: Client, application: Application, trouble: Trouble, words: str, tone: str
) -> None:
    stop(application, trouble)
    ((told_tone, told),) = notices(operator)
    assert told_tone == tone
    assert told.startswith(f"ours: {words} (since ")
    assert told.endswith(" Keap is asked again in 4 min.")
    html = page(operator, LIST)
    assert f'<a href="{APPLICATIONS}{application.pk}/change/">ours: {words}' in html


def test_trouble_of_the_client_in_the_settings_leads_nowhere(operator: Client) -> None:
    stop(None)
    html = page(operator, LIST)
    (told,) = texts(html, "p", "infusionsoft-notice")
    assert told.startswith("client in the settings: Keap refuses the client (since ")
    assert f'href="{APPLICATIONS}None' not in html
    assert 'href=""' not in html


def test_probe_that_is_due_is_told_to_be_the_next_runs(operator: Client) -> None:
    state = stop(None)
    state.probe_at -= timedelta(hours=1)
    state.save()
    (told,) = texts(page(operator, LIST), "p", "infusionsoft-notice")
    assert told.endswith(" Keap is asked again by the next run.")


# Filters and the search


def has_box(html: str, title: str) -> bool:
    return f"By {title}" in html


@pytest.mark.parametrize("condition", Condition)
def test_filter_shows_the_accounts_in_a_condition(operator: Client, condition: Condition) -> None:
    for columns, word, _ in CONDITIONS:
        account(word.replace(" ", "_"), **columns)
    html = page(operator, f"{LIST}?condition={condition.value}")
    assert accounts_in(html) == [condition.value]


def test_filter_of_conditions_has_their_words(operator: Client) -> None:
    account()
    html = page(operator, LIST)
    assert has_box(html, "status")
    for condition in Condition:
        assert (f"?condition={condition.value}", str(condition.label)) in links(html)


def test_filter_shows_the_accounts_of_an_application(
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


def test_filter_of_applications_leaves_out_the_settings_without_a_client(
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
def test_filter_of_applications_is_not_shown_with_one_choice(
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
def test_garbage_in_a_filter_filters_nothing(
    operator: Client, application: Application, name: str, value: str
) -> None:
    account()
    assert accounts_in(page(operator, f"{LIST}?{name}={value}")) == ["ab123"]


@pytest.mark.parametrize("query", ["ab123", "acme", "ana%40", "bea"])
def test_list_finds_accounts(operator: Client, query: str) -> None:
    bea = User.objects.create_user("beatrix")
    account(account_name="Acme Bakery", keap_user="ana@example.test", authorized_by=bea)
    account("cd456", account_name="Blue Cycles", keap_user="cleo@example.test")
    assert accounts_in(page(operator, f"{LIST}?q={query}")) == ["ab123"]


def test_list_leaves_out_what_is_not_searched_for(operator: Client) -> None:
    account()
    assert accounts_in(page(operator, f"{LIST}?q=zz")) == []


# Permissions


def test_who_may_only_view_sees_no_button() -> None:
    client = visitor(user_who_may("view_credential"))
    credential = account()
    for url in (LIST, page_of(credential)):
        html = page(client, url)
        for words in ("Connect a Keap", "Reconnect", "Refresh", "Test conn", "Disconnect"):
            assert words not in html
        for action in ("delete_selected", "refresh_selected", "disconnect_selected"):
            assert action not in html
        assert EVENTS not in html


def test_who_may_not_view_sees_nothing() -> None:
    verbs = ("connect_credential", "refresh_credential", "disconnect_credential")
    client = visitor(user_who_may(*verbs))
    assert client.get(LIST).status_code == 403
    assert client.get(page_of(account())).status_code == 403


# Delete


def test_deleting_a_credential_takes_its_history_along(
    operator: Client, credential: Credential
) -> None:
    url = f"{LIST}{credential.pk}/delete/"
    assert "Are you sure" in page(operator, url)
    operator.post(url, {"post": "yes"})
    assert not Credential.objects.exists()
    assert not CredentialEvent.objects.exists()


def test_who_may_only_delete_needs_no_permission_for_the_history(credential: Credential) -> None:
    client = visitor(user_who_may("view_credential", "delete_credential"))
    act(client, "delete_selected", credential, post="yes")
    assert not Credential.objects.exists()


# The history


@pytest.mark.parametrize("url", ["add/", "{}/delete/"])
def test_history_cannot_be_written(operator: Client, credential: Credential, url: str) -> None:
    assert operator.get(EVENTS + url.format(credential.events.get().pk)).status_code == 403


def test_event_can_be_read_and_not_changed(operator: Client, credential: Credential) -> None:
    url = f"{EVENTS}{credential.events.get().pk}/change/"
    assert "imported" in page(operator, url)
    assert operator.post(url, {"kind": "refreshed"}).status_code == 403


def test_list_of_events_needs_as_many_queries_for_many_as_for_few(
    operator: Client, django_assert_num_queries: Any
) -> None:
    for count in (3, 60):
        Credential.objects.all().delete()
        many(count)
        with django_assert_num_queries(4):
            page(operator, EVENTS)


def test_history_is_searched_by_the_fingerprint_of_a_refresh_token(
    operator: Client, credential: Credential, connect: Connect
) -> None:
    connect("cd456").refresh()
    presented = fingerprint(credential.refresh_token)
    credential.refresh()
    html = page(operator, f"{EVENTS}?q={presented}")
    assert presented in html
    assert process_name() in html
    assert "2 credential events" in html  # its import and its refresh


# Secrets, and what strangers wrote


def test_no_secret_is_in_any_page(
    operator: Client, sandbox: Sandbox, credential: Credential, application: Application
) -> None:
    form = {"name": "ours", "client_id": "sandbox-client"}
    changed = f"{APPLICATIONS}{application.pk}/change/"
    operator.post(changed, {**form, "new_secret": "secret-of-ours"})
    operator.post(changed, {**form, "name": "", "new_secret": "second-one"})
    answers = [operator.post(verb_of(credential, verb)) for verb in ("refresh", "test")]
    sandbox.plan(faults.error_503())
    answers.append(operator.post(verb_of(credential, "refresh")))
    answers.append(act(operator, "disconnect_selected", credential))
    stop(application)
    credential.refresh_from_db()
    secrets = [
        credential.access_token,
        credential.refresh_token,
        "sandbox-secret",
        "secret-of-ours",
        *(str(credential.__dict__[name].value) for name in ("access_token", "refresh_token")),
    ]
    urls = [LIST, f"{LIST}add/", EVENTS, APPLICATIONS, "/admin/", "/admin/django_infusionsoft/"]
    urls.append(verb_of(credential, "disconnect"))
    for url, pk in ((LIST, credential.pk), (APPLICATIONS, application.pk)):
        urls += [f"{url}{pk}/{name}/" for name in ("change", "delete", "history")]
    urls += [f"{EVENTS}{event.pk}/change/" for event in credential.events.all()]
    told = [page(operator, url) for url in urls]
    told += [f"{each.content.decode()} {messages_of(each)}" for each in answers]
    told += [f"{entry} {entry.change_message}" for entry in LogEntry.objects.all()]
    assert LogEntry.objects.exists()
    assert credential.events.count() == 4
    assert [secret for secret in secrets if secret in " ".join(told)] == []


@pytest.mark.parametrize("name", ["access_token", "refresh_token", "client_secret"])
def test_secrets_cannot_be_searched_for_by_the_address(operator: Client, name: str) -> None:
    account()
    for url in (LIST, APPLICATIONS):
        for lookup in ("", "__startswith", "__contains"):
            assert operator.get(f"{url}?{name}{lookup}=a").status_code in (302, 400)


def test_what_strangers_wrote_is_text(operator: Client, application: Application) -> None:
    user = User.objects.create_user(MARKUP)
    Application.objects.update(name=MARKUP)
    stop(Application.objects.get())
    names = {"account_name": MARKUP, "keap_user": MARKUP, "last_error": MARKUP}
    credential = account(**names, failures=1, application=application, authorized_by=user)
    credential.events.create(kind="refresh_failed", generation=1, detail=MARKUP, user=user)
    lost = account("cd456", **{**LOST, "reason": ""}, last_error=MARKUP)
    urls = [LIST, f"{LIST}add/", page_of(credential), verb_of(credential, "disconnect")]
    for url in (*urls, page_of(lost), APPLICATIONS, EVENTS):
        html = page(operator, url)
        assert escape(MARKUP) in html
        assert MARKUP not in html


# Another admin site


@pytest.mark.urls(__name__)
def test_second_admin_site_stays_with_itself(
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
def test_second_admin_site_is_where_keap_leads_back_to(operator: Client) -> None:
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
def test_site_without_applications_tells_their_trouble_without_a_link(
    operator: Client, application: Application
) -> None:
    stop(application)
    html = page(operator, reverse("desk:django_infusionsoft_credential_changelist"))
    (told,) = texts(html, "p", "infusionsoft-notice")
    assert told.startswith("ours: Keap refuses the client")
    assert f"application/{application.pk}" not in html
