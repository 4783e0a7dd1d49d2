"""The URLs of Keap's API: every spelling of Keap's documents, and nothing outside the API."""

import pytest
from django.test import override_settings
from requests.exceptions import InvalidURL

from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.keap.urls import is_at_keap, resolve
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox

HOSTS = ["api.infusionsoft.com", "api.keap.com"]


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("prefix", ["", "/", "/rest/", "/crm/rest/", "rest/", "crm/rest/"])
@pytest.mark.parametrize("path", ["contacts", "contacts/7:undo?a=b&c=%2e%2e/", "tags?filter=a==b"])
def test_path_means_the_same_in_each_spelling(version: str, prefix: str, path: str) -> None:
    expected = f"https://api.infusionsoft.com/crm/rest/{version}/{path}"
    assert resolve(f"{prefix}{version}/{path}") == expected


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("setting", [f"https://{each}/crm/rest" for each in HOSTS])
@pytest.mark.parametrize("path", ["v1/contacts/7", "v1/contacts/?limit=1&offset=1"])
def test_url_on_either_host_is_sent_to_the_host_of_the_setting(
    host: str, setting: str, path: str
) -> None:
    with override_settings(INFUSIONSOFT_API_URL=setting):
        assert resolve(f"https://{host}/crm/rest/{path}") == f"{setting}/{path}"


def test_url_of_keap_is_sent_to_the_sandbox_when_the_setting_names_it(
    sandbox: Sandbox, credential: Credential
) -> None:
    response = credential.session().get("https://api.keap.com/crm/rest/v1/contacts?limit=1")
    assert response.url == f"{sandbox.api_url}v1/contacts?limit=1"
    assert response.ok


@pytest.mark.parametrize(
    "url",
    [
        "http://api.infusionsoft.com/crm/rest/v1/contacts",
        "https://api.infusionsoft.com:8443/crm/rest/v1/contacts",
        "https://api.infusionsoft.com/token",
        "https://api.infusionsoft.com/crm/",
        "https://api.keap.com.example/crm/rest/v1/contacts",
        "https://user@api.keap.com/crm/rest/v1/contacts",
    ],
)
def test_url_outside_the_api_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="INFUSIONSOFT_API_URL"):
        resolve(url)


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../token",
        "../../token",
        "a/../../../token",
        "./a",
        "%2e%2e/token",
        "%2E./token",
        ".%2e%2ftoken",
        "..%2ftoken",
        "..%5ctoken",
        "..\\token",
        "a\\b",
        "%252e%252e/token",
        "..;a=b/token",
        "%2e%2e%3b/token",
        "a/\r\nHost: b",
        "a%0d%0aHost: b",
        "a%00",
        ".\t./token",
        " ../token",
    ],
)
@pytest.mark.parametrize("prefix", ["v2/contacts/", "https://api.keap.com/crm/rest/v1/", ""])
def test_path_that_would_leave_the_api_is_refused(prefix: str, path: str) -> None:
    with pytest.raises(InvalidURL):
        resolve(f"{prefix}{path}")


@pytest.mark.parametrize(
    "path", ["a%2Fb", "a..b", "nell@acme.example", "a b", "a%20b", "...", "~a", "ä", "a%5Cb"]
)
def test_path_of_a_value_with_special_characters_is_kept(path: str) -> None:
    assert resolve(f"v2/emailAddresses/{path}").endswith(f"/crm/rest/v2/emailAddresses/{path}")


def test_no_access_token_is_fetched_for_a_path_that_is_refused(
    sandbox: Sandbox, expired: Credential
) -> None:
    with expired.session() as session, pytest.raises(InvalidURL):
        session.get("v2/contacts/../../../token")
    assert len(sandbox.token_requests) == 0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.infusionsoft.com/crm/rest/v2/contacts", True),
        ("https://API.keap.com:443/crm/xmlrpc/v1", True),
        ("https://api.keap.com@evil.example/", False),
        ("https://evil.example/crm/rest/v2", False),
        ("https://api.keap.com:port/", False),
    ],
)
def test_only_hosts_of_keap_may_get_the_access_token(url: str, expected: bool) -> None:
    assert is_at_keap(url) is expected
