"""Lists, updates and custom fields by ``await session.call()``: as in ``records``."""

from collections.abc import AsyncIterator, Hashable, Mapping
from typing import Any, TypeVar, cast

from django_infusionsoft.api import steps
from django_infusionsoft.api.paging import PageRequest, items_of
from django_infusionsoft.api.steps import Steps

T = TypeVar("T")


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
        return await self._run(steps.update(self.models_key, url, changes))

    async def custom_fields(self, kind: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return contents by label as ``custom_fields`` of a new object."""
        return await self._run(steps.custom_fields(self.models_key, kind, values))

    async def custom_field_values(self, kind: str, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the custom fields of an object as contents by label."""
        return await self._run(steps.custom_field_values(self.models_key, kind, item))

    async def _run(self, pending: Steps[T]) -> T:
        try:
            call = next(pending)
            while True:
                call = pending.send(await self.call(call.method, call.url, **call.options))
        except StopIteration as end:
            return cast("T", end.value)
