"""``credential.auth``: the access token for a ``requests`` session of the caller's own."""

from typing import Any

import pytest
import requests
from django.test import override_settings

from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults
from tests.api.scripted import answering, reply
from tests.support import row


def test_session_of_the_caller_is_authenticated(sandbox: Sandbox, credential: Credential) -> None:
    with requests.Session() as session:
        session.auth = credential.auth
        assert session.get(f"{sandbox.api_url}v2/contacts").ok
    assert requests.get(f"{sandbox.api_url}v2/contacts", auth=credential.auth, timeout=9).ok


def test_access_token_is_replaced_once_after_a_401(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke_access_tokens("ab123")
    with requests.Session() as session:
        session.auth = credential.auth
        response = session.get(f"{sandbox.api_url}v2/contacts")
        assert (response.status_code, len(response.history)) == (200, 1)
        sandbox.plan(faults.answer(401, {}), endpoint="api", times=None)
        assert session.get(f"{sandbox.api_url}v2/contacts").status_code == 401
    assert len(sandbox.token_requests) == 1


@pytest.mark.usefixtures("sandbox")
def test_access_token_is_not_sent_to_another_host(credential: Credential) -> None:
    with answering() as received, requests.Session() as session:
        session.auth = credential.auth
        with (
            override_settings(INFUSIONSOFT_API_URL="https://api.infusionsoft.com/crm/rest/"),
            pytest.raises(ConfigurationError, match="INFUSIONSOFT_API_URL"),
        ):
            session.get("http://127.0.0.1:9/")
    assert received.requests == []


def test_access_token_is_not_sent_when_keap_redirects_to_another_host(
    credential: Credential,
) -> None:
    with (
        answering(reply(401)) as other,
        answering(reply(302, Location=other.url)) as keap,
        requests.Session() as session,
    ):
        session.auth = credential.auth
        assert session.get(keap.url).status_code == 401
    assert b"authorization" in keap.heads[0].lower()
    assert b"authorization" not in other.heads[0].lower()


@pytest.mark.django_db
def test_key_is_not_sent_when_keap_redirects_to_another_host(sandbox: Sandbox) -> None:
    keyed = Credential.objects.add_key(key=sandbox.issue_key("ab123"))
    with (
        override_settings(INFUSIONSOFT_KEY_HEADER="X-Keap-API-Key"),
        answering(reply(200)) as other,
        answering(reply(302, Location=other.url)) as keap,
        requests.Session() as session,
    ):
        session.auth = keyed.auth
        assert session.get(keap.url).ok
    assert b"x-keap-api-key" in keap.heads[0].lower()
    assert b"x-keap-api-key" not in other.heads[0].lower()


@pytest.mark.parametrize("of_the_app", [True, False])
def test_key_that_replaces_a_grant_is_sent_alone(
    sandbox: Sandbox, credential: Credential, of_the_app: bool
) -> None:
    row(credential).disconnect()
    sandbox.revoke("ab123")
    Credential.objects.add_key(key=sandbox.issue_key("ab123"))
    session = credential.session() if of_the_app else requests.Session()
    session.auth = session.auth or credential.auth
    with override_settings(INFUSIONSOFT_KEY_HEADER="X-Keap-API-Key"):
        response = session.get(f"{sandbox.api_url}v2/contacts")
    assert response.status_code == 200
    assert "Authorization" not in response.request.headers


def test_hook_that_repeats_the_request_works_in_a_session_of_the_app(
    sandbox: Sandbox, credential: Credential
) -> None:
    """As those of ``HTTPDigestAuth`` and ``credential.auth`` do, over the same connection."""

    def repeat(response: requests.Response, **kwargs: Any) -> requests.Response:
        return response.connection.send(response.request, **kwargs)

    response = credential.session().get("v2/contacts", hooks={"response": repeat})
    assert response.json()["contacts"]
    sandbox.plan(faults.answer(401, {}), endpoint="api")
    session = credential.session()
    session.auth = credential.auth
    assert session.get("v2/contacts").ok
