"""What a ``PATCH`` of v2 must contain so that it changes nothing else (keap-facts 13 and 14).

Keap replaces collections whole. Without I/O, for every client of the API.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

Item = Mapping[str, Any]

KIND: Final = re.compile(r"(?:^|/)v2/([A-Za-z]+)/")
# Which property tells the items of a collection apart.
KEYS: Final[Mapping[str, str]] = {
    "addresses": "field",
    "custom_fields": "id",
    "email_addresses": "field",
    "fax_numbers": "field",
    "phone_numbers": "field",
    "social_accounts": "type",
}
# What Keap returns in them and does not take, or derives from another one.
READ_ONLY_IN_ITEMS: Final[Mapping[str, frozenset[str]]] = {
    "addresses": frozenset({"country"}),
    "email_addresses": frozenset({"email_opt_status", "is_opt_in"}),
    "phone_numbers": frozenset({"number_e164"}),
}
# What Keap returns of any object and does not take, in its OpenAPI document of v2.
READ_ONLY: Final = frozenset(
    {
        "account_id",
        "create_time",
        "created_by",
        "created_by_user_id",
        "created_time",
        "creation_time",
        "groups",
        "id",
        "last_updated_by",
        "last_updated_by_user_id",
        "last_updated_time",
        "links",
        "modification_time",
        "score_value",
        "tag_ids",
        "update_time",
    }
)
# Of these alone an answer leaves out properties that ``fields`` does not name.
WITH_FIELDS: Final = frozenset({"contacts", "companies"})


def writable(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes without read-only properties, such as those of a fetched object.

    :raises ValueError: nothing is left.
    """
    found = {name: value for name, value in changes.items() if name not in READ_ONLY}
    if not found:
        raise ValueError("There is nothing to change: all of these properties are read-only.")
    return found


def kind_of(url: str) -> str:
    """Return the kind of objects that a URL of v2 names, such as ``contacts``.

    :raises ValueError: it names none.
    """
    if found := KIND.search(url):
        return found[1]
    raise ValueError(f"{url!r} is not the URL of an object of v2, such as v2/contacts/7.")


def needed(url: str, changes: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the parameters of the ``GET`` that ``merged`` needs; ``None``: it needs none."""
    names = [name for name, value in changes.items() if name in KEYS and value]
    if not names:
        return None
    return {"fields": ",".join(names)} if kind_of(url) in WITH_FIELDS else {}


def merged(changes: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of the ``PATCH``: changed items replace those with the same key.

    An item of nothing but its key is removed, and an empty collection is sent as it is.

    :param current: the object that Keap has returned.
    :raises ValueError: an item has no key.
    """
    return {
        name: _merge(name, value, current.get(name) or []) if name in KEYS and value else value
        for name, value in changes.items()
    }


def _merge(name: str, changed: Iterable[Item], current: Iterable[Item]) -> list[dict[str, Any]]:
    key, items = KEYS[name], {}
    for item in current:
        items[item.get(key)] = _without_read_only(name, item)
    for item in changed:
        if item.get(key) is None:
            raise ValueError(f"Each of {name} needs {key!r}, so that the others can be kept.")
        if set(item) == {key}:
            items.pop(item[key], None)
        else:
            before = items.get(item[key], {})
            items[item[key]] = _without_read_only(name, {**before, **item})
    return list(items.values())


def _without_read_only(name: str, item: Item) -> dict[str, Any]:
    excluded = READ_ONLY_IN_ITEMS.get(name, frozenset())
    # The text of a region is derived from its code.
    if item.get("region_code"):
        excluded |= {"region"}
    return {each: value for each, value in item.items() if each not in excluded}
