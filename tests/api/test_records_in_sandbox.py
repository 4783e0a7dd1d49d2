"""Lists, updates, custom fields and partial failures, as the sandbox plays them."""

from collections.abc import Callable
from typing import Any

import pytest

from django_infusionsoft.api import retries
from django_infusionsoft.api.dates import read_datetime, write_datetime
from django_infusionsoft.exceptions import PartialFailure
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults

Trouble = Callable[[Sandbox], Any]
TROUBLES: list[Trouble] = [
    lambda sandbox: sandbox.revoke_access_tokens("ab123"),
    lambda sandbox: sandbox.plan(faults.throttled(retry_after=0), endpoint="api"),
    lambda sandbox: sandbox.plan(faults.drop_before(), endpoint="api"),
    lambda sandbox: sandbox.plan(faults.drop_midway(is_reset=True), endpoint="api"),
    lambda sandbox: sandbox.plan(faults.error_503(retry_after=0), endpoint="api"),
]
LISTS = [("v1/contacts", {"limit": 2}), ("v2/contacts", {"page_size": 2})]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pauses that Keap does not ask for be short."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def emails(sandbox: Sandbox) -> list[str]:
    """The first email addresses of the account's contacts, several pages of them."""
    for number in range(9):
        email = {"email": f"c{number}@ex.test", "field": "EMAIL1"}
        sandbox.add("contacts", {"email_addresses": [email]})
    return [each["email_addresses"][0]["email"] for each in sandbox.contacts]


def email_of(contact: dict[str, Any]) -> str:
    return str(contact["email_addresses"][0]["email"])


@pytest.mark.parametrize(("url", "params"), LISTS)
def test_each_item_is_yielded_once_although_pages_fail(
    sandbox: Sandbox,
    credential: Credential,
    emails: list[str],
    url: str,
    params: dict[str, Any],
) -> None:
    found: list[str] = []
    troubles = iter(TROUBLES)
    with credential.session() as session:
        for contact in session.items(url, **params):
            if len(found) % 2 == 1 and (trouble := next(troubles, None)):
                trouble(sandbox)
            found.append(email_of(contact))
    assert found == emails
    assert next(troubles, None) is None


def test_update_keeps_what_it_does_not_change(sandbox: Sandbox, credential: Credential) -> None:
    emails = [{"field": f"EMAIL{number}", "email": f"{number}@ex.test"} for number in (1, 2)]
    added = sandbox.add("contacts", {"given_name": "Nell", "email_addresses": emails})
    url = f"v2/contacts/{added['id']}"
    with credential.session() as session:
        new = {"field": "EMAIL1", "email": "new@ex.test"}
        session.update(url, {"email_addresses": [new]})
        contact = session.call("GET", url)
        assert [email_of(contact), contact["email_addresses"][1]["email"]] == [
            "new@ex.test",
            "2@ex.test",
        ]
        # What Keap has returned can be sent back.
        session.update(url, {**contact, "family_name": "Ray"})
        assert session.call("GET", url) == {
            **contact,
            "family_name": "Ray",
            "update_time": session.call("GET", url)["update_time"],
        }


def test_custom_fields_are_written_and_read_by_label(
    sandbox: Sandbox, credential: Credential
) -> None:
    contact = sandbox.contacts[0]
    with credential.session() as session:
        for label in ("Shoe Size", "Color"):
            field = {"label": label, "field_type": "TEXT"}
            session.call("POST", "v2/contacts/model/customFields", json=field)
        url = f"v2/contacts/{contact['id']}"
        session.update(url, {"custom_fields": {"Shoe Size": "38"}})
        session.update(url, {"custom_fields": {"Color": "blue"}})
        found = session.call("GET", url, params={"fields": "custom_fields"})
        assert session.custom_field_values("contacts", found) == {
            "Shoe Size": "38",
            "Color": "blue",
        }
        with pytest.raises(LookupError, match="There are: Color, Shoe Size"):
            session.update(url, {"custom_fields": {"Colour": "blue"}})


def test_tag_that_some_contacts_do_not_get_is_a_partial_failure(
    sandbox: Sandbox, credential: Credential
) -> None:
    tag, contact = sandbox.add("tags", {"name": "Customer"}), sandbox.contacts[0]
    url, ids = f"v2/tags/{tag['id']}/contacts:applyTags", [contact["id"], "999999"]
    with credential.session() as session, pytest.raises(PartialFailure) as caught:
        session.call("POST", url, json={"contact_ids": ids})
    assert caught.value.succeeded == [contact["id"]]
    assert [each for each, _ in caught.value.failures] == ["999999"]


def test_times_are_read_from_both_versions(sandbox: Sandbox, credential: Credential) -> None:
    contact_id = sandbox.contacts[0]["id"]
    with credential.session() as session:
        v1 = session.call("GET", f"v1/contacts/{contact_id}")
        v2 = session.call("GET", f"v2/contacts/{contact_id}")
    assert read_datetime(v1["date_created"]) == read_datetime(v2["create_time"])
    assert write_datetime(read_datetime(v1["date_created"])) == v2["create_time"]
