"""Contacts of an account, and their formats in each version of the API."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

# What a request of v2 may contain (CreateUpdateContactRequest of Keap's OpenAPI document).
WRITABLE = frozenset(
    {
        "addresses",
        "anniversary_date",
        "assistant_name",
        "assistant_phone",
        "billing_information",
        "birth_date",
        "company",
        "contact_type",
        "custom_fields",
        "email_addresses",
        "family_name",
        "fax_numbers",
        "given_name",
        "job_title",
        "leadsource_id",
        "middle_name",
        "origin",
        "owner_id",
        "phone_numbers",
        "preferred_locale",
        "preferred_name",
        "prefix",
        "referral_code",
        "social_accounts",
        "source_type",
        "spouse_name",
        "suffix",
        "time_zone",
        "utm_parameters",
        "website",
    }
)
COLLECTIONS = frozenset(
    {
        "addresses",
        "custom_fields",
        "email_addresses",
        "fax_numbers",
        "phone_numbers",
        "social_accounts",
        "utm_parameters",
    }
)
ADDRESSES = ("email_addresses", "phone_numbers", "addresses")
# v1's names of the same properties.
V1_NAMES = {"leadsource_id": "lead_source_id", "birth_date": "birthday"}


@dataclass
class Contact:
    """A contact; times in epoch seconds, `fields` as in v2."""

    number: int
    created_at: float
    updated_at: float
    fields: dict[str, Any] = field(default_factory=dict)
    tag_ids: list[int] = field(default_factory=list)

    @classmethod
    def made_of(cls, fields: Mapping[str, Any], *, number: int, now: float) -> Self:
        """Return a contact from the body of a create request, v1 or v2.

        :raises ValueError: it has no email address, phone number or postal address.
        """
        contact = cls(number, now, now)
        contact.change(fields, now=now)
        if not any(contact.fields.get(each) for each in ADDRESSES):
            raise ValueError("A contact needs an email address, a phone number or an address.")
        return contact

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        return cls(**saved)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def change(self, fields: Mapping[str, Any], *, now: float) -> None:
        """Replace properties; collections whole (keap-facts section 14)."""
        for name in fields.keys() & WRITABLE:
            value = fields[name]
            self.fields[name] = _with_places(name, value) if name in COLLECTIONS else value
        self.updated_at = now

    @property
    def email(self) -> str:
        """The first email address, in lower case."""
        emails = self.fields.get("email_addresses") or []
        first = sorted(emails, key=lambda each: str(each.get("field")))[:1]
        return str(first[0].get("email", "")).lower() if first else ""

    def text(self, name: str) -> str:
        return str(self.fields.get(name) or "")

    def as_v2(self, only: Collection[str] = ()) -> dict[str, Any]:
        """String ids, ISO 8601 dates in UTC, and no null (keap-facts sections 4 and 14)."""
        found = {
            "id": str(self.number),
            **{name: value for name, value in self.fields.items() if value is not None},
            "email_addresses": [
                {"email_opt_status": "NON_MARKETABLE", "is_opt_in": False, **_without_reason(each)}
                for each in self.fields.get("email_addresses") or []
            ],
            "tag_ids": [str(each) for each in self.tag_ids],
            "groups": ",".join(str(each) for each in self.tag_ids),
            "create_time": _moment(self.created_at).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "update_time": _moment(self.updated_at).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        }
        return {name: value for name, value in found.items() if not only or name in only}

    def as_v1(self, optional: Collection[str] = ()) -> dict[str, Any]:
        """Integer ids, dates with a numeric offset (keap-facts section 4)."""
        fields = self.fields
        found = {
            "id": self.number,
            "given_name": fields.get("given_name"),
            "middle_name": fields.get("middle_name"),
            "family_name": fields.get("family_name"),
            "email_addresses": [_without_reason(e) for e in fields.get("email_addresses") or []],
            "email_opted_in": False,
            "email_status": "NonMarketable",
            "phone_numbers": fields.get("phone_numbers") or [],
            "addresses": fields.get("addresses") or [],
            "company": fields.get("company"),
            "tag_ids": self.tag_ids,
            "owner_id": _integer(fields.get("owner_id")),
            "ScoreValue": None,
            "date_created": _moment(self.created_at).strftime("%Y-%m-%dT%H:%M:%S.000+0000"),
            "last_updated": _moment(self.updated_at).strftime("%Y-%m-%dT%H:%M:%S.000+0000"),
        }
        for name in optional:
            v2_name = {v1: v2 for v2, v1 in V1_NAMES.items()}.get(name, name)
            value = fields.get(v2_name)
            found[name] = _v1_custom_fields(value) if name == "custom_fields" else value
        return found


def _with_places(name: str, items: Any) -> list[dict[str, Any]]:
    """Give items without a place the next one: EMAIL1, EMAIL2 …"""
    if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
        raise ValueError(f"{name} must be a list of objects.")
    prefixes = {"email_addresses": "EMAIL", "phone_numbers": "PHONE", "fax_numbers": "FAX"}
    prefix = prefixes.get(name)
    return [
        {"field": f"{prefix}{place}", **each} if prefix else dict(each)
        for place, each in enumerate(items, 1)
    ]


def _without_reason(email: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in email.items() if name != "opt_in_reason"}


def _v1_custom_fields(items: Any) -> list[dict[str, Any]]:
    return [{**each, "id": _integer(each.get("id"))} for each in items or []]


def _integer(value: Any) -> int | None:
    return int(value) if str(value or "").isdecimal() else None


def _moment(epoch_seconds: float) -> datetime:
    return datetime.fromtimestamp(epoch_seconds, UTC)
