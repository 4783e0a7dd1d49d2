"""Lists, updates and custom fields by ``session.call()``: the parts without I/O, put together."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

from django_infusionsoft.api import custom_fields, updates
from django_infusionsoft.api.custom_fields import CustomFields
from django_infusionsoft.api.paging import PageRequest, items_of


class Records:
    """What a session offers for Keap's objects."""

    models_key: Hashable
    """Of the account, whose custom fields are cached."""

    def call(self, method: str, url: str, **kwargs: Any) -> Any:
        """Send a request, and return the decoded answer."""
        raise NotImplementedError

    def pages(self, url: str, **params: Any) -> Iterator[Any]:
        """Yield the decoded pages of a list of v1 or v2, each when it is asked for.

        :param params: of the first request, such as ``filter``, ``page_size`` or ``limit``.
        :raises InfusionsoftError: as ``call()``.
        """
        request: PageRequest | None = PageRequest.first(url, params)
        while request is not None:
            page = self.call("GET", request.url, params=request.params)
            yield page
            request = request.following(page)

    def items(self, url: str, *, key: str | None = None, **params: Any) -> Iterator[Any]:
        """Yield the items of a list of v1 or v2, page by page.

        :param key: the name of the list in an answer, if it holds several.
        :param params: as in ``pages()``.
        :raises InfusionsoftError: as ``call()``.
        """
        for page in self.pages(url, **params):
            yield from items_of(page, key)

    def update(self, url: str, changes: Mapping[str, Any]) -> Any:
        """Change some properties of an object of v2, and return it.

        Keap replaces collections such as ``email_addresses`` whole, so their other items are read
        first, and sent with the changed ones. Read-only properties are left out.

        :param url: of the object, such as ``v2/contacts/7``.
        :param changes: ``custom_fields`` may be contents by label.
        :raises ValueError: nothing is left to change, or an item lacks what tells it apart.
        :raises InfusionsoftError: as ``call()``.
        """
        changes = updates.writable(changes)
        named = changes.get("custom_fields")
        if isinstance(named, Mapping):
            changes["custom_fields"] = self.custom_fields(updates.kind_of(url), named)
        params = updates.needed(url, changes)
        current = {} if params is None else self.call("GET", url, params=params)
        return self.call(
            "PATCH",
            url,
            params={"update_mask": list(changes)},
            json=updates.merged(changes, current),
        )

    def custom_fields(self, kind: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return contents by label as ``custom_fields`` of a new object.

        :param kind: of the object, as in its URL: ``contacts``, ``companies``, ``orders`` …
        :raises KeyError: there is no such field; the message names those that there are.
        """
        return self._fields(kind, values, "ids").items_for(values)

    def custom_field_values(self, kind: str, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the custom fields of an object as contents by label."""
        ids = [str(each["id"]) for each in item.get("custom_fields") or ()]
        return self._fields(kind, ids, "labels").values_of(item)

    def _fields(self, kind: str, names: Iterable[str], by: str) -> CustomFields:
        """Return the fields; those of the cache only if it has all of these names."""
        key = (self.models_key, kind)
        fields = custom_fields.models.get(key)
        if fields is None or any(each not in getattr(fields, by) for each in names):
            fields = custom_fields.models.put(key, self.call("GET", f"v2/{kind}/model"))
        return fields
