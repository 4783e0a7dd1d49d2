"""What a ``PATCH`` of v2 must contain so that it changes nothing else (keap-facts 13 and 14).

Keap replaces collections whole. Without I/O, for every client of the API.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from django_infusionsoft.api.read_only import OF_ITEMS, read_only

Item = Mapping[str, Any]

PATH: Final = re.compile(r"(?:^|/)v2/([^?#]+)")
# Which property tells the items of a collection apart.
KEYS: Final[Mapping[str, str]] = {
    "addresses": "field",
    "custom_fields": "id",
    "email_addresses": "field",
    "fax_numbers": "field",
    "phone_numbers": "field",
    "social_accounts": "type",
}
# What a new value of a property makes obsolete.
OBSOLETE: Final[Mapping[str, frozenset[str]]] = {
    "country": frozenset({"country_code"}),
    "country_code": frozenset({"country"}),
    "email": frozenset({"opt_in_reason"}),
    "postal_code": frozenset({"zip_code", "zip_four"}),
    "region": frozenset({"region_code"}),
    "region_code": frozenset({"region"}),
    "zip_code": frozenset({"postal_code", "zip_four"}),
}
# Keap derives these from codes, and rejects some that it has returned itself (keap-facts 14).
CODES: Final[Mapping[str, str]] = {"country": "country_code", "region": "region_code"}
# The ``GET`` of these takes ``fields``.
WITH_FIELDS: Final = frozenset({"companies", "contacts", "notes", "opportunities", "tasks"})


def writable(url: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes without read-only properties, such as those of a fetched object.

    :raises ValueError: nothing is left, or the URL is not one of v2.
    """
    excluded = read_only(kind_of(url))
    found = {name: value for name, value in changes.items() if name not in excluded}
    if not found:
        raise ValueError("There is nothing to change: all of these properties are read-only.")
    return found


def kind_of(url: str) -> str:
    """Return the kind of objects that a URL of v2 names, such as ``contacts``.

    :raises ValueError: it is not a URL of v2.
    """
    if found := PATH.search(url):
        *parents, last = found[1].strip("/").split("/")
        return parents[-1] if parents else last
    raise ValueError(f"{url!r} is not the URL of an object of v2, such as v2/contacts/7.")


def needed(url: str, changes: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the parameters of the ``GET`` that ``merged`` needs; ``None``: it needs none."""
    names = [name for name, value in changes.items() if name in KEYS and value]
    if not names:
        return None
    return {"fields": ",".join(names)} if kind_of(url) in WITH_FIELDS else {}


def merged(changes: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of the ``PATCH``: changed items are merged into those with the same key.

    An item of nothing but its key is removed, and an empty collection is sent as it is.

    :param current: the object that Keap has returned.
    :raises ValueError: an item has no key.
    """
    return {
        name: _merge(name, value, current.get(name) or []) if name in KEYS and value else value
        for name, value in changes.items()
    }


def _merge(name: str, changed: Iterable[Item], current: Iterable[Item]) -> list[dict[str, Any]]:
    key = KEYS[name]
    before = {str(item.get(key)): _set_properties(item) for item in current}
    after = {at: _sendable(name, item) for at, item in before.items() if set(item) != {key}}
    for item in changed:
        if item.get(key) is None:
            raise ValueError(f"Each of {name} needs {key!r}, so that the others can be kept.")
        at = str(item[key])
        if set(item) == {key}:
            after.pop(at, None)
        else:
            after[at] = _sendable(name, _merge_item(item, before.get(at, {})))
    return list(after.values())


def _set_properties(item: Item) -> Item:
    """Without null: nobody knows what Keap does with it (keap-facts 14)."""
    return {name: value for name, value in item.items() if value is not None}


def _merge_item(item: Item, before: Item) -> dict[str, Any]:
    changes = {
        name: value for name, value in item.items() if name not in before or before[name] != value
    }
    obsolete = {each for name in changes for each in OBSOLETE.get(name, ())}
    return {name: value for name, value in before.items() if name not in obsolete} | changes


def _sendable(name: str, item: Item) -> dict[str, Any]:
    derived = {text for text, code in CODES.items() if item.get(code)}
    excluded = derived | OF_ITEMS.get(name, frozenset())
    return {each: value for each, value in item.items() if each not in excluded}
