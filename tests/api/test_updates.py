"""Updates of v2 that change nothing else."""

from typing import Any

import pytest

from django_infusionsoft.api.read_only import read_only
from django_infusionsoft.api.updates import kind_of, merged, needed, writable

CURRENT: dict[str, Any] = {
    "id": "7",
    "email_addresses": [
        {
            "field": "EMAIL1",
            "email": "a@ex.test",
            "email_opt_status": "MANUAL",
            "is_opt_in": False,
        },
        {"field": "EMAIL2", "email": "b@ex.test", "email_opt_status": "MANUAL", "is_opt_in": True},
    ],
    "phone_numbers": [{"field": "PHONE1", "number": "1", "number_e164": "+11", "type": "Work"}],
    "addresses": [{"field": "BILLING", "line1": "x", "region": "Arizona", "region_code": "US-AZ"}],
    "social_accounts": [{"type": "LINKED_IN", "name": "nell"}],
    "custom_fields": [{"id": "45", "content": "blue"}, {"id": "46", "content": "9"}],
}
EMAIL2 = {"field": "EMAIL2", "email": "b@ex.test"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"email_addresses": [{"field": "EMAIL1", "email": "n@ex.test"}]},
            {"email_addresses": [{"field": "EMAIL1", "email": "n@ex.test"}, EMAIL2]},
        ),
        (
            {"email_addresses": [{"field": "EMAIL3", "email": "c@ex.test", "opt_in_reason": "y"}]},
            {
                "email_addresses": [
                    {"field": "EMAIL1", "email": "a@ex.test"},
                    EMAIL2,
                    {"field": "EMAIL3", "email": "c@ex.test", "opt_in_reason": "y"},
                ]
            },
        ),
        ({"email_addresses": [{"field": "EMAIL1"}]}, {"email_addresses": [EMAIL2]}),
        (
            {"phone_numbers": [{"field": "PHONE1", "number": "2"}]},
            {"phone_numbers": [{"field": "PHONE1", "number": "2", "type": "Work"}]},
        ),
        (
            {"addresses": [{"field": "BILLING", "region_code": "US-CA"}]},
            {"addresses": [{"field": "BILLING", "line1": "x", "region_code": "US-CA"}]},
        ),
        (
            {"custom_fields": [{"id": "45", "content": "red"}]},
            {"custom_fields": [{"id": "45", "content": "red"}, {"id": "46", "content": "9"}]},
        ),
        (
            {"custom_fields": [{"id": 45, "content": "red"}]},
            {"custom_fields": [{"id": 45, "content": "red"}, {"id": "46", "content": "9"}]},
        ),
        (
            {"addresses": [{"field": "BILLING", "region": "Ohio"}]},
            {"addresses": [{"field": "BILLING", "line1": "x", "region": "Ohio"}]},
        ),
        (
            {"addresses": [{**CURRENT["addresses"][0], "region": "Ohio"}]},
            {"addresses": [{"field": "BILLING", "line1": "x", "region": "Ohio"}]},
        ),
        (
            {"addresses": [{**CURRENT["addresses"][0], "line1": "y"}]},
            {"addresses": [{"field": "BILLING", "line1": "y", "region_code": "US-AZ"}]},
        ),
        ({"custom_fields": []}, {"custom_fields": []}),
        ({"given_name": "Nell"}, {"given_name": "Nell"}),
    ],
)
def test_other_items_are_kept(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert merged(changes, CURRENT) == expected


def test_reason_for_an_opt_in_is_not_kept_for_another_address() -> None:
    before = {"field": "EMAIL1", "email": "a@x", "opt_in_reason": "said so"}
    other = {"email_addresses": [{"field": "EMAIL1", "email": "b@x"}]}
    assert merged(other, {"email_addresses": [before]}) == other


def test_what_is_unset_is_not_sent_unless_the_caller_sets_it() -> None:
    current = {
        "addresses": [{"field": "BILLING", "line1": "x", "line2": None}],
        "custom_fields": [{"id": "45", "content": "blue"}, {"id": "46", "content": None}],
    }
    changes = {
        "addresses": [{"field": "BILLING", "line1": "y"}],
        "custom_fields": [{"id": "45", "content": None}],
    }
    assert merged(changes, current) == changes


def test_new_postal_code_replaces_the_zip_code() -> None:
    zips = {"zip_code": "85001", "zip_four": "1234"}
    current = {"addresses": [{"field": "BILLING", "line1": "x", **zips}]}
    changes = {"addresses": [{"field": "BILLING", "postal_code": "44101"}]}
    after = {"field": "BILLING", "line1": "x", "postal_code": "44101"}
    assert merged(changes, current) == {"addresses": [after]}


def test_item_without_what_tells_it_apart_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs 'field'"):
        merged({"email_addresses": [{"email": "n@ex.test"}]}, CURRENT)


def test_read_only_properties_are_left_out() -> None:
    fetched = {**CURRENT, "create_time": "x", "tag_ids": ["1"], "groups": "1", "given_name": "N"}
    assert set(writable("v2/contacts/7", fetched)) == {*CURRENT, "given_name"} - {"id"}
    with pytest.raises(ValueError, match="nothing to change"):
        writable("v2/contacts/7", {"id": "7", "update_time": "x"})


@pytest.mark.parametrize(
    ("kind", "returned", "taken"),
    [
        ("businessProfile", "GetBusinessProfileResponse", "UpdateBusinessProfileRequest"),
        ("categories", "UpdateTagCategoryResponse", "CreateUpdateTagCategoryRequest"),
        ("companies", "Company", "UpdateCompanyRequest"),
        ("contacts", "Contact", "CreateUpdateContactRequest"),
        ("customFields", "CustomFieldMetaData", "UpdateCustomFieldMetaDataRequest"),
        ("expenses", "LeadSourceExpense", "UpdateLeadSourceExpenseRequest"),
        ("items", "OrderItem", "UpdateOrderItemRequest"),
        ("leadSources", "LeadSource", "CreateLeadSourceRequest"),
        ("notes", "UpdateNoteResponse", "UpdateNoteRequest"),
        ("opportunities", "RestV2Opportunity", "UpdateOpportunityRequestV2"),
        ("options", "ProductOption", "UpdateProductOptionRequest"),
        ("orders", "OrderV2", "UpdateOrderRequest"),
        ("products", "RestV2ProductDetail", "UpdateProductRequestDetail"),
        (
            "recurringExpenses",
            "LeadSourceRecurringExpense",
            "LeadSourceRecurringExpenseUpdateRequest",
        ),
        ("stages", "RestOpportunityStage", "UpdateOpportunityStageRequest"),
        ("subscriptions", "SubscriptionPlan", "UpdateSubscriptionPlanRequest"),
        ("tags", "UpdateTagResponse", "CreateUpdateTagRequest"),
        ("tasks", "UpdateTaskResponse", "CreateUpdateTaskRequest"),
        ("types", "ContactLinkType", "UpdateContactLinkTypeRequest"),
        ("users", "User", "UpdateUserRequest"),
    ],
)
def test_read_only_properties_are_those_of_keaps_sdk(kind: str, returned: str, taken: str) -> None:
    sdk: Any = pytest.importorskip("keap_core_v2_client")

    def names(model: str) -> set[str]:
        return set(getattr(sdk, model).model_fields) - {"additional_properties"}

    assert read_only(kind) & (names(returned) | names(taken)) == names(returned) - names(taken)


@pytest.mark.parametrize(
    ("url", "changes", "expected"),
    [
        ("v2/contacts/7", {"given_name": "N"}, None),
        ("v2/contacts/7", {"custom_fields": []}, None),
        ("v2/contacts/7", {"custom_fields": [1]}, {"fields": "custom_fields"}),
        ("/crm/rest/v2/companies/7", {"custom_fields": [1]}, {"fields": "custom_fields"}),
        ("v2/contacts/7/notes/9", {"custom_fields": [1]}, {"fields": "custom_fields"}),
        ("v2/orders/7", {"custom_fields": [1]}, {}),
    ],
)
def test_object_is_read_only_if_a_collection_changes(
    url: str, changes: dict[str, Any], expected: dict[str, str] | None
) -> None:
    assert needed(url, changes) == expected


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://api.keap.com/crm/rest/v2/opportunities/7", "opportunities"),
        ("v2/contacts/7/?fields=a/b", "contacts"),
        ("v2/contacts/7/notes/9", "notes"),
        ("v2/businessProfile", "businessProfile"),
    ],
)
def test_kind_is_that_of_the_url(url: str, kind: str) -> None:
    assert kind_of(url) == kind


def test_url_of_v1_is_an_error() -> None:
    with pytest.raises(ValueError, match="v2/contacts/7"):
        kind_of("v1/contacts/7")
