"""The admin's page of one account: how it is, what to do next, and what has happened to it."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, override_settings

from django_infusionsoft.admin import signs, words
from django_infusionsoft.admin.credentials import LINES_OF_A_PAGE
from django_infusionsoft.choices import EventKind, Outcome, Reason, Trouble
from django_infusionsoft.models import Application, Credential, CredentialEvent
from django_infusionsoft.sandbox import Sandbox, faults
from tests.visits import (
    DISCONNECTED,
    EVENTS,
    LEASED,
    LIST,
    LOST,
    account,
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

NO_CALL = "no call works before the next refresh."
RECONNECT = "Press “Reconnect”, log in to Keap and choose this account."
ASK = "Ask somebody who may connect accounts to connect it again."


@pytest.fixture
def viewer() -> Client:
    """The browser of somebody who may look."""
    return visitor(user_who_may("view_credential"))


def headline(client: Client, credential: Credential) -> list[str]:
    """Return the condition, how it is, what to do, and the cause in technical words."""
    markup = page(client, page_of(credential))
    (section,) = re.findall(
        r'<section class="infusionsoft-headline .*?</section>', markup, re.DOTALL
    )
    return [plain(each) for each in re.findall("<p.*?</p>", section, re.DOTALL)]


def timeline(client: Client, credential: Credential, query: str = "") -> list[str]:
    return texts(page(client, page_of(credential) + query), "p", "infusionsoft-what")


def footnotes(client: Client, credential: Credential) -> list[str]:
    """Return when, how long, and who, for each line."""
    return texts(page(client, page_of(credential)), "p", "infusionsoft-when")


def facts(client: Client, credential: Credential) -> dict[str, str]:
    """Return what the page tells of the account, by its label."""
    found = re.findall(
        r'<label[^>]*>([^<]*):</label>\s*<div class="readonly">(.*?)</div>',
        page(client, page_of(credential)),
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
            "This account is connected. It is refreshed in 18 h.",
            "Nothing to do: this site keeps it connected.",
        ),
        (
            {"refresh_at": timedelta(minutes=-1)},
            "connected",
            "This account is connected, and is about to be refreshed.",
            "Nothing to do: this site keeps it connected.",
        ),
        (
            LEASED,
            "refreshing",
            "This account is connected, and is being refreshed right now.",
            "Nothing to do: look again in a moment.",
        ),
        (
            {
                "failures": 1,
                "refresh_at": timedelta(minutes=5.2),
                "expires_at": timedelta(hours=3.2),
            },
            "retrying",
            "The last refresh failed. The access token still works, and ends in 3 h.",
            "Nothing to do: the next attempt comes in 5 min.",
        ),
        (
            {
                "failures": 3,
                "refresh_at": timedelta(seconds=-1),
                "expires_at": timedelta(minutes=-10.2),
            },
            "retrying",
            "The last 3 refreshes failed. The access token has ended 10 min ago: " + NO_CALL,
            "Nothing to do: the next run tries again.",
        ),
        (
            DISCONNECTED,
            "disconnected",
            "This account is disconnected: its tokens are forgotten, and no call works.",
            "Press “Reconnect” to use it again.",
        ),
    ],
)
def test_headline_tells_how_it_is_and_what_to_do(
    operator: Client, columns: dict[str, Any], word: str, text: str, step: str
) -> None:
    see_run()
    assert headline(operator, account(**columns)) == [word, text, step]


@pytest.mark.parametrize(
    ("reason", "step"),
    [
        (Reason.REVOKED, RECONNECT),
        (Reason.EXPIRED, RECONNECT),
        (Reason.ROTATION_LOST, RECONNECT),
        (
            Reason.USED_ELSEWHERE,
            "Find what else uses this account's tokens first, such as a copy of this database. "
            + RECONNECT,
        ),
        (Reason.UNANSWERED, RECONNECT + " Or press “Refresh now” for one more attempt."),
    ],
)
def test_headline_of_a_lost_account_tells_why_and_what_to_do(
    operator: Client, reason: Reason, step: str
) -> None:
    credential = account(**{**LOST, "reason": reason}, last_error="Keap said no.")
    text = f"This account has to be connected again: {reason.label}."
    assert headline(operator, credential) == ["needs attention", text, step, "Keap said no."]


def test_headline_offers_no_attempt_to_who_may_not_refresh() -> None:
    client = visitor(user_who_may("view_credential", "connect_credential"))
    assert headline(client, account(**{**LOST, "reason": "unanswered"}))[2] == RECONNECT


def test_headline_offers_an_attempt_to_who_may_refresh_and_not_connect() -> None:
    client = visitor(user_who_may("view_credential", "refresh_credential"))
    step = headline(client, account(**{**LOST, "reason": "unanswered"}))[2]
    assert step == f"{ASK} Or press “Refresh now” for one more attempt."


def test_headline_of_a_lost_account_without_a_reason_tells_the_error(operator: Client) -> None:
    credential = account(**{**LOST, "reason": ""}, last_error="Keap said no.")
    assert headline(operator, credential)[1] == (
        "This account has to be connected again: Keap said no."
    )


@pytest.mark.parametrize(
    ("columns", "step"),
    [
        (LOST, ASK),
        (DISCONNECTED, ASK),
        (
            {**LOST, "reason": "used_elsewhere"},
            "Find what else uses this account's tokens first, such as a copy of this database. "
            + ASK,
        ),
    ],
)
def test_headline_sends_who_may_not_connect_to_somebody_else(
    viewer: Client, columns: dict[str, Any], step: str
) -> None:
    assert headline(viewer, account(**columns))[2] == step


@pytest.mark.parametrize(
    ("trouble", "text", "step"),
    [
        (
            Trouble.REJECTED,
            "Keap refuses the client of this account's application.",
            "Set the client id and the client secret right; then it goes on by itself.",
        ),
        (
            Trouble.UNANSWERED,
            "Keap takes requests and does not answer.",
            "Nothing to do: whether Keap is back is tried by itself.",
        ),
        (
            Trouble.UNAVAILABLE,
            "Keap cannot be reached, or answers with errors.",
            "Nothing to do: whether Keap is back is tried by itself.",
        ),
    ],
)
@pytest.mark.parametrize("failures", [0, 2])
def test_headline_tells_the_trouble_of_its_application(
    operator: Client, second: Application, failures: int, trouble: Trouble, text: str, step: str
) -> None:
    see_run()
    stop(second, trouble)
    credential = account(application=second, failures=failures)
    left = "The access token still works, and ends in 22 h."
    assert headline(operator, credential) == ["retrying", f"{text} {left}", step]
    tone = 'class="infusionsoft-headline infusionsoft-waiting"'
    assert tone in page(operator, page_of(credential))


def test_headline_has_words_for_every_trouble() -> None:
    troubles = set(Trouble) - {Trouble.NONE}
    assert set(words.TROUBLES) == set(words.ADVICE_OF_TROUBLES) == troubles


@pytest.mark.parametrize("own", [True, False])
def test_headline_leaves_out_the_trouble_of_another_application(
    operator: Client, second: Application, own: bool
) -> None:
    see_run()
    stop(None if own else second)
    credential = account(application=second if own else None)
    assert headline(operator, credential)[0] == "connected"


@pytest.mark.parametrize(("columns", "word"), [(LOST, "needs attention"), (LEASED, "refreshing")])
def test_headline_tells_the_account_before_the_trouble_of_its_application(
    operator: Client, columns: dict[str, Any], word: str
) -> None:
    stop(None)
    assert headline(operator, account(**columns))[0] == word


@pytest.mark.parametrize(
    ("minutes_ago", "seen"),
    [
        (None, "No run of a worker has ever been seen."),
        (45.2, "The last run was seen 45 min ago."),
    ],
)
def test_headline_tells_that_the_worker_is_late(
    operator: Client, minutes_ago: float | None, seen: str
) -> None:
    if minutes_ago is not None:
        see_run(minutes_ago=minutes_ago)
    assert headline(operator, account()) == [
        "connected",
        f"This account is connected, and nothing keeps it so. {seen}",
        "Start the worker and beat, or cron.",
    ]


def test_headline_tells_the_cause_of_a_failure_in_technical_words(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.error_503())
    operator.post(verb_of(credential, "refresh"))
    condition, text, _, cause = headline(operator, credential)
    assert (condition, "The last refresh failed." in text) == ("retrying", True)
    assert "answered HTTP 503" in cause


def test_headline_tells_a_client_that_keap_really_refuses(
    operator: Client, credential: Credential
) -> None:
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        operator.post(verb_of(credential, "refresh"))
    assert headline(operator, credential)[1].startswith("Keap refuses the client of this account")


# The facts


def test_page_tells_the_account_and_who_authorized_it(operator: Client) -> None:
    ann = User.objects.create_user("ann")
    credential = account(
        account_name="Acme Bakery",
        authorized_by=ann,
        keap_user="ana@example.test",
        keap_user_is_admin=True,
    )
    told = facts(operator, credential)
    assert told["Account"] == "ab123 Acme Bakery"
    assert told["Application"] == "client in the settings"
    assert told["Access token ends"].endswith("(in 22 h)")
    assert told["Last refresh"].endswith("(2 h ago)")
    assert told["Next refresh"].endswith("(in 16 h)")
    assert told["Authorized"].endswith("(3 d ago)")
    assert told["Authorized by"] == "ann"
    assert told["Keap user"] == "ana@example.test"
    assert "<h1>Acme Bakery</h1>" in page(operator, page_of(credential))


def test_page_tells_the_moment_itself(operator: Client) -> None:
    credential = account()
    year = str(credential.expires_at.year)
    assert year in facts(operator, credential)["Access token ends"]


def test_page_of_a_nameless_account_has_a_heading(operator: Client) -> None:
    credential = account(None)
    assert "<h1>Keap account</h1>" in page(operator, page_of(credential))
    assert facts(operator, credential)["Account"] == f"#{credential.pk}"


@pytest.mark.parametrize(
    ("is_admin", "words"),
    [
        (True, "administrator"),
        (False, "not an administrator: Keap may refuse some calls"),
        (None, "-"),
    ],
)
def test_page_tells_the_rights_at_keap(
    operator: Client, is_admin: bool | None, words: str
) -> None:
    credential = account(keap_user_is_admin=is_admin)
    assert facts(operator, credential)["Rights at Keap"] == words


def test_page_of_a_disconnected_account_tells_no_end_of_its_access_token(
    operator: Client, credential: Credential
) -> None:
    credential.disconnect()
    told = facts(operator, credential)
    assert (told["Access token ends"], told["Next refresh"]) == ("-", "-")


def test_page_names_the_application(operator: Client, second: Application) -> None:
    assert facts(operator, account(application=second))["Application"] == "Second"


def test_page_can_change_nothing(operator: Client) -> None:
    credential = account()
    assert 'name="_save"' not in page(operator, page_of(credential))
    assert operator.post(page_of(credential), {"account": "zz999"}).status_code == 403
    assert Credential.objects.get().account == "ab123"


def test_unknown_credential_is_told(operator: Client) -> None:
    response = operator.get(LIST + "4711/change/")
    assert response.status_code == 302
    assert "4711" in messages_of(response)[0]


# The timeline


def test_timeline_tells_the_newest_first(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.error_503())
    operator.post(verb_of(credential, "refresh"))
    operator.post(verb_of(credential, "refresh"))
    operator.post(verb_of(credential, "disconnect"))
    assert timeline(operator, credential) == [
        "Disconnected",
        "Refreshed",
        f"Not refreshed, and tried again by itself: {words.OUTCOME_WORDS['unavailable']}",
        "Imported from another client",
    ]
    assert "answered HTTP 503" in page(operator, page_of(credential))


def test_timeline_without_events_says_so(operator: Client) -> None:
    assert "Nothing has happened yet." in plain(page(operator, page_of(account())))


def test_timeline_is_that_of_one_credential(operator: Client) -> None:
    mine, other = account("ab123"), account("cd456")
    other.events.create(kind="refreshed", generation=1)
    assert timeline(operator, mine) == []


def with_events(count: int) -> Credential:
    credential = account()
    CredentialEvent.objects.bulk_create(
        CredentialEvent(credential=credential, kind="tested", outcome="ok", generation=number)
        for number in range(count)
    )
    for event in credential.events.all():
        CredentialEvent.objects.filter(pk=event.pk).update(detail=f"number {event.generation}.")
    return credential


def details(client: Client, credential: Credential, query: str) -> list[str]:
    return texts(page(client, page_of(credential) + query), "p", "infusionsoft-detail")


@pytest.mark.parametrize(
    ("number", "first", "last", "ways"),
    [
        (1, 44, 25, [("?timeline=2#timeline", "Older")]),
        (2, 24, 5, [("?timeline=1#timeline", "Newer"), ("?timeline=3#timeline", "Older")]),
        (3, 4, 0, [("?timeline=2#timeline", "Newer")]),
    ],
)
def test_long_timeline_has_pages(
    operator: Client, number: int, first: int, last: int, ways: list[tuple[str, str]]
) -> None:
    credential = with_events(45)
    query = f"?timeline={number}"
    told = details(operator, credential, query)
    assert told == [f"number {each}." for each in range(first, last - 1, -1)]
    (pages,) = re.findall(
        '<nav class="infusionsoft-pages.*?</nav>',
        page(operator, page_of(credential) + query),
        re.DOTALL,
    )
    assert links(pages) == ways
    assert f"Page {number} of 3" in plain(pages)


def test_timeline_begins_with_its_first_page(operator: Client) -> None:
    credential = with_events(LINES_OF_A_PAGE + 1)
    assert details(operator, credential, "") == details(operator, credential, "?timeline=1")


def test_timeline_of_one_page_has_no_ways_to_others(operator: Client) -> None:
    assert "infusionsoft-pages" not in page(operator, page_of(with_events(LINES_OF_A_PAGE)))


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        *((value, LINES_OF_A_PAGE) for value in ("x", "", "1.5", "%00")),
        *((value, 1) for value in ("999", "0", "-1", "9" * 50)),
    ],
)
def test_garbage_for_a_page_of_the_timeline_leads_to_a_page_of_it(
    operator: Client, value: str, lines: int
) -> None:
    credential = with_events(LINES_OF_A_PAGE + 1)
    assert len(timeline(operator, credential, f"?timeline={value}")) == lines


def test_long_timeline_needs_as_many_queries_as_a_short_one(
    operator: Client, django_assert_num_queries: Any
) -> None:
    see_run()
    many(1)
    (credential,) = Credential.objects.all()
    user = User.objects.get(username="somebody")
    page(operator, page_of(credential))
    with django_assert_num_queries(12):
        assert len(timeline(operator, credential)) == 1
    for _ in range(2 * LINES_OF_A_PAGE):
        credential.events.create(kind="refreshed", generation=1, user=user)
    with django_assert_num_queries(12):
        assert len(timeline(operator, credential)) == LINES_OF_A_PAGE


def test_page_reads_no_token(operator: Client, django_assert_max_num_queries: Any) -> None:
    credential = account()
    with django_assert_max_num_queries(20) as queries:
        page(operator, page_of(credential))
    read = " ".join(query["sql"] for query in queries.captured_queries)
    assert "last_error" in read
    assert "access_token" not in read
    assert "refresh_token" not in read


@pytest.mark.parametrize("kind", EventKind)
def test_every_event_has_its_words_and_its_sign(operator: Client, kind: EventKind) -> None:
    credential = account()
    credential.events.create(kind=kind, outcome=Outcome.OK, generation=1)
    sign = signs.OF_EVENTS[kind]
    html = page(operator, page_of(credential))
    assert texts(html, "p", "infusionsoft-what") == [str(words.EVENT_WORDS[kind])]
    assert f'<li class="infusionsoft-{sign.tone}">\n{sign.svg}' in html


def test_no_words_and_signs_are_left_over_from_older_events() -> None:
    assert set(words.EVENT_WORDS) == set(signs.OF_EVENTS) == set(EventKind)


def test_event_of_a_kind_that_is_not_known_is_told_by_its_name(operator: Client) -> None:
    credential = account()
    credential.events.create(kind="of_tomorrow", generation=1)
    assert timeline(operator, credential) == ["of_tomorrow"]


def test_every_outcome_that_is_tried_again_has_words() -> None:
    assert set(words.OUTCOME_WORDS) == set(Outcome) - {Outcome.OK, Outcome.REJECTED}


@pytest.mark.parametrize("outcome", words.OUTCOME_WORDS)
def test_failed_attempt_tells_why_in_plain_words(operator: Client, outcome: Outcome) -> None:
    credential = account()
    credential.events.create(kind="refresh_failed", outcome=outcome, generation=1)
    why = words.OUTCOME_WORDS[outcome]
    assert timeline(operator, credential) == [f"Not refreshed, and tried again by itself: {why}"]


@pytest.mark.parametrize("reason", Reason)
def test_loss_tells_its_reason(operator: Client, reason: Reason) -> None:
    credential = account(**LOST)
    event = {"kind": "reauthorization_required", "outcome": "rejected", "reason": reason}
    credential.events.create(**event, generation=1)
    assert timeline(operator, credential) == [
        f"Lost; a person has to connect it again: {reason.label}"
    ]


@pytest.mark.parametrize("outcome", [each for each in Outcome if each != Outcome.OK])
def test_test_in_vain_is_told_as_such(operator: Client, outcome: Outcome) -> None:
    credential = account()
    credential.events.create(kind="tested", outcome=outcome, generation=1, detail="HTTP 503")
    html = page(operator, page_of(credential))
    assert texts(html, "p", "infusionsoft-what") == ["Connection tested: it does not work"]
    assert f'<li class="infusionsoft-waiting">\n{signs.WAITING.svg}' in html
    assert texts(html, "p", "infusionsoft-detail") == ["HTTP 503"]


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [(0, "0 ms"), (999, "999 ms"), (1000, "1.0 s"), (1249, "1.2 s"), (61_000, "61.0 s")],
)
def test_line_tells_how_long_keap_took(operator: Client, milliseconds: int, words: str) -> None:
    credential = account()
    credential.events.create(kind="refreshed", generation=1, duration_ms=milliseconds)
    (told,) = footnotes(operator, credential)
    assert told.split(" · ")[2:] == [words]


def test_line_tells_when_and_who(operator: Client) -> None:
    credential, ann = account(), User.objects.create_user("ann")
    event = credential.events.create(kind="refreshed", generation=1, user=ann)
    CredentialEvent.objects.update(created_at=event.created_at - timedelta(minutes=5))
    (told,) = footnotes(operator, credential)
    assert told.split(" · ")[1:] == ["5 min ago", "by ann"]
    assert f"{event.created_at - timedelta(minutes=5):%Y-%m-%dT%H:%M:%S}" in page(
        operator, page_of(credential)
    )


def test_line_of_what_the_site_did_by_itself_names_nobody(operator: Client) -> None:
    credential = account()
    credential.events.create(kind="refreshed", generation=1)
    (told,) = footnotes(operator, credential)
    assert " by " not in told


def test_timeline_leads_to_the_whole_history(operator: Client) -> None:
    mine, other = account("ab123"), account("cd456")
    for each in (mine, other):
        each.events.create(kind="refreshed", generation=1)
    url = f"{EVENTS}?credential__id__exact={mine.pk}"
    assert (url, "With processes and fingerprints") in links(page(operator, page_of(mine)))
    html = page(operator, url)
    assert "ab123" in html
    assert "cd456" not in html


@pytest.mark.parametrize("also", [True, False])
def test_whole_history_is_for_who_may_see_events(also: bool) -> None:
    codenames = ["view_credential", *(["view_credentialevent"] if also else [])]
    client = visitor(user_who_may(*codenames))
    assert ("With processes and fingerprints" in page(client, page_of(account()))) is also
