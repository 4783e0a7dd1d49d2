"""Accounts can be connected to an OAuth 2 server other than Keap and the sandbox."""

from collections.abc import Iterator
from subprocess import PIPE
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
from django.contrib.auth.models import User
from django.test import Client, override_settings

from django_infusionsoft.exceptions import ReauthorizationRequired
from django_infusionsoft.models import Credential
from tests.processes import started
from tests.system import other_server
from tests.web import go_to_keap

pytest.importorskip("oauth2_provider", reason="django-oauth-toolkit is not installed here")
pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the server; return its URL."""
    folder = str(tmp_path_factory.mktemp("other"))
    with started(
        "-m", "tests.system.other_server", folder, database_url="", settings={}, stdout=PIPE
    ) as process:
        assert process.stdout
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"


@pytest.fixture
def url(server: str) -> Iterator[str]:
    """Point the site at the server."""
    with override_settings(
        INFUSIONSOFT_CLIENT_ID=other_server.CLIENT_ID,
        INFUSIONSOFT_CLIENT_SECRET=other_server.CLIENT_SECRET,
        INFUSIONSOFT_AUTHORIZE_URL=f"{server}/o/authorize/",
        INFUSIONSOFT_TOKEN_URL=f"{server}/o/token/",
        INFUSIONSOFT_API_URL=f"{server}/api/",
        INFUSIONSOFT_REDIRECT_URI=other_server.REDIRECT_URI,
    ):
        yield server


def allow(base: str, authorization_url: str) -> str:
    """Log in and allow access as a user; return the callback URL."""
    with requests.Session() as person:
        person.get(f"{base}/admin/login/")
        csrf = {"csrfmiddlewaretoken": person.cookies["csrftoken"]}
        login = {"username": other_server.USER, "password": other_server.PASSWORD, "next": "/"}
        person.post(f"{base}/admin/login/", login | csrf, allow_redirects=False)
        query = dict(parse_qsl(urlsplit(authorization_url).query))
        consent = query | {"allow": "Authorize"}
        answer = person.post(authorization_url, consent, allow_redirects=False)
        return answer.headers["Location"]


@pytest.fixture
def credential(url: str) -> Credential:
    """Connect through the app's views and the server's pages."""
    site = Client(SERVER_NAME="localhost")
    site.force_login(User.objects.create_superuser("admin"))
    callback = urlsplit(allow(url, go_to_keap(site)))
    answer = site.get(f"{callback.path}?{callback.query}")
    assert answer.status_code == 200, answer.content
    return Credential.objects.get_default()


def test_connected_account_can_call_the_api(credential: Credential) -> None:
    assert credential.account is None  # only Keap returns it
    assert credential.session().get("me").json() == {"name": "Ana"}


def test_pair_is_rotated(credential: Credential) -> None:
    old = credential.access_token
    credential.refresh()
    assert credential.access_token != old
    assert credential.session().get("me").status_code == 200


def test_used_refresh_token_is_detected(credential: Credential) -> None:
    spent = credential.refresh_token
    credential.refresh()
    Credential.objects.update(refresh_token=spent)
    with pytest.raises(ReauthorizationRequired) as caught:
        Credential.objects.get_default().refresh()
    assert caught.value.reason == "revoked"
