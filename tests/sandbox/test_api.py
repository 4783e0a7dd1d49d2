"""The part of Keap's API that the sandbox implements (keap-facts, sections 3, 4, 6 and 7)."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from django_infusionsoft.sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


class Api:
    """Calls the API of one account."""

    def __init__(self, sandbox: Sandbox, account: str) -> None:
        self._base = sandbox.api_url
        self.access_token = sandbox.issue(account)["access_token"]

    def __call__(self, path: str, method: str = "GET", **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.access_token}"}
        url = path if path.startswith("http") else self._base + path
        return requests.request(method, url, headers=headers, timeout=10, **options)


@pytest.fixture
def api(sandbox: Sandbox) -> Api:
    return Api(sandbox, "ab123")


def new_contact(number: int) -> dict[str, Any]:
    return {
        "given_name": f"N{number}",
        "email_addresses": [{"email": f"n{number}@ex.test", "field": "EMAIL1"}],
    }


# Userinfo and profile


def test_userinfo_v2_names_user_and_tenant(api: Api) -> None:
    content = api("v2/oauth/connect/userinfo").json()
    assert content["email"] == "ana@example.test"
    assert content["keap_id"] == "ana@example.test"
    assert content["tenant_id"] == "ab123"
    assert content["is_admin"] is True
    assert isinstance(content["id"], str)


def test_userinfo_v1_names_no_tenant(api: Api) -> None:
    content = api("v1/oauth/connect/userinfo").json()
    assert content["infusionsoft_id"] == "ana@example.test"
    assert isinstance(content["global_user_id"], int)
    assert "tenant_id" not in content


def test_userinfo_v2_names_the_host_when_switched(sandbox: Sandbox, api: Api) -> None:
    sandbox.switches.tenant_id = "host"
    tenant_id = api("v2/oauth/connect/userinfo").json()["tenant_id"]
    assert tenant_id == "ab123.infusionsoft.com"


def test_userinfo_v2_names_no_tenant_when_switched(sandbox: Sandbox, api: Api) -> None:
    sandbox.switches.tenant_id = "absent"
    assert "tenant_id" not in api("v2/oauth/connect/userinfo").json()


def test_profile_names_the_account(api: Api) -> None:
    content = api("v1/account/profile").json()
    assert content["name"] == "Acme Bakery"
    assert content["address"]["field"] == "BILLING"


# Contacts


def test_contact_created_in_v1_can_be_listed_and_read(api: Api) -> None:
    created = api("v1/contacts", "POST", json=new_contact(1))
    assert created.status_code == 201
    contact = created.json()
    assert isinstance(contact["id"], int)
    assert contact in api("v1/contacts").json()["contacts"]
    assert api(f"v1/contacts/{contact['id']}").json() == contact


def test_contact_created_in_v2_can_be_listed_and_read(api: Api) -> None:
    created = api("v2/contacts", "POST", json=new_contact(1))
    assert created.status_code == 201
    contact = created.json()
    assert isinstance(contact["id"], str)
    assert contact in api("v2/contacts").json()["contacts"]
    assert api(f"v2/contacts/{contact['id']}").json() == contact


def test_contact_is_the_same_in_both_versions(api: Api) -> None:
    number = api("v1/contacts", "POST", json=new_contact(1)).json()["id"]
    contact = api(f"v2/contacts/{number}").json()
    assert contact["given_name"] == "N1"
    assert contact["email_addresses"][0]["email"] == "n1@ex.test"


def test_contacts_of_another_account_are_not_listed(sandbox: Sandbox, api: Api) -> None:
    api("v1/contacts", "POST", json=new_contact(1))
    names = [
        each["given_name"] for each in Api(sandbox, "cd456")("v1/contacts").json()["contacts"]
    ]
    assert names == ["Cleo"]


def test_v1_pages_are_linked_by_next(api: Api) -> None:
    for number in range(3):
        api("v1/contacts", "POST", json=new_contact(number))
    names = []
    page = api("v1/contacts?limit=2").json()
    while page["contacts"]:
        names += [each["given_name"] for each in page["contacts"]]
        page = api(page["next"]).json()
    assert names == ["Bea", "Otto", "N0", "N1", "N2"]


def test_v1_page_has_the_total_count_and_links(sandbox: Sandbox, api: Api) -> None:
    page = api("v1/contacts/?limit=1&offset=1&order=id").json()
    assert page["count"] == 2
    base = f"{sandbox.api_url}v1/contacts/"
    assert page["next"] == f"{base}?limit=1&offset=2&order=id"
    assert page["previous"] == f"{base}?limit=1&offset=0&order=id"


def test_v2_pages_are_linked_by_page_token(api: Api) -> None:
    for number in range(3):
        api("v2/contacts", "POST", json=new_contact(number))
    names, page_token = [], ""
    for _ in range(3):
        params = {"page_size": "2", "page_token": page_token}
        page = api("v2/contacts", params=params).json()
        names += [each["given_name"] for each in page["contacts"]]
        page_token = page["next_page_token"]
    assert names == ["Bea", "Otto", "N0", "N1", "N2"]
    assert page_token == ""


@pytest.mark.parametrize(
    "path",
    [
        "v1/contacts?limit=0",
        "v1/contacts?limit=1001",
        "v1/contacts?offset=-1",
        "v1/contacts?limit=ten",
        "v2/contacts?page_size=1001",
        "v2/contacts?page_token=!!",
    ],
)
def test_invalid_paging_is_a_400(api: Api, path: str) -> None:
    reply = api(path)
    assert reply.status_code == 400
    assert reply.json()["message"]


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("body", [b"{}", b"[]", b"not json", b'{"given_name": "Nobody"}'])
def test_contact_without_an_address_is_a_400(api: Api, version: str, body: bytes) -> None:
    reply = api(f"{version}/contacts", "POST", data=body)
    assert reply.status_code == 400
    assert reply.json()["message"]


# Errors


def test_missing_contact_has_the_error_shape_of_v2(api: Api) -> None:
    reply = api("v2/contacts/999")
    assert reply.status_code == 404
    content = reply.json()
    assert (content["code"], content["status"]) == (404, "NOT_FOUND")
    assert content["details"] == [{"domain": "Contact", "resource": "999"}]


def test_missing_contact_has_a_message_in_v1(api: Api) -> None:
    reply = api("v1/contacts/999")
    assert reply.status_code == 404
    assert reply.json().keys() == {"message"}


def test_unknown_path_is_404_with_a_token(api: Api) -> None:
    assert api("v2/unicorns").status_code == 404


def test_wrong_method_is_405(api: Api) -> None:
    reply = api("v2/contacts", "DELETE")
    assert reply.status_code == 405
    assert reply.headers["Allow"] == "GET, POST"


def test_unknown_path_is_401_without_a_token(sandbox: Sandbox) -> None:
    assert requests.get(f"{sandbox.api_url}v2/unicorns", timeout=10).status_code == 401


def fault_of(sandbox: Sandbox, authorization: str | None) -> tuple[str, str]:
    headers = {"Authorization": authorization} if authorization is not None else {}
    reply = requests.get(f"{sandbox.api_url}v2/contacts", headers=headers, timeout=10)
    assert reply.status_code == 401
    assert reply.headers["Content-Type"] == "application/json"
    fault = reply.json()["fault"]
    return fault["faultstring"], fault["detail"]["errorcode"]


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Basic eDp5", "x"])
def test_fault_without_a_bearer(sandbox: Sandbox, authorization: str | None) -> None:
    assert fault_of(sandbox, authorization) == (
        "Invalid access token",
        "oauth.v2.InvalidAccessToken",
    )


def test_fault_of_an_unknown_access_token(sandbox: Sandbox) -> None:
    assert fault_of(sandbox, "Bearer x") == (
        "Invalid Access Token",
        "keymanagement.service.invalid_access_token",
    )


def test_fault_of_an_expired_access_token(sandbox: Sandbox, api: Api) -> None:
    sandbox.clock.advance(86400)
    assert fault_of(sandbox, f"Bearer {api.access_token}") == (
        "Access Token expired",
        "keymanagement.service.access_token_expired",
    )


def test_expired_access_token_is_unknown_after_another_day(sandbox: Sandbox, api: Api) -> None:
    sandbox.clock.advance(2 * 86400)
    sandbox.issue("ab123")
    assert fault_of(sandbox, f"Bearer {api.access_token}")[0] == "Invalid Access Token"


def test_fault_of_a_revoked_account(sandbox: Sandbox, api: Api) -> None:
    sandbox.revoke("ab123")
    assert fault_of(sandbox, f"Bearer {api.access_token}") == (
        "Access Token not approved",
        "keymanagement.service.access_token_not_approved",
    )


def test_access_token_in_the_query_is_rejected(sandbox: Sandbox, api: Api) -> None:
    url = f"{sandbox.api_url}v2/contacts?access_token={api.access_token}"
    assert requests.get(url, timeout=10).status_code == 401


def test_access_token_in_the_query_is_accepted_when_switched(sandbox: Sandbox, api: Api) -> None:
    sandbox.switches.query_access_token = True
    url = f"{sandbox.api_url}v2/contacts?access_token={api.access_token}"
    assert requests.get(url, timeout=10).status_code == 200


# Quota headers


def test_quota_headers_count_requests(api: Api) -> None:
    api("v2/contacts")
    headers = api("v2/contacts").headers
    assert headers["x-keap-product-quota-limit"] == "150000"
    assert headers["x-keap-product-quota-used"] == "2"
    assert headers["x-keap-product-quota-available"] == "149998"
    assert headers["x-keap-product-quota-time-unit"] == "day"
    assert headers["x-keap-product-throttle-limit"] == "1500"
    assert headers["x-keap-product-throttle-time-unit"] == "minute"
    assert headers["x-keap-tenant-id"] == "ab123.infusionsoft.com"
    assert headers["x-request-id"]


def test_quota_expires_at_the_next_midnight_utc(sandbox: Sandbox, api: Api) -> None:
    expiry = int(api("v2/contacts").headers["x-keap-product-quota-expiry-time"])
    assert expiry % 86_400_000 == 0
    assert 0 < expiry / 1000 - sandbox.clock.now() <= 86_400


def test_quota_is_reset_the_next_day(sandbox: Sandbox, api: Api) -> None:
    api("v2/contacts")
    sandbox.clock.advance(86_300)
    fresh = Api(sandbox, "ab123")
    sandbox.clock.advance(100)
    assert fresh("v2/contacts").headers["x-keap-product-quota-used"] == "1"


def test_product_quota_is_shared_by_tenants(sandbox: Sandbox, api: Api) -> None:
    api("v2/contacts")
    headers = Api(sandbox, "cd456")("v2/contacts").headers
    assert headers["x-keap-product-throttle-used"] == "2"
    assert headers["x-keap-tenant-throttle-used"] == "1|1"


def test_tenant_headers_contain_two_windows(api: Api) -> None:
    headers = api("v2/contacts").headers
    assert headers["x-keap-tenant-throttle-time-unit"] == "minute|day"
    assert headers["x-keap-tenant-throttle-limit"] == "10000|250000"
    assert headers["x-keap-tenant-throttle-interval"] == "1|1"


def test_tenant_headers_are_scalars_when_switched(sandbox: Sandbox, api: Api) -> None:
    sandbox.switches.quota_headers = "scalar"
    headers = api("v2/contacts").headers
    assert headers["x-keap-tenant-throttle-time-unit"] == "minute"
    assert headers["x-keap-tenant-throttle-limit"] == "10000"


def test_quota_headers_are_absent_when_switched(sandbox: Sandbox, api: Api) -> None:
    sandbox.switches.quota_headers = "off"
    assert not [name for name in api("v2/contacts").headers if name.startswith("x-keap")]


def test_quota_headers_are_blank_on_401(sandbox: Sandbox) -> None:
    headers = requests.get(f"{sandbox.api_url}v2/contacts", timeout=10).headers
    assert headers["x-keap-product-quota-limit"] == ""
    assert headers["x-keap-tenant-id"] == ""


def test_quota_headers_are_present_on_404(api: Api) -> None:
    assert api("v2/contacts/999").headers["x-keap-product-quota-limit"] == "150000"
