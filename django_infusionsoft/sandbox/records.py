"""The objects of each account: contacts, tags, and what they refer to."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, Self, TypeVar

from .contacts import Contact
from .people import Account
from .tags import Tag, TagCategory


class Stored(Protocol):
    number: int

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self: ...

    def as_json(self) -> dict[str, Any]: ...


S = TypeVar("S", bound=Stored)


class Table(Generic[S]):
    """Objects of one kind by number, oldest first. Numbers are never used again."""

    def __init__(self, kind: type[S]) -> None:
        self._kind = kind
        self._rows: dict[int, S] = {}
        self._last = 0

    def all(self) -> list[S]:
        return list(self._rows.values())

    def get(self, number: int) -> S | None:
        return self._rows.get(number)

    def add(self, make: Callable[[int], S]) -> S:
        """Store a new object, made with the next number."""
        row = make(self._last + 1)
        self._last += 1
        self._rows[row.number] = row
        return row

    def delete(self, number: int) -> bool:
        return self._rows.pop(number, None) is not None

    def as_json(self) -> dict[str, Any]:
        return {"last": self._last, "rows": [each.as_json() for each in self._rows.values()]}

    def restore(self, saved: Mapping[str, Any]) -> None:
        self._last = saved["last"]
        rows = [self._kind.from_json(each) for each in saved["rows"]]
        self._rows = {row.number: row for row in rows}


class Records:
    """The tables of one account."""

    def __init__(self, account: Account, now: float) -> None:
        self.contacts: Table[Contact] = Table(Contact)
        self.tags: Table[Tag] = Table(Tag)
        self.categories: Table[TagCategory] = Table(TagCategory)
        self.custom_fields: list[dict[str, Any]] = []
        for given_name, family_name, email in account.contacts:
            fields = {
                "given_name": given_name,
                "family_name": family_name,
                "email_addresses": [{"email": email}],
            }
            self.contacts.add(lambda number: Contact.made_of(fields, number=number, now=now))  # noqa: B023  # called at once

    def as_json(self) -> dict[str, Any]:
        tables = {name: getattr(self, name).as_json() for name in TABLES}
        return {**tables, "custom_fields": self.custom_fields}

    def restore(self, saved: Mapping[str, Any]) -> None:
        for name in TABLES:
            getattr(self, name).restore(saved[name])
        self.custom_fields = saved["custom_fields"]


TABLES = ("contacts", "tags", "categories")
