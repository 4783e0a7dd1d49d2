"""Contacts of an account, and their formats in each version of the API."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Self


@dataclass(frozen=True)
class Contact:
    """A contact; `created_at` in epoch seconds."""

    number: int
    created_at: float
    given_name: str | None = None
    family_name: str | None = None
    emails: tuple[str, ...] = ()
    phones: tuple[str, ...] = ()

    @classmethod
    def made_of(cls, fields: Mapping[str, Any], *, number: int, created_at: float) -> Self:
        """Return a contact from the body of a create request, v1 or v2.

        :raises ValueError: it has no email address, phone number or postal address.
        """
        emails = _texts(fields.get("email_addresses"), "email")
        phones = _texts(fields.get("phone_numbers"), "number")
        if not (emails or phones or fields.get("addresses")):
            raise ValueError("A contact needs an email address, a phone number or an address.")
        given_name, family_name = fields.get("given_name"), fields.get("family_name")
        return cls(number, created_at, given_name, family_name, emails, phones)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        lists = {"emails": tuple(saved["emails"]), "phones": tuple(saved["phones"])}
        return cls(**{**saved, **lists})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_v1(self) -> dict[str, Any]:
        """Integer id, dates with a numeric offset (keap-facts section 4)."""
        written_at = _moment(self.created_at).strftime("%Y-%m-%dT%H:%M:%S.000+0000")
        return {
            "id": self.number,
            "given_name": self.given_name,
            "middle_name": None,
            "family_name": self.family_name,
            "email_addresses": self._emails(),
            "email_opted_in": False,
            "email_status": "NonMarketable",
            "phone_numbers": self._phones(),
            "addresses": [],
            "company": None,
            "tag_ids": [],
            "custom_fields": [],
            "owner_id": None,
            "ScoreValue": None,
            "date_created": written_at,
            "last_updated": written_at,
        }

    def as_v2(self) -> dict[str, Any]:
        """String id, ISO 8601 dates in UTC (keap-facts section 4)."""
        written_at = _moment(self.created_at).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "id": str(self.number),
            "given_name": self.given_name,
            "family_name": self.family_name,
            "email_addresses": self._emails(email_opt_status="NON_MARKETABLE", is_opt_in=False),
            "phone_numbers": self._phones(),
            "addresses": [],
            "tag_ids": [],
            "custom_fields": [],
            "owner_id": None,
            "leadsource_id": None,
            "create_time": written_at,
            "update_time": written_at,
        }

    def _emails(self, **more: object) -> list[dict[str, Any]]:
        return [
            {"email": email, "field": f"EMAIL{place}", **more}
            for place, email in enumerate(self.emails, 1)
        ]

    def _phones(self) -> list[dict[str, Any]]:
        return [
            {"number": number, "field": f"PHONE{place}", "type": None, "extension": None}
            for place, number in enumerate(self.phones, 1)
        ]


def _texts(entries: object, name: str) -> tuple[str, ...]:
    if not isinstance(entries, list):
        return ()
    values = [entry.get(name) for entry in entries if isinstance(entry, dict)]
    return tuple(value for value in values if isinstance(value, str) and value)


def _moment(epoch_seconds: float) -> datetime:
    return datetime.fromtimestamp(epoch_seconds, UTC)
