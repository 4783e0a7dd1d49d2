"""What Keap returns and does not take, by its OpenAPI document of v2 (keap-facts 13)."""

from collections.abc import Mapping
from typing import Final

OF_ALL: Final = frozenset(
    {
        "create_time",
        "created_by",
        "created_by_user_id",
        "created_time",
        "creation_time",
        "id",
        "last_updated_by",
        "last_updated_by_user_id",
        "last_updated_time",
        "modification_time",
        "update_time",
        "updated_by",
        "updated_time",
    }
)
# By the kind of objects, as in their URLs.
OF_KIND: Final[Mapping[str, frozenset[str]]] = {
    "businessProfile": frozenset({"business_type", "language_tag", "logo_url", "time_zone"}),
    "companies": frozenset({"account_id", "groups"}),
    "contacts": frozenset({"account_id", "groups", "links", "score_value", "tag_ids"}),
    "customFields": frozenset(
        {"default_value", "field_name", "field_type", "group_name", "record_type"}
    ),
    "expenses": frozenset({"lead_source_id", "lead_source_recurring_expense_id"}),
    "items": frozenset(
        {"discount", "item_type", "product", "special", "subscription_id", "subscription_plan"}
    ),
    "notes": frozenset({"assigned_to_user", "pinned_at"}),
    "opportunities": frozenset(
        {
            "contact",
            "lead_source",
            "monthly_revenue",
            "objection",
            "order_revenue",
            "stage",
            "stage_entrance_time",
            "status",
            "status_id",
            "user",
        }
    ),
    "options": frozenset({"list_items", "option_type", "product_id", "text_rules"}),
    "orders": frozenset(
        {
            "allow_payment",
            "allow_paypal",
            "contact",
            "credit_status",
            "files",
            "invoice_id",
            "order_items",
            "promo_code",
            "refund_status",
            "refund_total",
            "shipping_information",
            "source_type",
            "status",
            "synced",
            "total",
            "total_due",
            "total_paid",
        }
    ),
    "products": frozenset(
        {"categories", "has_legacy_image", "inventory", "options", "subscription_plans"}
    ),
    "recurringExpenses": frozenset({"lead_source_id", "next_expense_time"}),
    "subscriptions": frozenset({"subscription_plan_name"}),
    "users": frozenset(
        {
            "admin",
            "email_addresses",
            "global_user_id",
            "keap_id",
            "middle_name",
            "nickname",
            "partner",
            "social_accounts",
            "spouse_name",
            "status",
            "suffix",
        }
    ),
}
# By the collection, in each of its items.
OF_ITEMS: Final[Mapping[str, frozenset[str]]] = {
    "email_addresses": frozenset({"email_opt_status", "is_opt_in"}),
    "phone_numbers": frozenset({"number_e164"}),
}


def read_only(kind: str) -> frozenset[str]:
    """Return the names that an update of such an object leaves out.

    :param kind: as in the URL of the object: ``contacts``, ``orders`` …
    """
    return OF_ALL | OF_KIND.get(kind, frozenset())
