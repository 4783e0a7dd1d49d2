"""The part of Keap's API that the sandbox implements (keap-facts, sections 3, 4, 6 and 7)."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from django_infusionsoft.sandbox import Fault, Sandbox, faults


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


# Contacts of v2


NELL = {
    "given_name": "Nell",
    "family_name": "Ito",
    "email_addresses": [
        {"field": "EMAIL1", "email": "nell@ex.test"},
        {"field": "EMAIL2", "email": "n.ito@ex.test"},
    ],
    "phone_numbers": [{"field": "PHONE2", "number": "(480) 555-0100", "type": "Work"}],
    "addresses": [{"field": "BILLING", "line1": "1 Road", "country_code": "USA"}],
    "custom_fields": [{"id": "1", "content": "blue"}],
    "job_title": "Baker",
    "company": {"id": "9"},
}


def test_all_fields_of_a_contact_come_back(api: Api) -> None:
    created = api("v2/contacts", "POST", json=NELL).json()
    for name, value in NELL.items():
        if name != "email_addresses":
            assert created[name] == value
    emails = [(each["field"], each["email"]) for each in created["email_addresses"]]
    assert emails == [("EMAIL1", "nell@ex.test"), ("EMAIL2", "n.ito@ex.test")]
    assert None not in created.values()
    assert created["create_time"].endswith("Z")


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("filter=email==nell@ex.test", ["Nell"]),
        ("filter=email==N.ITO@ex.test", ["Nell"]),
        ("filter=given_name==ne*;family_name==Ito", ["Nell"]),
        ("filter=given_name==nobody", []),
        ("filter=ids==1,3", ["Bea", "Nell"]),
        ("filter=start_update_time==2020-01-01T00:00:00.000Z", ["Bea", "Otto", "Nell"]),
        ("order_by=given_name desc", ["Otto", "Nell", "Bea"]),
    ],
)
def test_contacts_are_filtered_and_ordered(api: Api, query: str, names: list[str]) -> None:
    api("v2/contacts", "POST", json=NELL)
    found = api(f"v2/contacts?{query}").json()["contacts"]
    assert [each["given_name"] for each in found] == names


@pytest.mark.parametrize(
    "query",
    [
        "filter=color==blue",
        "filter=email",
        "filter=given_name==*ell",
        "filter=start_update_time==2026-01-01",
        "order_by=shoe_size",
        "fields=shoe_size",
    ],
)
def test_what_is_wrong_in_a_query_is_a_400(api: Api, query: str) -> None:
    assert api(f"v2/contacts?{query}").status_code == 400


def test_only_the_named_fields_are_returned(api: Api) -> None:
    (first, *_) = api("v2/contacts?fields=given_name,email_addresses").json()["contacts"]
    assert first.keys() == {"id", "given_name", "email_addresses"}


def test_contact_is_created_twice_without_an_option(api: Api) -> None:
    first, second = (api("v2/contacts", "POST", json=NELL) for _ in range(2))
    assert first.json()["id"] != second.json()["id"]
    found = api("v2/contacts?duplicate_option=Email", "POST", json={**NELL, "given_name": "N"})
    assert (found.status_code, found.json()["id"]) == (200, first.json()["id"])
    other = {**NELL, "given_name": "M"}
    created = api("v2/contacts?duplicate_option=EmailAndName", "POST", json=other)
    assert created.status_code == 201
    option = "v2/contacts?duplicate_option=EmailAndNameAndCompany"
    assert api(option, "POST", json=NELL).status_code == 201  # never matches
    assert api("v2/contacts?duplicate_option=Phone", "POST", json=NELL).status_code == 400


def test_update_replaces_collections_whole(api: Api) -> None:
    number = api("v2/contacts", "POST", json=NELL).json()["id"]
    email = {"field": "EMAIL1", "email": "new@ex.test"}
    changes = {"email_addresses": [email], "given_name": "N", "job_title": "Cook"}
    mask = "update_mask=email_addresses&update_mask=given_name"
    changed = api(f"v2/contacts/{number}?{mask}", "PATCH", json=changes).json()
    assert [each["email"] for each in changed["email_addresses"]] == ["new@ex.test"]
    assert (changed["given_name"], changed["job_title"]) == ("N", "Baker")
    assert api(f"v2/contacts/{number}", "PATCH", json={"tag_ids": ["1"]}).status_code == 400


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_deleted_contact_is_gone(api: Api, version: str) -> None:
    assert api(f"{version}/contacts/1", "DELETE").status_code == 204
    assert api(f"{version}/contacts/1").status_code == 404
    assert api("v2/contacts", "POST", json=NELL).json()["id"] == "3"


def test_contact_of_v1_can_be_upserted(api: Api) -> None:
    body = {"email_addresses": NELL["email_addresses"], "duplicate_option": "Email"}
    created = api("v1/contacts", "PUT", json={**body, "given_name": "Nell"})
    found = api("v1/contacts", "PUT", json={**body, "given_name": "N"})
    assert (created.status_code, found.status_code) == (201, 200)
    assert found.json()["id"] == created.json()["id"]
    assert api("v1/contacts", "PUT", json={**body, "duplicate_option": "No"}).status_code == 400


@pytest.mark.parametrize("body", [{"foo": 1}, {"tag_ids": [1]}, {"email_status": "x"}])
def test_property_that_v1_does_not_take_is_a_400(api: Api, body: dict[str, Any]) -> None:
    assert api("v1/contacts/1", "PATCH", json=body).status_code == 400


def test_v1_leaves_out_optional_properties(api: Api) -> None:
    number = api("v2/contacts", "POST", json=NELL).json()["id"]
    assert "custom_fields" not in api(f"v1/contacts/{number}").json()
    found = api(f"v1/contacts/{number}?optional_properties=custom_fields,job_title").json()
    assert (found["custom_fields"], found["job_title"]) == (
        [{"id": 1, "content": "blue"}],
        "Baker",
    )
    assert api(f"v1/contacts/{number}?optional_properties=color").status_code == 400


def test_custom_field_is_in_the_model(api: Api) -> None:
    body = {"label": "Favorite Color", "field_type": "TEXT"}
    created = api("v2/contacts/model/customFields", "POST", json=body).json()["custom_field"]
    assert (created["label"], created["field_name"]) == ("Favorite Color", "FavoriteColor")
    assert api("v2/contacts/model").json()["custom_fields"] == [created]


# Tags


def test_tags_are_applied_and_removed_with_a_result_for_each(api: Api) -> None:
    tag = api("v2/tags", "POST", json={"name": "x" * 300}).json()
    assert len(tag["name"]) == 255
    path = f"v2/tags/{tag['id']}/contacts"
    ids = {"contact_ids": ["1", "999"]}
    first, second = (api(f"{path}:applyTags", "POST", json=ids).json() for _ in range(2))
    assert first == {"results": {"1": "SUCCESS", "999": "CONTACT_DOES_NOT_EXIST"}}
    assert second["results"]["1"] == "ALREADY_APPLIED"
    assert [each["id"] for each in api(path).json()["contacts"]] == ["1"]
    assert api("v2/contacts/1").json()["tag_ids"] == [tag["id"]]
    assert api(f"{path}:removeTags", "POST", json=ids).status_code == 204
    assert api(path).json()["contacts"] == []


def test_tags_are_listed_with_their_category(api: Api) -> None:
    category = api("v2/tags/categories", "POST", json={"name": "Leads"}).json()
    assert api(f"v2/tags/categories/{category['id']}").json() == category
    assert api("v2/tags/categories").json()["tag_categories"] == [category]
    body = {"name": "Hot", "category": {"id": category["id"]}}
    tag = api("v2/tags", "POST", json=body).json()
    api("v2/tags", "POST", json={"name": "Cold"})
    assert api("v2/tags?filter=name==hot").json()["tags"] == [tag]
    found = api(f"v2/tags?filter=category_id=={category['id']}").json()["tags"]
    assert [each["name"] for each in found] == ["Hot"]
    found = api("v2/tags?filter=category_id==NONE").json()["tags"]
    assert [each["name"] for each in found] == ["Cold"]
    assert api("v2/tags", "POST", json={}).status_code == 400
    assert api("v2/tags", "POST", json={**body, "category": {"id": "9"}}).status_code == 400


def test_tags_of_v1_have_a_limit(api: Api) -> None:
    tag = api("v2/tags", "POST", json={"name": "Hot"}).json()
    number = int(tag["id"])
    reply = api("v1/contacts/1/tags", "POST", json={"tagIds": [number, 99]})
    assert reply.json() == {str(number): "SUCCESS", "99": "FAILURE"}
    assert api("v1/contacts/1").json()["tag_ids"] == [number]
    assert api("v1/contacts/1/tags", "POST", json={"tagIds": [1] * 101}).status_code == 400
    assert api(f"v1/contacts/1/tags?ids={number}", "DELETE").status_code == 204
    assert api("v1/contacts/1").json()["tag_ids"] == []


def test_deleted_tag_is_gone_from_its_contacts(api: Api) -> None:
    tag = api("v2/tags", "POST", json={"name": "Hot"}).json()
    api(f"v2/tags/{tag['id']}/contacts:applyTags", "POST", json={"contact_ids": ["1"]})
    assert api(f"v2/tags/{tag['id']}", "DELETE").status_code == 204
    assert api(f"v2/tags/{tag['id']}").status_code == 404
    assert api("v2/contacts/1").json()["tag_ids"] == []


def test_objects_can_be_added_and_seen_without_the_api(sandbox: Sandbox, api: Api) -> None:
    added = sandbox.add("contacts", NELL)
    assert sandbox.contacts[-1] == added == api(f"v2/contacts/{added['id']}").json()
    with pytest.raises(ValueError, match="needs an email address"):
        sandbox.add("contacts", {"given_name": "Nobody"})


def test_business_profile_names_the_account(api: Api) -> None:
    assert api("v2/businessProfile").json()["name"] == "Acme Bakery"


# What a test can see


def test_requests_of_the_api_are_recorded(sandbox: Sandbox, api: Api) -> None:
    sandbox.plan(faults.drop_before(), endpoint="api")
    with pytest.raises(requests.ConnectionError):
        api("v2/contacts")
    api("v2/contacts?filter=email==x", "POST", data=b"{}")
    dropped, refused = sandbox.api_requests
    assert (dropped.method, dropped.status, dropped.fault) == ("GET", 0, "drop-before")
    assert (refused.method, refused.path) == ("POST", "/crm/rest/v2/contacts")
    assert (refused.query, refused.body) == ({"filter": "email==x"}, b"{}")
    assert (refused.account, refused.status) == ("ab123", 400)


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


@pytest.mark.parametrize(
    ("method", "path", "status", "what"),
    [
        ("GET", "v2/unicorns", 501, "GET /crm/rest/v2/unicorns"),
        ("DELETE", "v2/contacts", 501, "DELETE /crm/rest/v2/contacts"),
        ("GET", "v2/contacts/abc", 501, "GET /crm/rest/v2/contacts/abc"),
        ("GET", "v2/contacts?email=a@ex.test", 400, "parameter email"),
        ("GET", "v1/contacts?since=2026-01-01", 400, "parameter since"),
    ],
)
def test_what_is_not_played_is_refused(
    sandbox: Sandbox,
    api: Api,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    status: int,
    what: str,
) -> None:
    reply = api(path, method)
    assert reply.status_code == status
    assert what in reply.json()["message"]
    assert sandbox.refused == [reply.json()["message"]]
    assert reply.json()["message"] in caplog.text


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
    assert headers["x-keap-product-quota-time-unit"] == "day"
    assert headers["x-keap-tenant-throttle-time-unit"] == "minute|day"
    assert headers["x-keap-tenant-throttle-interval"] == "1|1"


def test_quota_headers_are_present_on_404(api: Api) -> None:
    assert api("v2/contacts/999").headers["x-keap-product-quota-limit"] == "150000"


@pytest.mark.parametrize("fault", [faults.throttled(), faults.spike(), faults.error_503()])
def test_quota_headers_are_present_on_faults(sandbox: Sandbox, api: Api, fault: Fault) -> None:
    sandbox.plan(fault, endpoint="api")
    assert api("v2/contacts").headers["x-keap-product-quota-used"] == "1"
    sandbox.plan(faults.answer(502, is_processed=True), endpoint="api")
    assert api("v2/contacts").headers["x-keap-product-quota-used"] == "2"


def test_quota_headers_are_blank_on_a_fault_of_401(sandbox: Sandbox, api: Api) -> None:
    sandbox.plan("access-token-revoked", endpoint="api")
    reply = api("v2/contacts")
    assert reply.json()["fault"]["faultstring"] == "Access Token not approved"
    assert reply.headers["x-keap-product-quota-limit"] == ""
    assert api("v2/contacts").status_code == 200


@pytest.mark.parametrize(
    "limit",
    ["client_minute_limit", "client_day_limit", "tenant_minute_limit", "tenant_day_limit"],
)
def test_request_over_a_limit_is_refused(sandbox: Sandbox, api: Api, limit: str) -> None:
    setattr(sandbox.switches, limit, 1)
    assert api("v2/contacts").status_code == 200
    reply = api("v2/contacts", "POST", json=new_contact(1))
    assert reply.status_code == 429
    assert reply.json()["code"] == "429"
    assert reply.json()["message"] == "Quota Exceeded"
    assert len(sandbox.contacts) == 2
    sandbox.switches.quota_enforced = False
    assert api("v2/contacts").status_code == 200


def test_exceeded_limit_names_nothing_available(sandbox: Sandbox, api: Api) -> None:
    sandbox.switches.client_minute_limit = 1
    api("v2/contacts")
    headers = api("v2/contacts").headers
    assert headers["x-keap-product-throttle-limit"] == "1"
    assert headers["x-keap-product-throttle-available"] == "0"


def test_too_many_requests_in_a_second_are_a_spike(sandbox: Sandbox, api: Api) -> None:
    sandbox.switches.client_second_limit = 1
    refused = [
        reply for reply in (api("v2/contacts") for _ in range(9)) if reply.status_code != 200
    ]
    errorcode = refused[0].json()["fault"]["detail"]["errorcode"]
    assert errorcode == "policies.ratelimit.SpikeArrestViolation"
    sandbox.clock.advance(60)
    assert api("v2/contacts").status_code == 200
