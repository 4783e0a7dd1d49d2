"""Requests are sent, unless a test has chosen another transport, and over own connections."""

from collections.abc import Callable

import pytest
import requests_mock
import responses
from requests.adapters import HTTPAdapter

from django_infusionsoft.conf import conf
from django_infusionsoft.keap.sessions import Session
from django_infusionsoft.models import Credential
from tests.keap.endpoints import in_child, listening, naming


def with_default_adapter() -> Session:
    return Session()


def with_own_adapter() -> Session:
    session = Session()
    session.mount("http://", HTTPAdapter(pool_maxsize=1))
    return session


@pytest.mark.parametrize("make", [with_default_adapter, with_own_adapter])
def test_forked_process_gives_up_the_connections_of_a_session(make: Callable[[], Session]) -> None:
    with listening(naming("abc")) as port, make() as session:

        def ask() -> bytes:
            return session.get(f"http://127.0.0.1:{port}/").content

        assert [ask(), in_child(ask), in_child(ask), ask()] == [b"a", b"b", b"c", b"a"]


def test_transport_of_a_test_is_used(credential: Credential) -> None:
    url = f"{conf.API_URL}v2/contacts"
    with responses.RequestsMock() as mocked:
        mocked.get(url, json={"from": "responses"})
        assert credential.session().get("v2/contacts").json() == {"from": "responses"}
    with requests_mock.Mocker() as mocker:
        mocker.get(url, json={"from": "requests-mock"})
        assert credential.session().get("v2/contacts").json() == {"from": "requests-mock"}
