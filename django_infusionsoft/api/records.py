"""Lists, updates and custom fields by ``session.call()``: the parts without I/O, put together."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, TypeVar, cast

from django_infusionsoft.api import steps
from django_infusionsoft.api.paging import PageRequest, items_of
from django_infusionsoft.api.steps import Steps

T = TypeVar("T")


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

        Keap replaces collections such as ``email_addresses`` whole, so their items are read first,
        and sent with the changed ones. Whatever Keap changes in between is undone. Read-only
        properties are left out.

        :param url: of the object, such as ``v2/contacts/7``.
        :param changes: ``custom_fields`` may be contents by label.
        :raises ValueError: nothing is left to change, or an item lacks what tells it apart.
        :raises LookupError: there is no custom field of this name.
        :raises InfusionsoftError: as ``call()``.
        """
        return self._run(steps.update(self.models_key, url, changes))

    def custom_fields(self, kind: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return contents by label as ``custom_fields`` of a new object.

        :param kind: of the object, as in its URL: ``contacts``, ``companies``, ``orders`` …
        :raises LookupError: there is no such field; the message names those that there are.
        :raises InfusionsoftError: as ``call()``.
        """
        return self._run(steps.custom_fields(self.models_key, kind, values))

    def custom_field_values(self, kind: str, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the custom fields of an object as contents by label.

        :raises InfusionsoftError: as ``call()``.
        """
        return self._run(steps.custom_field_values(self.models_key, kind, item))

    def _run(self, pending: Steps[T]) -> T:
        try:
            call = next(pending)
            while True:
                call = pending.send(self.call(call.method, call.url, **call.options))
        except StopIteration as end:
            return cast("T", end.value)
