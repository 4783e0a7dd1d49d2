"""The admin's page of one account: its condition, what to do next, and its history."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, override_settings
from django.utils import timezone

from django_infusionsoft.admin import icons, labels
from django_infusionsoft.admin.credentials import LINES_PER_PAGE
from django_infusionsoft.choices import ACTION_REQUIRED, BlockReason, EventKind, Outcome, Reason
from django_infusionsoft.models import Application, Credential, CredentialEvent
from django_infusionsoft.sandbox import Sandbox, faults
from tests.web import (
    DISCONNECTED,
    EVENTS,
    LEASED,
    LIST,
    LOST,
    account,
    action_url,
    change_url,
    client_for,
    links,
    many,
    messages_of,
    page,
    plain,
    record_heartbeat,
    stop,
    texts,
    user_who_may,
)

pytestmark = pytest.mark.django_db

NO_CALL = "API calls fail until the next refresh."
FIND_THE_CAUSE = "Find the cause: the app retries automatically, but this has failed for too long."
RECONNECT = "Press “Reconnect”, log in to Keap and choose this account."
ATTEMPT = " Or press “Refresh now” for one more attempt."
ASK = "Ask a user with permission to connect accounts to reconnect it."


@pytest.fixture
def viewer() -> Client:
    """The browser of a user with only the view permission."""
    return client_for(user_who_may("view_credential"))


def headline(client: Client, credential: Credential) -> list[str]:
    """Return the condition, its explanation, what to do, and the technical error message."""
    markup = page(client, change_url(credential))
    (section,) = re.findall(
        r'<section class="infusionsoft-headline .*?</section>', markup, re.DOTALL
    )
    return [plain(each) for each in re.findall("<p.*?</p>", section, re.DOTALL)]


def timeline(client: Client, credential: Credential, query: str = "") -> list[str]:
    return texts(page(client, change_url(credential) + query), "p", "infusionsoft-what")


def footnotes(client: Client, credential: Credential) -> list[str]:
    """Return the time, the duration and the user of each line."""
    return texts(page(client, change_url(credential)), "p", "infusionsoft-when")


def facts(client: Client, credential: Credential) -> dict[str, str]:
    """Return the values that the page shows for the account, by their labels."""
    found = re.findall(
        r'<label[^>]*>([^<]*):</label>\s*<div class="readonly">(.*?)</div>',
        page(client, change_url(credential)),
        re.DOTALL,
    )
    return {name: plain(value) for name, value in found}


# The headline


@pytest.mark.parametrize(
    ("columns", "word", "text", "step"),
    [
        (
            {"refresh_at": timedelta(hours=18.2)},
            "connected",
            "This account is connected. It will be refreshed in 18 h.",
            "Nothing to do: this site keeps it connected.",
        ),
        (
            {"refresh_at": timedelta(minutes=-1)},
            "connected",
            "This account is connected and is about to be refreshed.",
            "Nothing to do: this site keeps it connected.",
        ),
        (
            LEASED,
            "refreshing",
            "This account is connected and is being refreshed right now.",
            "Nothing to do: check again in a moment.",
        ),
        (
            {
                "failures": 1,
                "refresh_at": timedelta(minutes=5.2),
                "expires_at": timedelta(hours=3.2),
            },
            "retrying",
            "The last refresh failed. The access token is still valid and expires in 3 h.",
            "Nothing to do: the next attempt will be made in 5 min.",
        ),
        (
            {
                "failures": 3,
                "refresh_at": timedelta(seconds=-1),
                "expires_at": timedelta(minutes=-10.2),
            },
            "failing",
            "The last 3 refreshes failed. The access token expired 10 min ago: " + NO_CALL,
            FIND_THE_CAUSE,
        ),
        (
            {"failures": 3, "refresh_at": timedelta(seconds=-1)},
            "retrying",
            "The last 3 refreshes failed. The access token is still valid and expires in 22 h.",
            "Nothing to do: the next run will retry.",
        ),
        (
            {"expires_at": timedelta(minutes=-10.2), "refresh_at": timedelta(hours=-5)},
            "failing",
            "No refresh has been tried. The access token expired 10 min ago: " + NO_CALL,
            FIND_THE_CAUSE,
        ),
        (
            {"failing_since": timedelta(hours=-5), "failed_outcome": "unreadable"},
            "needs attention",
            "This account cannot be refreshed until a site administrator acts.",
            "Do what the message says, or reconnect the account. The app retries automatically.",
        ),
        (
            DISCONNECTED,
            "disconnected",
            "This account is disconnected. Its tokens have been deleted, and API calls fail.",
            "Press “Reconnect” to use it again.",
        ),
    ],
)
def test_headline_shows_the_condition_and_what_to_do(
    operator: Client, columns: dict[str, Any], word: str, text: str, step: str
) -> None:
    record_heartbeat()
    assert headline(operator, account(**columns)) == [word, text, step]


@pytest.mark.parametrize(
    ("reason", "step"),
    [
        (Reason.REVOKED, RECONNECT + ATTEMPT),
        (Reason.EXPIRED, RECONNECT),
        (Reason.ROTATION_LOST, RECONNECT),
        (
            Reason.USED_ELSEWHERE,
            "First find out what else uses this account's tokens, such as a copy of this "
            "database. " + RECONNECT + ATTEMPT,
        ),
        (Reason.UNANSWERED, RECONNECT + ATTEMPT),
    ],
)
def test_headline_shows_the_reason_and_what_to_do_when_the_account_must_be_reconnected(
    operator: Client, reason: Reason, step: str
) -> None:
    credential = account(**{**LOST, "reason": reason}, last_error="Keap said no.")
    text = f"This account must be reconnected: {reason.label}."
    assert headline(operator, credential) == ["needs attention", text, step, "Keap said no."]


def test_headline_offers_no_attempt_without_the_refresh_permission() -> None:
    client = client_for(user_who_may("view_credential", "connect_credential"))
    assert headline(client, account(**{**LOST, "reason": "unanswered"}))[2] == RECONNECT


def test_headline_offers_an_attempt_with_only_the_refresh_permission() -> None:
    client = client_for(user_who_may("view_credential", "refresh_credential"))
    step = headline(client, account(**{**LOST, "reason": "unanswered"}))[2]
    assert step == ASK + ATTEMPT


def test_headline_shows_the_error_when_there_is_no_reason(operator: Client) -> None:
    credential = account(**{**LOST, "reason": ""}, last_error="Keap said no.")
    assert headline(operator, credential)[1] == ("This account must be reconnected: Keap said no.")


@pytest.mark.parametrize(
    ("columns", "step"),
    [
        (LOST, ASK),
        (DISCONNECTED, ASK),
        (
            {**LOST, "reason": "used_elsewhere"},
            "First find out what else uses this account's tokens, such as a copy of this "
            "database. " + ASK,
        ),
    ],
)
def test_headline_refers_to_another_user_without_the_connect_permission(
    viewer: Client, columns: dict[str, Any], step: str
) -> None:
    assert headline(viewer, account(**columns))[2] == step


@pytest.mark.parametrize(
    ("block_reason", "text", "step"),
    [
        (
            BlockReason.REJECTED,
            "Keap rejects the client of this account's application.",
            "Correct the client id and the client secret. Refreshes then resume automatically.",
        ),
        (
            BlockReason.UNANSWERED,
            "Keap accepts requests but does not reply.",
            "Nothing to do: the app checks automatically whether Keap is available again.",
        ),
        (
            BlockReason.UNAVAILABLE,
            "Keap cannot be reached or returns errors.",
            "Nothing to do: the app checks automatically whether Keap is available again.",
        ),
    ],
)
@pytest.mark.parametrize("failures", [0, 2])
def test_headline_shows_why_the_application_is_blocked(
    operator: Client,
    second: Application,
    failures: int,
    block_reason: BlockReason,
    text: str,
    step: str,
) -> None:
    record_heartbeat()
    stop(second, block_reason)
    credential = account(application=second, failures=failures)
    left = "The access token is still valid and expires in 22 h."
    assert headline(operator, credential) == ["retrying", f"{text} {left}", step]
    tone = 'class="infusionsoft-headline infusionsoft-waiting"'
    assert tone in page(operator, change_url(credential))


@pytest.mark.parametrize("block_reason", ACTION_REQUIRED)
def test_headline_of_a_failing_account_says_what_an_administrator_must_do(
    operator: Client, second: Application, block_reason: BlockReason
) -> None:
    record_heartbeat()
    stop(second, block_reason)
    long_ago = timezone.now() - timedelta(hours=1)
    credential = account(application=second, failures=9, failing_since=long_ago)
    status, _, step = headline(operator, credential)[:3]
    assert (status, step) == ("failing", str(labels.BLOCK_ADVICE[block_reason]))


def test_every_block_reason_has_a_label_and_advice() -> None:
    blocked_applications = set(BlockReason) - {BlockReason.NONE}
    assert set(labels.BLOCK_REASONS) == set(labels.BLOCK_ADVICE) == blocked_applications


@pytest.mark.parametrize("own", [True, False])
def test_headline_ignores_that_another_application_is_blocked(
    operator: Client, second: Application, own: bool
) -> None:
    record_heartbeat()
    stop(None if own else second)
    credential = account(application=second if own else None)
    assert headline(operator, credential)[0] == "connected"


@pytest.mark.parametrize(("columns", "word"), [(LOST, "needs attention"), (LEASED, "refreshing")])
def test_headline_shows_the_condition_of_the_account_before_that_of_its_application(
    operator: Client, columns: dict[str, Any], word: str
) -> None:
    stop(None)
    assert headline(operator, account(**columns))[0] == word


@pytest.mark.parametrize(
    ("minutes_ago", "last_run"),
    [
        (None, "No worker run has ever been recorded."),
        (45.2, "The last worker run was recorded 45 min ago."),
    ],
)
def test_headline_says_that_the_worker_is_not_running(
    operator: Client, minutes_ago: float | None, last_run: str
) -> None:
    if minutes_ago is not None:
        record_heartbeat(minutes_ago=minutes_ago)
    assert headline(operator, account()) == [
        "connected",
        f"Connected, but no worker is refreshing it. {last_run}",
        "Start Celery's worker and beat, or the cron job.",
    ]


def test_headline_shows_the_technical_error_message(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.error_503())
    operator.post(action_url(credential, "refresh"))
    condition, text, _, cause = headline(operator, credential)
    assert (condition, "The last refresh failed." in text) == ("retrying", True)
    assert "responded with HTTP 503" in cause


def test_headline_shows_that_keap_rejected_the_client(
    operator: Client, credential: Credential
) -> None:
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        operator.post(action_url(credential, "refresh"))
    assert headline(operator, credential)[1].startswith("Keap rejects the client of this account")


# The facts


def test_page_shows_the_account_and_the_user_who_authorized_it(operator: Client) -> None:
    ann = User.objects.create_user("ann")
    credential = account(
        account_name="Acme Bakery",
        authorized_by=ann,
        keap_user="ana@example.test",
        keap_user_is_admin=True,
    )
    shown = facts(operator, credential)
    assert shown["Account"] == "ab123 Acme Bakery"
    assert shown["Application"] == "client in the settings"
    assert shown["Access token expires"].endswith("(in 22 h)")
    assert shown["Last refresh"].endswith("(2 h ago)")
    assert shown["Next refresh"].endswith("(in 16 h)")
    assert shown["Authorized"].endswith("(3 d ago)")
    assert shown["Authorized by"] == "ann"
    assert shown["Keap user"] == "ana@example.test"
    assert "<h1>Acme Bakery</h1>" in page(operator, change_url(credential))


def test_page_shows_the_absolute_time(operator: Client) -> None:
    credential = account()
    year = str(credential.expires_at.year)
    assert year in facts(operator, credential)["Access token expires"]


def test_page_of_an_unidentified_account_has_a_heading(operator: Client) -> None:
    credential = account(None)
    assert "<h1>Keap account</h1>" in page(operator, change_url(credential))
    assert facts(operator, credential)["Account"] == f"#{credential.pk}"


@pytest.mark.parametrize(
    ("is_admin", "words"),
    [
        (True, "administrator"),
        (False, "not an administrator: Keap may reject some calls"),
        (None, "-"),
    ],
)
def test_page_shows_the_permissions_at_keap(
    operator: Client, is_admin: bool | None, words: str
) -> None:
    credential = account(keap_user_is_admin=is_admin)
    assert facts(operator, credential)["Permissions at Keap"] == words


def test_page_shows_no_expiry_when_the_account_is_disconnected(
    operator: Client, credential: Credential
) -> None:
    credential.disconnect()
    shown = facts(operator, credential)
    assert (shown["Access token expires"], shown["Next refresh"]) == ("-", "-")


def test_page_shows_the_application(operator: Client, second: Application) -> None:
    assert facts(operator, account(application=second))["Application"] == "Second"


def test_page_is_read_only(operator: Client) -> None:
    credential = account()
    assert 'name="_save"' not in page(operator, change_url(credential))
    assert operator.post(change_url(credential), {"account": "zz999"}).status_code == 403
    assert Credential.objects.get().account == "ab123"


def test_page_redirects_with_a_message_when_the_credential_is_unknown(operator: Client) -> None:
    response = operator.get(LIST + "4711/change/")
    assert response.status_code == 302
    assert "4711" in messages_of(response)[0]


# The timeline


def test_timeline_shows_the_newest_event_first(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.error_503())
    operator.post(action_url(credential, "refresh"))
    operator.post(action_url(credential, "refresh"))
    operator.post(action_url(credential, "disconnect"))
    assert timeline(operator, credential) == [
        "Disconnected",
        "Refreshed",
        f"Refresh failed (retried automatically): {labels.OUTCOME_LABELS['unavailable']}",
        "Imported from another client",
    ]
    assert "responded with HTTP 503" in page(operator, change_url(credential))


def test_timeline_says_that_there_are_no_events(operator: Client) -> None:
    assert "No events yet." in plain(page(operator, change_url(account())))


def test_timeline_shows_only_the_events_of_its_credential(operator: Client) -> None:
    credential, other = account("ab123"), account("cd456")
    other.events.create(kind="refreshed", generation=1)
    assert timeline(operator, credential) == []


def account_with_events(count: int) -> Credential:
    credential = account()
    CredentialEvent.objects.bulk_create(
        CredentialEvent(credential=credential, kind="tested", outcome="ok", generation=number)
        for number in range(count)
    )
    for event in credential.events.all():
        CredentialEvent.objects.filter(pk=event.pk).update(detail=f"number {event.generation}.")
    return credential


def details(client: Client, credential: Credential, query: str) -> list[str]:
    return texts(page(client, change_url(credential) + query), "p", "infusionsoft-detail")


@pytest.mark.parametrize(
    ("number", "first", "last", "page_links"),
    [
        (1, 44, 25, [("?timeline=2#timeline", "Older")]),
        (2, 24, 5, [("?timeline=1#timeline", "Newer"), ("?timeline=3#timeline", "Older")]),
        (3, 4, 0, [("?timeline=2#timeline", "Newer")]),
    ],
)
def test_long_timeline_is_paginated(
    operator: Client, number: int, first: int, last: int, page_links: list[tuple[str, str]]
) -> None:
    credential = account_with_events(45)
    query = f"?timeline={number}"
    assert details(operator, credential, query) == [
        f"number {each}." for each in range(first, last - 1, -1)
    ]
    (pages,) = re.findall(
        '<nav class="infusionsoft-pages.*?</nav>',
        page(operator, change_url(credential) + query),
        re.DOTALL,
    )
    assert links(pages) == page_links
    assert f"Page {number} of 3" in plain(pages)


def test_timeline_starts_at_its_first_page(operator: Client) -> None:
    credential = account_with_events(LINES_PER_PAGE + 1)
    assert details(operator, credential, "") == details(operator, credential, "?timeline=1")


def test_timeline_has_no_page_links_when_it_fits_on_one_page(operator: Client) -> None:
    assert "infusionsoft-pages" not in page(
        operator, change_url(account_with_events(LINES_PER_PAGE))
    )


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        *((value, LINES_PER_PAGE) for value in ("x", "", "1.5", "%00")),
        *((value, 1) for value in ("999", "0", "-1", "9" * 50)),
    ],
)
def test_timeline_shows_a_valid_page_when_the_page_number_is_invalid(
    operator: Client, value: str, lines: int
) -> None:
    credential = account_with_events(LINES_PER_PAGE + 1)
    assert len(timeline(operator, credential, f"?timeline={value}")) == lines


def test_timeline_needs_the_same_number_of_queries_for_many_events(
    operator: Client, django_assert_num_queries: Any
) -> None:
    record_heartbeat()
    many(1)
    (credential,) = Credential.objects.all()
    user = User.objects.get(username="somebody")
    page(operator, change_url(credential))
    with django_assert_num_queries(14):
        assert len(timeline(operator, credential)) == 1
    for _ in range(2 * LINES_PER_PAGE):
        credential.events.create(kind="refreshed", generation=1, user=user)
    with django_assert_num_queries(14):
        assert len(timeline(operator, credential)) == LINES_PER_PAGE


def test_page_reads_no_token(operator: Client, django_assert_max_num_queries: Any) -> None:
    credential = account()
    with django_assert_max_num_queries(20) as queries:
        page(operator, change_url(credential))
    read = " ".join(query["sql"] for query in queries.captured_queries)
    assert "last_error" in read
    assert "access_token" not in read
    assert "refresh_token" not in read


@pytest.mark.parametrize("kind", EventKind)
def test_every_event_kind_has_a_label_and_an_icon(operator: Client, kind: EventKind) -> None:
    credential = account()
    credential.events.create(kind=kind, outcome=Outcome.OK, generation=1)
    icon = icons.OF_EVENTS[kind]
    html = page(operator, change_url(credential))
    assert texts(html, "p", "infusionsoft-what") == [str(labels.EVENT_LABELS[kind])]
    assert f'<li class="infusionsoft-{icon.tone}">\n{icon.svg}' in html


def test_labels_and_icons_cover_exactly_the_event_kinds() -> None:
    assert set(labels.EVENT_LABELS) == set(icons.OF_EVENTS) == set(EventKind)


def test_event_of_an_unknown_kind_is_shown_by_its_name(operator: Client) -> None:
    credential = account()
    credential.events.create(kind="unknown_kind", generation=1)
    assert timeline(operator, credential) == ["unknown_kind"]


def test_every_outcome_that_is_retried_has_a_label() -> None:
    assert set(labels.OUTCOME_LABELS) == set(Outcome) - {Outcome.OK, Outcome.REJECTED}


def test_refresh_token_that_is_rejected_again_is_not_retried(operator: Client) -> None:
    credential = account(**LOST)
    credential.events.create(kind="refresh_failed", outcome=Outcome.REJECTED, generation=1)
    assert timeline(operator, credential) == ["Keap rejected the refresh token again"]


@pytest.mark.parametrize("outcome", labels.OUTCOME_LABELS)
def test_failed_attempt_shows_its_label(operator: Client, outcome: Outcome) -> None:
    credential = account()
    credential.events.create(kind="refresh_failed", outcome=outcome, generation=1)
    why = labels.OUTCOME_LABELS[outcome]
    assert timeline(operator, credential) == [f"Refresh failed (retried automatically): {why}"]


@pytest.mark.parametrize("reason", Reason)
def test_lost_connection_shows_its_reason(operator: Client, reason: Reason) -> None:
    credential = account(**LOST)
    event = {"kind": "reauthorization_required", "outcome": "rejected", "reason": reason}
    credential.events.create(**event, generation=1)
    assert timeline(operator, credential) == [
        f"Connection lost (must be reconnected): {reason.label}"
    ]


@pytest.mark.parametrize("outcome", [each for each in Outcome if each != Outcome.OK])
def test_failed_test_is_shown_with_its_detail(operator: Client, outcome: Outcome) -> None:
    credential = account()
    credential.events.create(kind="tested", outcome=outcome, generation=1, detail="HTTP 503")
    html = page(operator, change_url(credential))
    assert texts(html, "p", "infusionsoft-what") == ["Connection test failed"]
    assert f'<li class="infusionsoft-waiting">\n{icons.WAITING.svg}' in html
    assert texts(html, "p", "infusionsoft-detail") == ["HTTP 503"]


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [(0, "0 ms"), (999, "999 ms"), (1000, "1.0 s"), (1249, "1.2 s"), (61_000, "61.0 s")],
)
def test_line_shows_the_duration(operator: Client, milliseconds: int, words: str) -> None:
    credential = account()
    credential.events.create(kind="refreshed", generation=1, duration_ms=milliseconds)
    (line,) = footnotes(operator, credential)
    assert line.split(" · ")[2:] == [words]


def test_line_shows_the_time_and_the_user(operator: Client) -> None:
    credential, ann = account(), User.objects.create_user("ann")
    event = credential.events.create(kind="refreshed", generation=1, user=ann)
    CredentialEvent.objects.update(created_at=event.created_at - timedelta(minutes=5))
    (line,) = footnotes(operator, credential)
    assert line.split(" · ")[1:] == ["5 min ago", "by ann"]
    assert f"{event.created_at - timedelta(minutes=5):%Y-%m-%dT%H:%M:%S}" in page(
        operator, change_url(credential)
    )


def test_line_shows_no_user_when_the_refresh_was_automatic(operator: Client) -> None:
    credential = account()
    credential.events.create(kind="refreshed", generation=1)
    (line,) = footnotes(operator, credential)
    assert " by " not in line


def test_timeline_links_to_the_whole_history(operator: Client) -> None:
    credential, other = account("ab123"), account("cd456")
    for each in (credential, other):
        each.events.create(kind="refreshed", generation=1)
    url = f"{EVENTS}?credential__id__exact={credential.pk}"
    assert (url, "Show with processes and fingerprints") in links(
        page(operator, change_url(credential))
    )
    html = page(operator, url)
    assert "ab123" in html
    assert "cd456" not in html


@pytest.mark.parametrize("may_view_events", [True, False])
def test_link_to_the_whole_history_requires_the_permission_to_view_events(
    may_view_events: bool,
) -> None:
    codenames = ["view_credential", *(["view_credentialevent"] if may_view_events else [])]
    client = client_for(user_who_may(*codenames))
    assert (
        "Show with processes and fingerprints" in page(client, change_url(account()))
    ) is may_view_events
