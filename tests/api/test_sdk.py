"""Keap's official SDK, with a credential's access token."""

import os
import sys
from typing import Any

import pytest
from django.test import override_settings
from urllib3.exceptions import HTTPError

from django_infusionsoft.api.quota import Quota
from django_infusionsoft.api.sdk import api_client
from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.keap.urls import resolve
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults
from tests.keap.endpoints import in_child
from tests.support import row

keap: Any = pytest.importorskip("keap_core_v2_client")


def contacts_of(credential: Credential, **configuration: Any) -> Any:
    return keap.ContactApi(api_client(credential, **configuration))


def first_name(credential: Credential) -> str:
    found = contacts_of(credential).list_contacts(page_size=1).contacts
    return str(found[0].given_name)


def test_contacts_can_be_listed_created_read_updated_and_deleted(credential: Credential) -> None:
    api = contacts_of(credential)
    email = keap.EmailAddressRequest(email="nell@ex.test", field="EMAIL1")
    new = keap.CreateUpdateContactRequest(given_name="Nell", email_addresses=[email])
    created = api.create_contact(create_update_contact_request=new)
    assert created.email_addresses[0].email == "nell@ex.test"
    found = api.list_contacts(filter="email==nell@ex.test").contacts
    assert [each.id for each in found] == [created.id]
    changed = api.update_contact(
        contact_id=created.id,
        update_mask=["given_name", "job_title"],
        create_update_contact_request=keap.CreateUpdateContactRequest(
            given_name="N", job_title="Baker"
        ),
    )
    assert (changed.given_name, changed.job_title) == ("N", "Baker")
    api.delete_contact(contact_id=created.id)
    with pytest.raises(keap.exceptions.NotFoundException):
        api.get_contact(contact_id=created.id)


def test_tags_can_be_listed_created_applied_and_removed(credential: Credential) -> None:
    api = keap.TagsApi(api_client(credential))
    tag = api.create_tag(create_update_tag_request=keap.CreateUpdateTagRequest(name="Hot"))
    assert [each.name for each in api.list_tags().tags] == ["Hot"]
    contacts = keap.ApplyRemoveTagRequest(contact_ids=["1"])
    applied = api.apply_tags(tag_id=tag.id, apply_remove_tag_request=contacts)
    assert applied.results == {"1": "SUCCESS"}
    api.remove_tags(tag_id=tag.id, apply_remove_tag_request=contacts)
    assert contacts_of(credential).get_contact(contact_id="1").tag_ids == []


def test_user_info_names_the_account(credential: Credential) -> None:
    assert keap.UsersApi(api_client(credential)).get_user_info().tenant_id == "ab123"


def test_revoked_access_token_is_replaced_once(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.revoke_access_tokens("ab123")
    assert first_name(credential) == "Bea"
    assert len(sandbox.token_requests) == 1


def test_access_token_of_another_process_is_used(sandbox: Sandbox, credential: Credential) -> None:
    stale = row(credential)
    sandbox.switches.refresh_revokes_access_tokens = True
    credential.refresh()
    assert first_name(stale) == "Bea"
    assert len(sandbox.token_requests) == 1


def test_second_401_is_raised(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.plan(faults.answer(401, {}), endpoint="api", times=None)
    for _ in range(2):
        with pytest.raises(keap.ApiException) as caught:
            first_name(credential)
        assert caught.value.status == 401
    assert len(sandbox.token_requests) == 1


def test_limit_of_keap_comes_out_with_its_quota(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.plan(faults.throttled(), endpoint="api", times=None)
    with pytest.raises(keap.ApiException) as caught:
        first_name(credential)
    assert caught.value.status == 429
    assert isinstance(Quota.of(caught.value), Quota)


def test_call_has_a_timeout_and_is_not_repeated(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.plan(faults.latency(20), endpoint="api", times=None)
    short = override_settings(INFUSIONSOFT_READ_TIMEOUT_SECONDS=0.2)
    with short, pytest.raises(HTTPError, match="timed out"):
        first_name(credential)


def test_access_token_is_not_sent_to_another_host(credential: Credential) -> None:
    with pytest.raises(ConfigurationError, match="INFUSIONSOFT_API_URL"):
        contacts_of(credential, host="http://127.0.0.1:9/crm").list_contacts()


def test_configuration_of_the_caller_is_used(credential: Credential) -> None:
    client = api_client(credential, ssl_ca_cert="/ca.pem")
    assert client.configuration.ssl_ca_cert == "/ca.pem"
    assert client.configuration.host == resolve("v2/x").removesuffix("/rest/v2/x")


def test_forked_process_uses_connections_of_its_own(credential: Credential) -> None:
    assert first_name(credential) == "Bea"
    api = contacts_of(credential)

    def connections() -> bytes:
        api.list_contacts(page_size=1)
        return str(id(api.api_client.rest_client)).encode()

    before = connections()
    assert connections() == before
    if hasattr(os, "fork"):
        assert in_child(connections) != before


def test_missing_sdk_is_named(credential: Credential, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "django_infusionsoft.api.sdk_client", raising=False)
    monkeypatch.setitem(sys.modules, "keap_core_v2_client.api_client", None)
    with pytest.raises(ConfigurationError, match=r"django-infusionsoft\[sdk\]"):
        api_client(credential)
