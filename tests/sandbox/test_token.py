"""The sandbox's token endpoint, which follows Keap's (keap-facts, section 2)."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import requests

from django_infusionsoft.sandbox import Client, Sandbox, Switches

CLIENT = ("sandbox-client", "sandbox-secret")
CALLBACK = "https://site.example/callback"
ACCESS_TOKEN = "[A-Za-z0-9]{28}"
REFRESH_TOKEN = "[A-Za-z0-9]{32}"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def new_code(sandbox: Sandbox, redirect_uri: str = CALLBACK, client_id: str = CLIENT[0]) -> str:
    query = urlencode({"client_id": client_id, "redirect_uri": redirect_uri})
    callback = sandbox.authorize(f"{sandbox.authorize_url}?{query}")
    return parse_qs(urlsplit(callback).query)["code"][0]


def exchange(
    sandbox: Sandbox, code: str, auth: tuple[str, str] | None = None, **changes: str | None
) -> requests.Response:
    form = {
        "grant_type": "authorization_code",
        "client_id": CLIENT[0],
        "client_secret": CLIENT[1],
        "code": code,
        "redirect_uri": CALLBACK,
        **changes,
    }
    return requests.post(sandbox.token_url, data=form, auth=auth, timeout=10)


def refresh(
    sandbox: Sandbox, refresh_token: str, auth: tuple[str, str] | None = CLIENT, **more: str
) -> requests.Response:
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token, **more}
    return requests.post(sandbox.token_url, data=form, auth=auth, timeout=10)


def api_status(sandbox: Sandbox, access_token: str) -> int:
    headers = {"Authorization": f"Bearer {access_token}"}
    url = f"{sandbox.api_url}v2/oauth/connect/userinfo"
    return requests.get(url, headers=headers, timeout=10).status_code


def issued(sandbox: Sandbox, account: str = "ab123") -> str:
    refresh_token = sandbox.issue(account)["refresh_token"]
    assert isinstance(refresh_token, str)
    return refresh_token


def error_of(reply: requests.Response) -> tuple[int, str, str]:
    content = reply.json()
    assert content.keys() == {"error", "error_description"}
    return reply.status_code, content["error"], content["error_description"]


INVALID_CODE = (400, "invalid_request", "Invalid Authorization Code")
INVALID_CLIENT = (401, "invalid_client", "ClientId is Invalid")
INVALID_REFRESH_TOKEN = (400, "invalid_request", "Invalid Refresh Token")
NO_GRANT_TYPE = (400, "invalid_request", "response_type or grant_type is required")


# Success


def test_exchange_returns_the_five_fields(sandbox: Sandbox) -> None:
    content = exchange(sandbox, new_code(sandbox)).json()
    assert list(content) == ["access_token", "token_type", "expires_in", "refresh_token", "scope"]
    assert re.fullmatch(ACCESS_TOKEN, content["access_token"])
    assert re.fullmatch(REFRESH_TOKEN, content["refresh_token"])
    assert content["token_type"] == "bearer"
    assert content["expires_in"] == 86400
    assert content["scope"] == "full|ab123.infusionsoft.com"


def test_successful_reply_has_keaps_headers(sandbox: Sandbox) -> None:
    reply = exchange(sandbox, new_code(sandbox))
    assert reply.headers["Content-Type"] == "application/json;charset=UTF-8"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["Pragma"] == "no-cache"


def test_refresh_returns_a_new_token_pair_for_the_same_account(sandbox: Sandbox) -> None:
    old = sandbox.issue("cd456")
    new = refresh(sandbox, old["refresh_token"]).json()
    assert list(new) == list(old)
    assert new["scope"] == "full|cd456.infusionsoft.com"
    assert new["access_token"] != old["access_token"]
    assert new["refresh_token"] != old["refresh_token"]


def test_issued_access_token_is_accepted_by_the_api(sandbox: Sandbox) -> None:
    assert api_status(sandbox, sandbox.issue("ab123")["access_token"]) == 200


def test_refreshed_access_token_is_accepted_by_the_api(sandbox: Sandbox) -> None:
    new = refresh(sandbox, issued(sandbox)).json()
    assert api_status(sandbox, new["access_token"]) == 200


def test_issue_rejects_an_unknown_account(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="Unknown account 'zz999'"):
        sandbox.issue("zz999")


# Codes


def test_code_can_be_exchanged_once(sandbox: Sandbox) -> None:
    code = new_code(sandbox)
    assert exchange(sandbox, code).status_code == 200
    assert error_of(exchange(sandbox, code)) == INVALID_CODE


def test_unknown_code_is_rejected(sandbox: Sandbox) -> None:
    assert error_of(exchange(sandbox, "x" * 24)) == INVALID_CODE


def test_code_is_rejected_after_ten_minutes(sandbox: Sandbox) -> None:
    code = new_code(sandbox)
    sandbox.clock.advance(600)
    assert error_of(exchange(sandbox, code)) == INVALID_CODE


def test_code_is_valid_as_long_as_switched(sandbox: Sandbox) -> None:
    sandbox.switches.code_seconds = 7200
    code = new_code(sandbox)
    sandbox.clock.advance(7100)
    assert exchange(sandbox, code).status_code == 200


def test_code_is_rejected_for_another_client() -> None:
    with Sandbox(clients=[Client(), Client("other", "secret")]) as sandbox:
        reply = exchange(sandbox, new_code(sandbox), client_id="other", client_secret="secret")
        assert error_of(reply) == INVALID_CODE


def test_code_is_rejected_with_another_redirect_uri(sandbox: Sandbox) -> None:
    reply = exchange(sandbox, new_code(sandbox), redirect_uri=f"{CALLBACK}/")
    assert error_of(reply) == (400, "invalid_request", "Invalid redirect_uri")


@pytest.mark.parametrize("name", ["code", "redirect_uri"])
def test_exchange_names_the_missing_parameter(sandbox: Sandbox, name: str) -> None:
    form = {
        "grant_type": "authorization_code",
        "client_id": CLIENT[0],
        "client_secret": CLIENT[1],
        "code": "x",
        "redirect_uri": CALLBACK,
    }
    del form[name]
    reply = requests.post(sandbox.token_url, data=form, timeout=10)
    assert error_of(reply) == (400, "invalid_request", f"Required param : {name}")


@pytest.mark.parametrize(
    ("auth", "body"),
    [
        (None, {}),
        (CLIENT, {}),
        (CLIENT, {"client_id": None, "client_secret": None}),
    ],
    ids=["body", "both", "basic"],
)
def test_exchange_accepts_the_client_in_body_or_basic_authentication(
    sandbox: Sandbox, auth: tuple[str, str] | None, body: dict[str, str | None]
) -> None:
    assert exchange(sandbox, new_code(sandbox), auth, **body).status_code == 200


@pytest.mark.parametrize(
    ("auth", "body"),
    [
        (None, {"client_secret": "wrong"}),
        (None, {"client_id": "unknown"}),
        (None, {"client_secret": None}),
        (CLIENT, {"client_secret": "wrong"}),
        (("sandbox-client", "wrong"), {}),
    ],
)
def test_exchange_rejects_a_wrong_client(
    sandbox: Sandbox, auth: tuple[str, str] | None, body: dict[str, str | None]
) -> None:
    assert error_of(exchange(sandbox, new_code(sandbox), auth, **body)) == INVALID_CLIENT


def test_code_stays_valid_after_a_request_of_a_wrong_client(sandbox: Sandbox) -> None:
    code = new_code(sandbox)
    exchange(sandbox, code, client_secret="wrong")
    assert exchange(sandbox, code).status_code == 200


# Refresh tokens


def test_refresh_token_can_be_used_once(sandbox: Sandbox) -> None:
    refresh_token = issued(sandbox)
    assert refresh(sandbox, refresh_token).status_code == 200
    assert error_of(refresh(sandbox, refresh_token)) == INVALID_REFRESH_TOKEN


def test_new_refresh_token_stays_valid_after_a_replay(sandbox: Sandbox) -> None:
    first = issued(sandbox)
    second = refresh(sandbox, first).json()["refresh_token"]
    refresh(sandbox, first)
    assert refresh(sandbox, second).status_code == 200


def test_one_of_64_concurrent_requests_succeeds_with_the_same_refresh_token(
    sandbox: Sandbox,
) -> None:
    together = threading.Barrier(64)
    refresh_token = issued(sandbox)

    def present(_: int) -> int:
        together.wait(timeout=30)
        return refresh(sandbox, refresh_token).status_code

    with ThreadPoolExecutor(64) as pool:
        statuses = sorted(pool.map(present, range(64)))
    assert statuses == [200] + [400] * 63
    assert sandbox.replays == 63
    assert sandbox.presentations(refresh_token) == 64


def test_unknown_refresh_token_is_rejected(sandbox: Sandbox) -> None:
    assert error_of(refresh(sandbox, "x" * 32)) == INVALID_REFRESH_TOKEN


def test_refresh_token_stays_valid_when_another_client_is_rejected() -> None:
    with Sandbox(clients=[Client(), Client("other", "secret")]) as sandbox:
        refresh_token = issued(sandbox)
        assert error_of(refresh(sandbox, refresh_token, ("other", "secret"))) == (
            INVALID_REFRESH_TOKEN
        )
        assert refresh(sandbox, refresh_token).status_code == 200


def test_refresh_token_expires_after_45_days(sandbox: Sandbox) -> None:
    refresh_token = issued(sandbox)
    sandbox.clock.advance(45 * 86400)
    assert error_of(refresh(sandbox, refresh_token)) == (
        400,
        "invalid_request",
        "Refresh Token expired",
    )


def test_grant_stays_valid_when_refreshed_every_month(sandbox: Sandbox) -> None:
    refresh_token = issued(sandbox)
    for _ in range(6):
        sandbox.clock.advance(30 * 86400)
        refresh_token = refresh(sandbox, refresh_token).json()["refresh_token"]


def test_refresh_names_the_missing_parameter(sandbox: Sandbox) -> None:
    form = {"grant_type": "refresh_token"}
    reply = requests.post(sandbox.token_url, data=form, auth=CLIENT, timeout=10)
    assert error_of(reply) == (400, "invalid_request", "Required param : refresh_token")


def test_refresh_is_rejected_without_basic_authentication(sandbox: Sandbox) -> None:
    reply = refresh(sandbox, issued(sandbox), None, client_id=CLIENT[0], client_secret=CLIENT[1])
    assert error_of(reply) == INVALID_CLIENT


def test_refresh_accepts_basic_authentication_and_body_together(sandbox: Sandbox) -> None:
    refresh_token = issued(sandbox)
    reply = refresh(sandbox, refresh_token, CLIENT, client_id=CLIENT[0], client_secret=CLIENT[1])
    assert reply.status_code == 200


@pytest.mark.parametrize("auth", [("unknown", "sandbox-secret"), ("sandbox-client", "x"), None])
def test_refresh_token_stays_valid_when_a_wrong_client_is_rejected(
    sandbox: Sandbox, auth: tuple[str, str] | None
) -> None:
    refresh_token = issued(sandbox)
    assert error_of(refresh(sandbox, refresh_token, auth)) == INVALID_CLIENT
    assert refresh(sandbox, refresh_token).status_code == 200


@pytest.mark.parametrize("header", ["Basic", "Basic ???", "Basic c2FuZGJveA==", "Bearer x"])
def test_refresh_is_rejected_when_the_authorization_is_malformed(
    sandbox: Sandbox, header: str
) -> None:
    form = {"grant_type": "refresh_token", "refresh_token": issued(sandbox)}
    headers = {"Authorization": header}
    reply = requests.post(sandbox.token_url, data=form, headers=headers, timeout=10)
    assert error_of(reply) == INVALID_CLIENT


# Invalid token requests


def test_json_body_is_ignored(sandbox: Sandbox) -> None:
    content = {"grant_type": "refresh_token", "refresh_token": issued(sandbox)}
    reply = requests.post(sandbox.token_url, json=content, auth=CLIENT, timeout=10)
    assert error_of(reply) == NO_GRANT_TYPE


def test_query_string_is_ignored(sandbox: Sandbox) -> None:
    query = {"grant_type": "refresh_token", "refresh_token": issued(sandbox)}
    reply = requests.post(sandbox.token_url, params=query, auth=CLIENT, timeout=10)
    assert error_of(reply) == NO_GRANT_TYPE


def test_form_without_its_content_type_is_ignored(sandbox: Sandbox) -> None:
    body = urlencode({"grant_type": "refresh_token", "refresh_token": issued(sandbox)})
    reply = requests.post(sandbox.token_url, data=body, auth=CLIENT, timeout=10)
    assert error_of(reply) == NO_GRANT_TYPE


@pytest.mark.parametrize("grant_type", ["client_credentials", "password"])
def test_other_grant_types_are_rejected(sandbox: Sandbox, grant_type: str) -> None:
    form = {"grant_type": grant_type}
    reply = requests.post(sandbox.token_url, data=form, auth=CLIENT, timeout=10)
    assert error_of(reply) == (400, "unsupported_grant_type", "Unsupported grant type")


def test_repeated_parameter_is_rejected(sandbox: Sandbox) -> None:
    token = issued(sandbox)
    pairs = [("grant_type", "refresh_token"), ("refresh_token", token), ("refresh_token", token)]
    reply = requests.post(sandbox.token_url, data=pairs, auth=CLIENT, timeout=10)
    assert error_of(reply)[:2] == (400, "invalid_request")


def test_get_is_not_allowed(sandbox: Sandbox) -> None:
    reply = requests.get(sandbox.token_url, timeout=10)
    assert reply.status_code == 405
    assert reply.headers["Allow"] == "POST"


# Switches


def test_errors_are_indented_by_default(sandbox: Sandbox) -> None:
    text = refresh(sandbox, "x").text
    assert text == (
        '{\n  "error": "invalid_request",\n  "error_description": "Invalid Refresh Token"\n}'
    )


def test_errors_are_compact_when_switched(sandbox: Sandbox) -> None:
    sandbox.switches.error_layout = "compact"
    text = refresh(sandbox, "x").text
    assert text == '{"error":"invalid_request","error_description":"Invalid Refresh Token"}'


def test_invalid_refresh_token_is_invalid_grant_when_switched_to_mashery(sandbox: Sandbox) -> None:
    sandbox.switches.refresh_error = "mashery"
    reply = refresh(sandbox, "x")
    assert reply.status_code == 400
    assert reply.text == '{"error":"invalid_grant","error_description":"Invalid refresh token"}'


def test_invalid_refresh_token_is_a_fault_when_switched(sandbox: Sandbox) -> None:
    sandbox.switches.refresh_error = "fault"
    reply = refresh(sandbox, "x")
    assert reply.status_code == 400
    assert reply.json()["fault"]["faultstring"] == "Invalid Refresh Token"


def test_invalid_refresh_token_is_an_empty_400_when_switched(sandbox: Sandbox) -> None:
    sandbox.switches.refresh_error = "empty"
    reply = refresh(sandbox, "x")
    assert (reply.status_code, reply.content) == (400, b"")


def test_invalid_refresh_token_is_an_html_page_when_switched(sandbox: Sandbox) -> None:
    sandbox.switches.refresh_error = "html"
    reply = refresh(sandbox, "x")
    assert reply.status_code == 400
    assert reply.headers["Content-Type"].startswith("text/html")


def test_other_errors_are_unchanged_when_refresh_error_is_switched(sandbox: Sandbox) -> None:
    sandbox.switches.refresh_error = "mashery"
    assert error_of(refresh(sandbox, "x", ("unknown", "x"))) == INVALID_CLIENT


def test_lifetimes_follow_the_switches(sandbox: Sandbox) -> None:
    sandbox.switches.access_token_seconds = 60
    sandbox.switches.refresh_token_seconds = 120
    pair = refresh(sandbox, issued(sandbox)).json()
    assert pair["expires_in"] == 60
    sandbox.clock.advance(60)
    assert api_status(sandbox, pair["access_token"]) == 401
    sandbox.clock.advance(60)
    assert error_of(refresh(sandbox, pair["refresh_token"]))[2] == "Refresh Token expired"


def test_used_refresh_token_is_accepted_during_the_grace_period(sandbox: Sandbox) -> None:
    sandbox.switches.refresh_grace_seconds = 30
    refresh_token = issued(sandbox)
    assert refresh(sandbox, refresh_token).status_code == 200
    sandbox.clock.advance(29)
    assert refresh(sandbox, refresh_token).status_code == 200
    sandbox.clock.advance(2)
    assert error_of(refresh(sandbox, refresh_token)) == INVALID_REFRESH_TOKEN


def test_old_access_token_stays_valid_after_a_refresh(sandbox: Sandbox) -> None:
    pair = sandbox.issue("ab123")
    refresh(sandbox, pair["refresh_token"])
    assert api_status(sandbox, pair["access_token"]) == 200


def test_old_access_token_is_revoked_by_a_refresh_when_switched(sandbox: Sandbox) -> None:
    sandbox.switches.refresh_revokes_access_tokens = True
    old = sandbox.issue("ab123")
    new = refresh(sandbox, old["refresh_token"]).json()
    assert api_status(sandbox, old["access_token"]) == 401
    assert api_status(sandbox, new["access_token"]) == 200


def test_older_grant_stays_valid_beside_a_new_one(sandbox: Sandbox) -> None:
    older = issued(sandbox)
    issued(sandbox)
    assert len(sandbox.live_grants) == 2
    assert refresh(sandbox, older).status_code == 200


def test_older_grant_of_the_same_account_is_revoked_by_a_new_one_when_switched(
    sandbox: Sandbox,
) -> None:
    sandbox.switches.new_grant_revokes_older = True
    other_account, older, newer = issued(sandbox, "cd456"), issued(sandbox), issued(sandbox)
    assert error_of(refresh(sandbox, older)) == INVALID_REFRESH_TOKEN
    assert refresh(sandbox, newer).status_code == 200
    assert refresh(sandbox, other_account).status_code == 200


@pytest.mark.parametrize(
    ("where", "has_basic", "has_body", "status"),
    [
        ("body", False, True, 200),
        ("body", True, False, 401),
        ("either", False, True, 200),
        ("either", True, False, 200),
        ("either", False, False, 401),
    ],
)
def test_refresh_requires_the_client_where_switched(
    sandbox: Sandbox, where: Any, has_basic: bool, has_body: bool, status: int
) -> None:
    sandbox.switches.refresh_client_auth = where
    body = {"client_id": CLIENT[0], "client_secret": CLIENT[1]} if has_body else {}
    reply = refresh(sandbox, issued(sandbox), CLIENT if has_basic else None, **body)
    assert reply.status_code == status


def test_scope_is_plain_when_switched(sandbox: Sandbox) -> None:
    sandbox.switches.token_scope = "full"
    assert refresh(sandbox, issued(sandbox)).json()["scope"] == "full"


def test_scope_is_absent_when_switched(sandbox: Sandbox) -> None:
    sandbox.switches.token_scope = "absent"
    assert "scope" not in refresh(sandbox, issued(sandbox)).json()


def test_switch_rejects_an_invalid_value(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="refresh_error must be one of apigee, mashery"):
        sandbox.switches.refresh_error = "soap"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="True or False"):
        sandbox.switches.callback_scope = "no"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="must be a number"):
        sandbox.switches.code_seconds = -1


def test_unknown_switch_is_rejected(sandbox: Sandbox) -> None:
    with pytest.raises(AttributeError, match="Unknown switch 'refresh_eror'"):
        sandbox.switches.refresh_eror = "mashery"


def test_switches_can_be_reset_to_their_defaults(sandbox: Sandbox) -> None:
    sandbox.switches.refresh_error = "html"
    sandbox.switches.reset()
    assert sandbox.switches == Switches()


# Revocation


def test_revoked_account_can_neither_refresh_nor_call(sandbox: Sandbox) -> None:
    pair = sandbox.issue("ab123")
    assert sandbox.revoke("ab123") == 1
    assert error_of(refresh(sandbox, pair["refresh_token"])) == INVALID_REFRESH_TOKEN
    assert api_status(sandbox, pair["access_token"]) == 401


def test_other_accounts_stay_valid_when_one_is_revoked(sandbox: Sandbox) -> None:
    other = issued(sandbox, "cd456")
    sandbox.revoke("ab123")
    assert refresh(sandbox, other).status_code == 200


def test_grant_stays_valid_when_its_access_tokens_are_revoked(sandbox: Sandbox) -> None:
    pair = sandbox.issue("ab123")
    assert sandbox.revoke_access_tokens("ab123") == 1
    assert api_status(sandbox, pair["access_token"]) == 401
    assert refresh(sandbox, pair["refresh_token"]).status_code == 200


# The journal


def test_journal_lists_the_requests_in_order(sandbox: Sandbox) -> None:
    pair = exchange(sandbox, new_code(sandbox)).json()
    refresh(sandbox, pair["refresh_token"])
    refresh(sandbox, pair["refresh_token"])
    refresh(sandbox, "x", ("unknown", "x"))
    seen = [
        (each.number, each.grant_type, each.client_id, each.outcome, each.status, each.is_replay)
        for each in sandbox.token_requests
    ]
    assert seen == [
        (1, "authorization_code", "sandbox-client", "issued", 200, False),
        (2, "refresh_token", "sandbox-client", "rotated", 200, False),
        (3, "refresh_token", "sandbox-client", "invalid_refresh_token", 400, True),
        (4, "refresh_token", "unknown", "invalid_client", 401, False),
    ]


def test_journal_shows_account_and_fingerprint_but_not_the_refresh_token(sandbox: Sandbox) -> None:
    refresh_token = issued(sandbox)
    refresh(sandbox, refresh_token)
    [entry] = sandbox.token_requests
    assert entry.account == "ab123"
    assert entry.refresh_token == refresh_token
    assert refresh_token not in repr(entry)
    assert re.fullmatch("[0-9a-f]{12}", entry.fingerprint)


def test_journal_uses_the_sandbox_clock(sandbox: Sandbox) -> None:
    sandbox.clock.advance(1_000_000)
    before = sandbox.clock.now()
    refresh(sandbox, issued(sandbox))
    assert before <= sandbox.token_requests[0].at <= sandbox.clock.now()


def test_live_grants_contain_the_newest_refresh_token(sandbox: Sandbox) -> None:
    pair = refresh(sandbox, issued(sandbox)).json()
    [grant] = sandbox.live_grants
    assert grant.account.app_id == "ab123"
    assert grant.refresh_token == pair["refresh_token"]
    assert pair["refresh_token"] not in repr(grant)
