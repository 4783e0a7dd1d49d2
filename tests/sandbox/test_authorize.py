"""The sandbox's authorize page: login, account, consent, and the redirect to the callback."""

import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import requests

from django_infusionsoft.sandbox import Account, KeapUser, Sandbox

CALLBACK = "https://site.example/callback"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def browser_session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def authorize_url(sandbox: Sandbox, **changes: str | None) -> str:
    fields = {
        "client_id": "sandbox-client",
        "redirect_uri": CALLBACK,
        "response_type": "code",
        "scope": "full",
        "state": "s&t=å",
        **changes,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return f"{sandbox.authorize_url}?{urlencode(given)}"


def callback_fields(url: str) -> dict[str, str]:
    assert url.startswith(CALLBACK)
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def post(
    session: requests.Session, url: str, *, follow: bool = True, **form: str
) -> requests.Response:
    return session.post(url, data=form, allow_redirects=follow, timeout=10)


# The flow


def test_login_page_shows_the_available_logins(
    sandbox: Sandbox, browser_session: requests.Session
) -> None:
    page = browser_session.get(authorize_url(sandbox), timeout=10)
    assert page.status_code == 200
    assert "ana@example.test" in page.text
    assert "ben@example.test" in page.text


def test_accounts_are_offered_after_login_when_there_are_several(
    sandbox: Sandbox, browser_session: requests.Session
) -> None:
    page = post(
        browser_session, authorize_url(sandbox), email="ana@example.test", password="sandbox"
    )
    assert 'name="account" value="ab123"' in page.text
    assert 'name="account" value="cd456"' in page.text
    assert 'name="decision"' not in page.text


@pytest.mark.parametrize(
    ("email", "account", "name"),
    [("ben@example.test", "", "Dune Studio"), ("ana@example.test", "cd456", "Blue Cycles")],
    ids=["one account", "two accounts"],
)
def test_consent_is_requested_once_the_account_is_known(
    sandbox: Sandbox,
    browser_session: requests.Session,
    email: str,
    account: str,
    name: str,
) -> None:
    url = authorize_url(sandbox)
    page = post(browser_session, url, email=email, password="sandbox")
    if account:
        page = post(browser_session, url, account=account)
    assert name in page.text
    assert 'value="allow"' in page.text
    assert 'value="deny"' in page.text


def test_allow_redirects_to_the_callback_with_code_state_and_scope(
    sandbox: Sandbox, browser_session: requests.Session
) -> None:
    url = authorize_url(sandbox)
    post(browser_session, url, email="ana@example.test", password="sandbox")
    reply = post(browser_session, url, follow=False, account="cd456", decision="allow")
    assert reply.status_code == 302
    fields = callback_fields(reply.headers["Location"])
    assert fields.keys() == {"code", "state", "scope"}
    assert re.fullmatch("[A-Za-z0-9]{24}", fields["code"])
    assert fields["state"] == "s&t=å"
    assert fields["scope"] == "full|cd456.infusionsoft.com"


def test_deny_redirects_to_the_callback_with_access_denied(
    sandbox: Sandbox, browser_session: requests.Session
) -> None:
    url = authorize_url(sandbox)
    post(browser_session, url, email="ben@example.test", password="sandbox")
    reply = post(browser_session, url, follow=False, decision="deny")
    fields = callback_fields(reply.headers["Location"])
    assert fields.keys() == {"error", "error_description", "state"}
    assert fields["error"] == "access_denied"


def test_one_post_with_all_fields_completes_the_flow(sandbox: Sandbox) -> None:
    form = {
        "email": "ana@example.test",
        "password": "sandbox",
        "account": "ab123",
        "decision": "allow",
    }
    url = authorize_url(sandbox)
    reply = requests.post(url, data=form, allow_redirects=False, timeout=10)
    assert "code" in callback_fields(reply.headers["Location"])


def test_login_is_remembered_for_the_next_connection(
    sandbox: Sandbox, browser_session: requests.Session
) -> None:
    url = authorize_url(sandbox)
    post(browser_session, url, email="ana@example.test", password="sandbox")
    page = browser_session.get(url, timeout=10)
    assert 'name="password"' not in page.text


def test_login_is_forgotten_after_signing_out(
    sandbox: Sandbox, browser_session: requests.Session
) -> None:
    url = authorize_url(sandbox)
    post(browser_session, url, email="ana@example.test", password="sandbox")
    post(browser_session, url, sign_out="yes")
    assert 'name="password"' in browser_session.get(url, timeout=10).text


def test_login_cookie_is_named_by_the_port(
    sandbox: Sandbox, browser_session: requests.Session
) -> None:
    post(browser_session, authorize_url(sandbox), email="ana@example.test", password="sandbox")
    assert [cookie.name for cookie in browser_session.cookies] == [
        f"keap_sandbox_login_{sandbox.port}"
    ]


def test_login_is_rejected_when_the_password_is_wrong(
    sandbox: Sandbox, browser_session: requests.Session
) -> None:
    page = post(browser_session, authorize_url(sandbox), email="ana@example.test", password="x")
    assert 'role="alert"' in page.text
    assert not browser_session.cookies


def test_account_of_another_user_cannot_be_connected(
    sandbox: Sandbox, browser_session: requests.Session
) -> None:
    url = authorize_url(sandbox)
    post(browser_session, url, email="ana@example.test", password="sandbox")
    reply = post(browser_session, url, follow=False, account="ef789", decision="allow")
    assert reply.status_code == 200
    assert "Which account" in reply.text


def test_consent_is_rejected_without_a_login(sandbox: Sandbox) -> None:
    reply = requests.post(
        authorize_url(sandbox),
        data={"account": "ab123", "decision": "allow"},
        allow_redirects=False,
        timeout=10,
    )
    assert reply.status_code == 200
    assert 'name="password"' in reply.text


def test_form_of_another_site_is_rejected(
    sandbox: Sandbox, browser_session: requests.Session
) -> None:
    url = authorize_url(sandbox)
    post(browser_session, url, email="ben@example.test", password="sandbox")
    reply = browser_session.post(
        url, data={"decision": "allow"}, headers={"Origin": "https://evil.example"}, timeout=10
    )
    assert reply.status_code == 403


def test_every_page_says_that_it_is_not_keap(
    sandbox: Sandbox, browser_session: requests.Session
) -> None:
    sandbox.switches.callback = "never"
    url = authorize_url(sandbox)
    pages = [
        browser_session.get(sandbox.url, timeout=10),
        browser_session.get(f"{sandbox.url}/nowhere", timeout=10),
        browser_session.get(authorize_url(sandbox, client_id="x"), timeout=10),
        browser_session.get(url, timeout=10),
        post(browser_session, url, email="ana@example.test", password="sandbox"),
        post(browser_session, url, account="ab123"),
        post(browser_session, url, account="ab123", decision="allow"),
    ]
    assert len({page.text for page in pages}) == len(pages)
    for page in pages:
        assert "This is not Keap." in page.text
        assert '<html lang="en">' in page.text
        assert page.headers["Cache-Control"] == "no-store"


def test_names_are_escaped_in_pages() -> None:
    user = KeapUser("eve@example.test", (Account("ab123", "<script>alert(1)</script>"),))
    with Sandbox(users=[user]) as sandbox:
        page = requests.post(
            authorize_url(sandbox),
            data={"email": user.email, "password": user.password, "account": "ab123"},
            timeout=10,
        )
    assert "<script>" not in page.text
    assert "&lt;script&gt;" in page.text


def test_five_thousand_accounts_are_offered_in_a_select() -> None:
    with Sandbox(accounts=[f"bn{number}" for number in range(5000)]) as sandbox:
        form = {"email": "ana@example.test", "password": "sandbox", "account": ""}
        page = requests.post(authorize_url(sandbox), data=form, timeout=10)
    assert page.text.count("<option") == 5001


# Invalid requests


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "unknown"},
        {"client_id": None},
        {"redirect_uri": None},
        {"redirect_uri": "/callback"},
        {"redirect_uri": "ftp://site.example/callback"},
        {"redirect_uri": "http://site.example/callback"},
        {"redirect_uri": "https://site.example/callback#fragment"},
        {"redirect_uri": "https://site.example/\r\nSet-Cookie: a=b"},
        {"redirect_uri": "https://[site.example/"},
    ],
)
def test_invalid_client_or_redirect_uri_shows_an_error_page(
    sandbox: Sandbox, changes: dict[str, str | None]
) -> None:
    reply = requests.get(authorize_url(sandbox, **changes), allow_redirects=False, timeout=10)
    assert reply.status_code == 400
    assert "Location" not in reply.headers
    assert "Unable to create access token." in reply.text


def test_repeated_parameter_shows_an_error_page(sandbox: Sandbox) -> None:
    url = f"{authorize_url(sandbox)}&redirect_uri=https://evil.example"
    assert requests.get(url, allow_redirects=False, timeout=10).status_code == 400


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"scope": "contacts"}, "invalid_scope"),
    ],
)
def test_invalid_response_type_or_scope_redirects_to_the_callback(
    sandbox: Sandbox, changes: dict[str, str], error: str
) -> None:
    reply = requests.get(authorize_url(sandbox, **changes), allow_redirects=False, timeout=10)
    fields = callback_fields(reply.headers["Location"])
    assert fields["error"] == error
    assert fields["state"] == "s&t=å"


def test_response_type_and_scope_have_defaults(sandbox: Sandbox) -> None:
    url = authorize_url(sandbox, response_type=None, scope=None)
    assert "code" in callback_fields(sandbox.authorize(url))


def test_state_is_absent_when_none_was_sent(sandbox: Sandbox) -> None:
    assert "state" not in callback_fields(sandbox.authorize(authorize_url(sandbox, state=None)))


def test_query_of_the_redirect_uri_is_kept(sandbox: Sandbox) -> None:
    url = authorize_url(sandbox, redirect_uri=f"{CALLBACK}?page=2")
    fields = callback_fields(sandbox.authorize(url))
    assert fields["page"] == "2"
    assert "code" in fields


# Switches


def test_callback_has_no_scope_when_switched_off(sandbox: Sandbox) -> None:
    sandbox.switches.callback_scope = False
    fields = callback_fields(sandbox.authorize(authorize_url(sandbox)))
    assert fields.keys() == {"code", "state"}


def test_allow_is_denied_when_switched_to_deny(sandbox: Sandbox) -> None:
    sandbox.switches.callback = "deny"
    fields = callback_fields(sandbox.authorize(authorize_url(sandbox)))
    assert fields["error"] == "access_denied"


def test_allow_does_not_redirect_when_switched_to_never(sandbox: Sandbox) -> None:
    sandbox.switches.callback = "never"
    with pytest.raises(ValueError, match="does not redirect back"):
        sandbox.authorize(authorize_url(sandbox))


@pytest.mark.parametrize(
    ("rule", "redirect_uri", "is_allowed"),
    [
        ("loopback", "http://localhost:8000/cb", True),
        ("loopback", "http://127.0.0.1/cb", True),
        ("loopback", "http://[::1]:8000/cb", True),
        ("loopback", "http://testserver/cb", True),
        ("loopback", "http://site.example/cb", False),
        ("https", "http://localhost:8000/cb", False),
        ("https", "https://site.example/cb", True),
        ("any", "http://site.example/cb", True),
    ],
)
def test_redirect_uri_is_checked_against_the_switched_rule(
    sandbox: Sandbox, rule: str, redirect_uri: str, is_allowed: bool
) -> None:
    sandbox.switches.redirect_uri = rule  # type: ignore[assignment]
    reply = requests.get(authorize_url(sandbox, redirect_uri=redirect_uri), timeout=10)
    assert reply.status_code == (200 if is_allowed else 400)


# Without a browser


def test_authorize_connects_the_named_account(sandbox: Sandbox) -> None:
    callback = sandbox.authorize(authorize_url(sandbox), account="ef789")
    assert callback_fields(callback)["scope"] == "full|ef789.infusionsoft.com"


def test_authorize_can_deny(sandbox: Sandbox) -> None:
    callback = sandbox.authorize(authorize_url(sandbox), decision="deny")
    assert callback_fields(callback)["error"] == "access_denied"


def test_authorize_raises_the_error_of_the_page(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="Unknown client 'x'"):
        sandbox.authorize(authorize_url(sandbox, client_id="x"))


def test_authorize_rejects_a_url_of_another_server(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="authorization URL"):
        sandbox.authorize("https://accounts.example/elsewhere")


def test_authorize_names_the_available_accounts_when_the_account_is_unknown(
    sandbox: Sandbox,
) -> None:
    with pytest.raises(ValueError, match="ab123, cd456, ef789"):
        sandbox.authorize(authorize_url(sandbox), account="zz999")


# The front page


def test_front_page_can_revoke_a_grant(sandbox: Sandbox) -> None:
    sandbox.issue("ab123")
    page = requests.get(sandbox.url, timeout=10)
    assert 'name="revoke" value="ab123"' in page.text
    page = requests.post(sandbox.url, data={"revoke": "ab123"}, timeout=10)
    assert 'name="revoke"' not in page.text
    assert sandbox.live_grants == []


def test_front_page_rejects_the_form_of_another_site(sandbox: Sandbox) -> None:
    sandbox.issue("ab123")
    headers = {"Origin": "https://evil.example"}
    reply = requests.post(sandbox.url, data={"revoke": "ab123"}, headers=headers, timeout=10)
    assert reply.status_code == 403
    assert len(sandbox.live_grants) == 1
