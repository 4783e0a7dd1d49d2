"""What people can do in the admin: connect, refresh, test, disconnect; and who may."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client, override_settings
from django.urls import path

from django_infusionsoft.choices import Trouble
from django_infusionsoft.models import Application, Credential
from django_infusionsoft.sandbox import Fault, Sandbox, faults
from tests.support import keap_with, row
from tests.visits import (
    DISCONNECTED,
    LIST,
    LOST,
    MAY,
    OTHER_KEY,
    REVOKE,
    account,
    links,
    messages_of,
    page,
    page_of,
    parameter,
    plain,
    question,
    stop,
    travel,
    user_who_may,
    verb_of,
    visitor,
    who_did,
)

pytestmark = pytest.mark.django_db

Connect = Callable[..., Credential]
VERBS = ["refresh", "test", "disconnect"]
BACK = f"next={LIST.replace('/', '%2F')}"

# A site with an admin and without our URLs
urlpatterns = [path("admin/", admin.site.urls)]


@pytest.fixture
def user() -> User:
    return User.objects.create_superuser("operator")


@pytest.fixture
def operator(user: User) -> Client:
    """The browser of somebody who may do everything."""
    return visitor(user)


# Connect


def test_button_leads_to_keap_where_there_is_one_client(operator: Client) -> None:
    add = f"{LIST}add/"
    assert f'<a href="{add}" class="addlink">Connect a Keap account</a>' in page(operator, LIST)
    location = operator.get(add).headers["Location"]
    assert location == f"/infusionsoft/authorize/?{BACK}"
    assert "Continue to Keap" in page(operator, location)


def test_connecting_leads_back_to_the_list_and_tells_who_did_it(
    operator: Client, sandbox: Sandbox
) -> None:
    next_url = parameter(operator.get(f"{LIST}add/").headers["Location"], "next")
    response = travel(operator, sandbox, next=next_url)
    assert response.headers["Location"] == LIST
    html = page(operator, LIST)
    assert "Account ab123 is connected." in html
    assert who_did("connected") == ["operator"]
    assert "by operator" in page(operator, page_of(Credential.objects.get()))


@override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")
def test_button_leads_to_keap_with_the_only_application(
    operator: Client, second: Application
) -> None:
    assert operator.get(f"{LIST}add/").status_code == 302


@override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")
def test_site_without_a_client_is_told_by_the_authorize_view(operator: Client) -> None:
    location = operator.get(f"{LIST}add/").headers["Location"]
    response = operator.get(location)
    assert (response.status_code, "INFUSIONSOFT_CLIENT_ID" in response.content.decode()) == (
        503,
        True,
    )


def choices(client: Client) -> list[str]:
    """Return what the page offers, the trouble of each behind it."""
    (listed,) = re.findall(
        r'<ul class="infusionsoft-choices">.*?</ul>', page(client, f"{LIST}add/"), re.DOTALL
    )
    return [plain(each) for each in re.findall("<li>.*?</li>", listed, re.DOTALL)]


def test_person_chooses_where_there_are_several_clients(
    operator: Client, second: Application
) -> None:
    Application.objects.create(name="First", client_id="first", client_secret="x")
    assert choices(operator) == [
        "Client in the settings default",
        "First",
        "Second",
    ]
    html = page(operator, f"{LIST}add/")
    assert "This site has several clients at Keap." in plain(html)
    authorize = "/infusionsoft/authorize/?application="
    assert (f"{authorize}settings&{BACK}", "Client in the settings") in links(html)
    assert (f"{authorize}{second.pk}&{BACK}", "Second") in links(html)
    assert (LIST, "Back to the list") in links(html)


def test_default_application_is_offered_first(operator: Client, second: Application) -> None:
    second.is_default = True
    second.save()
    assert choices(operator) == [
        "Second default",
        "Client in the settings",
    ]


@override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")
def test_no_choice_is_called_the_default_where_there_is_none(
    operator: Client, second: Application
) -> None:
    Application.objects.create(name="First", client_id="first", client_secret="x")
    assert choices(operator) == ["First", "Second"]


def test_trouble_of_a_client_is_told_where_it_can_be_chosen(
    operator: Client, second: Application
) -> None:
    stop(second, Trouble.REJECTED)
    settings_client, other = choices(operator)
    assert "refuses" not in settings_client
    assert other.startswith("Second Keap refuses the client (since ")


@pytest.mark.parametrize("of_settings", [True, False])
def test_account_is_connected_with_the_client_that_was_chosen(
    operator: Client, second: Application, of_settings: bool
) -> None:
    second.is_default = of_settings
    second.save()
    with keap_with(["ab123"]) as sandbox:
        chosen = "settings" if of_settings else second.pk
        travel(operator, sandbox, application=chosen, next=LIST)
    credential = Credential.objects.get()
    assert credential.application == (None if of_settings else second)


def test_choice_needs_as_many_queries_for_many_as_for_few(
    operator: Client, second: Application, django_assert_num_queries: Any
) -> None:
    for count in (1, 30):
        Application.objects.bulk_create(
            Application(name="more", client_id=f"{count}.{number}", client_secret="x")
            for number in range(count)
        )
        stop(Application.objects.order_by("pk").last())
        with django_assert_num_queries(4):
            page(operator, f"{LIST}add/")


def test_reconnecting_names_the_credential_and_leads_back_to_its_page(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    here = page_of(credential)
    url = f"/infusionsoft/authorize/?credential={credential.pk}&next={here.replace('/', '%2F')}"
    assert (url, "Reconnect") in links(page(operator, here))
    response = travel(operator, sandbox, credential=credential.pk, next=here)
    assert response.headers["Location"] == here
    assert who_did("reconnected") == ["operator"]


# A site that does not include our URLs


@pytest.mark.urls(__name__)
def test_pages_of_a_site_without_our_urls_offer_no_way_to_keap(operator: Client) -> None:
    credential = account(**LOST)
    page(operator, LIST)
    html = page(operator, page_of(credential))
    assert "Reconnect</a>" not in html
    assert "infusionsoft/authorize" not in html


@pytest.mark.urls(__name__)
def test_adding_on_a_site_without_our_urls_is_refused(operator: Client) -> None:
    assert operator.get(f"{LIST}add/").status_code == 403


@pytest.mark.urls(__name__)
def test_list_of_a_site_without_our_urls_has_no_button_to_connect(operator: Client) -> None:
    account()
    assert "Connect a Keap account" not in page(operator, LIST)


@pytest.mark.urls(__name__)
def test_refused_refresh_without_our_urls_is_told_without_a_link(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke("ab123")
    (message,) = messages_of(operator.post(verb_of(credential, "refresh")))
    assert "must be connected again" in message
    assert "<a" not in message


# What every verb has in common


@pytest.mark.parametrize("verb", VERBS)
def test_verb_by_a_form_of_another_site_is_refused(
    user: User, sandbox: Sandbox, credential: Credential, verb: str
) -> None:
    client = visitor(user, enforce_csrf_checks=True)
    assert client.post(verb_of(credential, verb)).status_code == 403
    assert sandbox.token_requests == []
    assert credential.events.count() == 1
    assert row(credential).status == "connected"


@pytest.mark.parametrize("verb", VERBS)
def test_verb_by_the_form_of_its_own_page_is_taken(
    user: User, credential: Credential, verb: str
) -> None:
    client = visitor(user, enforce_csrf_checks=True)
    html = page(client, verb_of(credential, verb) if verb == "disconnect" else page_of(credential))
    mine = "infusionsoft-question" if verb == "disconnect" else f"/{verb}/"
    (form,) = re.findall(rf"<form[^>]*{mine}.*?</form>", html, re.DOTALL)
    (token,) = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
    response = client.post(verb_of(credential, verb), {"csrfmiddlewaretoken": token})
    assert response.status_code == 302


@pytest.mark.parametrize("verb", ["refresh", "test"])
@pytest.mark.parametrize("method", ["get", "head", "put", "delete"])
def test_verb_takes_post_only(
    operator: Client, sandbox: Sandbox, credential: Credential, verb: str, method: str
) -> None:
    assert getattr(operator, method)(verb_of(credential, verb)).status_code == 405
    assert sandbox.token_requests == []
    assert credential.events.count() == 1


@pytest.mark.parametrize("verb", VERBS)
def test_verb_for_a_deleted_credential_is_not_found(operator: Client, verb: str) -> None:
    assert operator.post(f"{LIST}4711/{verb}/").status_code == 404


@pytest.mark.parametrize("verb", VERBS)
def test_verb_needs_its_permission(sandbox: Sandbox, credential: Credential, verb: str) -> None:
    everything_else = {"view_credential", "connect_credential", "delete_credential", *MAY.values()}
    client = visitor(user_who_may(*everything_else - {MAY[verb]}))
    assert client.post(verb_of(credential, verb)).status_code == 403
    assert client.get(verb_of(credential, "disconnect")).status_code == (
        403 if verb == "disconnect" else 200
    )
    assert sandbox.token_requests == []
    assert credential.events.count() == 1


@pytest.mark.parametrize("verb", VERBS)
def test_verb_needs_the_permission_to_view_too(
    sandbox: Sandbox, credential: Credential, verb: str
) -> None:
    client = visitor(user_who_may(MAY[verb]))
    assert client.post(verb_of(credential, verb)).status_code == 403
    assert credential.events.count() == 1


@pytest.mark.parametrize("verb", VERBS)
def test_verb_is_done_by_who_may_view_and_do_it(credential: Credential, verb: str) -> None:
    client = visitor(user_who_may("view_credential", MAY[verb]))
    response = client.post(verb_of(credential, verb))
    assert response.headers["Location"] == page_of(credential)
    assert credential.events.count() == 2
    assert credential.events.all()[0].user == User.objects.get()


@pytest.mark.parametrize("verb", VERBS)
def test_verb_sends_who_is_not_logged_in_to_the_login(
    sandbox: Sandbox, credential: Credential, verb: str
) -> None:
    response = visitor().post(verb_of(credential, verb))
    assert response.headers["Location"].startswith("/admin/login/")
    assert credential.events.count() == 1


@pytest.mark.parametrize("verb", VERBS)
def test_verb_is_outside_atomic_requests(
    transactional_db: None,
    operator: Client,
    credential: Credential,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    (message,) = messages_of(operator.post(verb_of(credential, verb)))
    assert message.startswith("success: ")
    assert credential.events.count() == 2


@pytest.mark.parametrize(
    ("codename", "buttons", "actions"),
    [
        ("connect_credential", ["Connect a Keap account", "Reconnect"], []),
        ("refresh_credential", ["Refresh now", "Test connection"], ["refresh_selected"]),
        ("disconnect_credential", ["Disconnect"], ["disconnect_selected"]),
        ("delete_credential", [], ["delete_selected"]),
    ],
)
def test_buttons_are_those_of_what_a_person_may_do(
    codename: str, buttons: list[str], actions: list[str]
) -> None:
    client = visitor(user_who_may("view_credential", codename))
    credential = account()
    tools = ""
    for url in (LIST, page_of(credential)):
        tools += "".join(
            re.findall(r'<ul class="object-tools">.*?</ul>', page(client, url), re.DOTALL)
        )
    told = re.findall(r"<(?:a|button)\b[^>]*>([^<]*)</(?:a|button)>", tools)
    assert [each for each in told if each != "History"] == buttons
    offered = re.findall(r'<option value="(\w+)"', page(client, LIST))
    assert offered == actions


def test_who_may_not_connect_cannot(second: Application) -> None:
    everything_else = ("view_credential", "delete_credential", *MAY.values())
    assert visitor(user_who_may(*everything_else)).get(f"{LIST}add/").status_code == 403


# Refresh now


def test_refresh_leads_back_and_tells_who_did_it(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    assert f'action="{verb_of(credential, "refresh")}"' in page(operator, page_of(credential))
    response = operator.post(verb_of(credential, "refresh"))
    assert response.headers["Location"] == page_of(credential)
    assert messages_of(response) == ["success: Account ab123 has a new access token."]
    assert row(credential).generation == 2
    assert who_did("refreshed") == ["operator"]


def no_key_opens(sandbox: Sandbox) -> Any:
    return override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY])


def client_is_wrong(sandbox: Sandbox) -> Any:
    return override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong")


def client_is_missing(sandbox: Sandbox) -> Any:
    return override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")


def keap_refuses(sandbox: Sandbox) -> Any:
    sandbox.revoke("ab123")
    return override_settings()


def planned(fault: Fault) -> Callable[[Sandbox], Any]:
    def plan(sandbox: Sandbox) -> Any:
        sandbox.plan(fault)
        return override_settings()

    return plan


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (no_key_opens, "No key in INFUSIONSOFT_ENCRYPTION_KEYS opens"),
        (client_is_wrong, "check the client id and the client secret"),
        (client_is_missing, "Set INFUSIONSOFT_CLIENT_ID"),
        (keap_refuses, "must be connected again: Keap says that the grant has ended"),
        (planned(faults.error_503()), "answered HTTP 503"),
        (planned(faults.throttled(60)), "answered HTTP 429"),
        (planned(faults.html()), "no token reply"),
        (planned(faults.drop_after()), "the answer was lost"),
    ],
)
def test_refresh_that_fails_says_why(
    operator: Client,
    sandbox: Sandbox,
    credential: Credential,
    trouble: Callable[[Sandbox], Any],
    words: str,
) -> None:
    with trouble(sandbox):
        response = operator.post(verb_of(credential, "refresh"))
    (message,) = messages_of(response)
    assert message.startswith("error: Account ab123 was not refreshed.")
    assert words in message


def test_attempt_that_fails_tells_who_made_it(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.error_503())
    operator.post(verb_of(credential, "refresh"))
    sandbox.revoke("ab123")
    operator.post(verb_of(credential, "refresh"))
    assert who_did("refresh_failed") == ["operator"]
    assert who_did("reauthorization_required") == ["operator"]


@pytest.mark.parametrize("verb", ["refresh", "test"])
def test_refused_verb_offers_to_reconnect(
    operator: Client, sandbox: Sandbox, connect: Connect, verb: str
) -> None:
    credential = connect(seconds_left=-1)
    sandbox.revoke("ab123")
    operator.post(verb_of(credential, verb))
    html = page(operator, LIST)
    assert f'<a href="/infusionsoft/authorize/?credential={credential.pk}&amp;next=' in html
    assert ">Reconnect</a>" in html


@pytest.mark.parametrize("verb", ["refresh", "test"])
def test_refused_verb_offers_nothing_to_who_may_not_connect(
    sandbox: Sandbox, connect: Connect, verb: str
) -> None:
    client = visitor(user_who_may("view_credential", "refresh_credential"))
    credential = connect(seconds_left=-1)
    sandbox.revoke("ab123")
    (message,) = messages_of(client.post(verb_of(credential, verb)))
    assert "must be connected again" in message
    assert "<a" not in message


def test_credential_that_needs_a_person_has_no_refresh_button(operator: Client) -> None:
    html = page(operator, page_of(account(**LOST)))
    assert "Refresh now" not in html
    assert "Test connection" not in html
    assert ">Reconnect</a>" in html
    assert ">Disconnect</a>" in html


def test_credential_whose_attempts_had_no_answer_can_be_refreshed_once_more(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    lost = {**LOST, "reason": "unanswered"}
    Credential.objects.update(**lost, unanswered_attempts=2)
    assert ">Refresh now</button>" in page(operator, page_of(credential))
    operator.post(verb_of(credential, "refresh"))
    assert row(credential).status == "connected"
    assert len(sandbox.token_requests) == 1


# Test connection


def test_connection_that_works_is_told(operator: Client, credential: Credential) -> None:
    assert f'action="{verb_of(credential, "test")}"' in page(operator, page_of(credential))
    response = operator.post(verb_of(credential, "test"))
    assert response.headers["Location"] == page_of(credential)
    (message,) = messages_of(response)
    assert re.fullmatch(
        r"success: The connection works: Keap's API answered after \d+ ms that this is account "
        r"ab123, and ana@example\.test\.",
        message,
    )
    assert who_did("tested") == ["operator"]
    assert "Connection tested: it works" in page(operator, page_of(credential))


def test_connection_that_works_is_told_where_keap_names_nobody(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.html(), endpoint="api")
    (message,) = messages_of(operator.post(verb_of(credential, "test")))
    assert re.fullmatch(
        r"success: The connection works: Keap's API answered after \d+ ms for account ab123\.",
        message,
    )


def test_test_tells_the_account_that_keap_names(
    operator: Client, sandbox: Sandbox, credential: Credential
) -> None:
    answer = {"tenant_id": "cd456", "email": "ana@example.test"}
    sandbox.plan(faults.answer(200, answer), endpoint="api")
    (message,) = messages_of(operator.post(verb_of(credential, "test")))
    assert "that this is account cd456, and ana@example.test" in message
    assert row(credential).account == "ab123"


@pytest.mark.parametrize("status", [401, 403, 503])
def test_connection_that_does_not_work_is_told(
    operator: Client, sandbox: Sandbox, credential: Credential, status: int
) -> None:
    sandbox.plan(faults.answer(status, {}), endpoint="api", times=None)
    (message,) = messages_of(operator.post(verb_of(credential, "test")))
    assert message.startswith(f"error: Keap's API answered HTTP {status} after ")
    assert who_did("tested") == ["operator"]
    assert "Connection tested: it does not work" in page(operator, page_of(credential))


@pytest.mark.parametrize("fault", [faults.error_503(), faults.throttled(), faults.html()], ids=str)
def test_only_a_refused_access_token_is_a_reason_to_reconnect(
    operator: Client, sandbox: Sandbox, credential: Credential, fault: Fault
) -> None:
    sandbox.plan(fault, endpoint="api")
    operator.post(verb_of(credential, "test"))
    sandbox.plan(faults.answer(403, {}), endpoint="api")
    others, refused = messages_of(operator.post(verb_of(credential, "test")))
    assert "reconnect" not in others
    assert refused.endswith("Try again in a minute; if that lasts, reconnect.")


def test_api_that_cannot_be_reached_is_told(operator: Client, credential: Credential) -> None:
    with override_settings(INFUSIONSOFT_API_URL="http://127.0.0.1:1/"):
        (message,) = messages_of(operator.post(verb_of(credential, "test")))
    assert message == (
        "error: Account ab123 cannot be used now. Keap's API cannot be reached (ConnectionError)."
    )


def test_test_of_a_disconnected_account_says_so(operator: Client, credential: Credential) -> None:
    credential.disconnect()
    (message,) = messages_of(operator.post(verb_of(credential, "test")))
    assert message.startswith("error: Account ab123 cannot be used now. ab123 must be connected")


# Disconnect


def test_disconnect_asks_first(operator: Client, credential: Credential) -> None:
    url = verb_of(credential, "disconnect")
    Credential.objects.update(account_name="Acme Bakery")
    assert (url, "Disconnect") in links(page(operator, page_of(credential)))
    before = row(credential).__dict__
    html = page(operator, url)
    assert "<h1>Disconnect 1 Keap account?</h1>" in html
    assert "ab123: Acme Bakery" in plain(html)
    assert REVOKE in html
    assert (page_of(credential), "No, go back") in links(html)
    assert set(question(html)) == {"csrfmiddlewaretoken", "confirmed"}
    after = row(credential).__dict__
    assert {name: after[name] for name in ("status", "generation", "refresh_at")} == {
        name: before[name] for name in ("status", "generation", "refresh_at")
    }
    assert credential.events.count() == 1


def test_disconnect_forgets_the_tokens_and_tells_where_to_end_the_grant(
    operator: Client, credential: Credential
) -> None:
    url = verb_of(credential, "disconnect")
    response = operator.post(url, question(page(operator, url)))
    assert response.headers["Location"] == page_of(credential)
    (message,) = messages_of(response)
    assert message.startswith(
        "success: 1 account is disconnected: its tokens are forgotten here. Keap has no way"
    )
    assert REVOKE in message
    stored = row(credential)
    assert (stored.status, stored.access_token, stored.refresh_token) == ("disconnected", "", "")
    assert who_did("disconnected") == ["operator"]


@pytest.mark.parametrize("method", ["put", "delete", "patch"])
def test_disconnect_takes_get_and_post_only(
    operator: Client, credential: Credential, method: str
) -> None:
    url = verb_of(credential, "disconnect")
    assert getattr(operator, method)(url).status_code == 405
    assert operator.head(url).status_code == 200
    assert row(credential).status == "connected"


def test_disconnected_account_offers_to_reconnect_alone(operator: Client) -> None:
    html = page(operator, page_of(account(**DISCONNECTED)))
    for words in (">Refresh now<", ">Test connection<", ">Disconnect<"):
        assert words not in html
    assert ">Reconnect</a>" in html
