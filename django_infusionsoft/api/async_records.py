"""Lists, updates and custom fields by ``await session.call()``: as in ``records``."""

from collections.abc import AsyncIterator, Hashable, Iterable, Mapping
from typing import Any

from django_infusionsoft.api import custom_fields, updates
from django_infusionsoft.api.custom_fields import CustomFields
from django_infusionsoft.api.paging import PageRequest, items_of


class AsyncRecords:
    """What an async session offers for Keap's objects; see ``Records``."""

    models_key: Hashable

    async def call(self, method: str, url: str, **kwargs: Any) -> Any:
        """Send a request, and return the decoded answer."""
        raise NotImplementedError

    async def pages(self, url: str, **params: Any) -> AsyncIterator[Any]:
        """Yield the decoded pages of a list of v1 or v2, each when it is asked for."""
        request: PageRequest | None = PageRequest.first(url, params)
        while request is not None:
            page = await self.call("GET", request.url, params=request.params)
            yield page
            request = request.following(page)

    async def items(
        self, url: str, *, key: str | None = None, **params: Any
    ) -> AsyncIterator[Any]:
        """Yield the items of a list of v1 or v2, page by page."""
        async for page in self.pages(url, **params):
            for item in items_of(page, key):
                yield item

    async def update(self, url: str, changes: Mapping[str, Any]) -> Any:
        """Change some properties of an object of v2, and return it."""
        changes = updates.writable(changes)
        named = changes.get("custom_fields")
        if isinstance(named, Mapping):
            kind = updates.kind_of(url)
            changes["custom_fields"] = await self.custom_fields(kind, named)
        params = updates.needed(url, changes)
        current = {} if params is None else await self.call("GET", url, params=params)
        mask = {"update_mask": list(changes)}
        return await self.call("PATCH", url, params=mask, json=updates.merged(changes, current))

    async def custom_fields(self, kind: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return contents by label as ``custom_fields`` of a new object."""
        return (await self._fields(kind, values, "ids")).items_for(values)

    async def custom_field_values(self, kind: str, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the custom fields of an object as contents by label."""
        ids = [str(each["id"]) for each in item.get("custom_fields") or ()]
        return (await self._fields(kind, ids, "labels")).values_of(item)

    async def _fields(self, kind: str, names: Iterable[str], by: str) -> CustomFields:
        key = (self.models_key, kind)
        fields = custom_fields.models.get(key)
        if fields is None or any(each not in getattr(fields, by) for each in names):
            fields = custom_fields.models.put(key, await self.call("GET", f"v2/{kind}/model"))
        return fields
