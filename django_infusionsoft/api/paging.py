"""Lists of v1 and v2: which request follows a page. Without I/O, for every client of the API."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from django_infusionsoft.exceptions import ApiError

V1_CONTACTS: Final = re.compile(r"(^|/)v1/contacts/?$")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request for one page of a list."""

    url: str
    params: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def first(cls, url: str, params: Mapping[str, Any]) -> "PageRequest":
        """Return the request for the first page."""
        if V1_CONTACTS.search(urlsplit(url).path) and "order" not in params:
            # Without an order that Keap promises, an offset may skip contacts (keap-facts 14).
            params = {**params, "order": "id"}
        return cls(url, params)

    def following(self, page: Any) -> "PageRequest | None":
        """Return the request for the next page; ``None`` after the last one.

        :param page: the decoded answer to this one.
        :raises ApiError: the list does not go on, and has not ended.
        """
        if not isinstance(page, dict):
            return None  # such as v1's hooks: all at once
        token = page.get("next_page_token")
        if token:
            return self._with_token(str(token))
        # The ``next`` of v1 never ends. An empty page does.
        if "next" in page and (count := len(items_of(page))):
            offset = int(self.params.get("offset") or _in_query(self.url, "offset") or 0)
            return self._with(offset=offset + count)
        return None

    def _with_token(self, token: str) -> "PageRequest":
        # Earlier it was a whole URL (keap-facts 14).
        if "://" in token:
            token = _in_query(token, "page_token") or token
        if token == self.params.get("page_token"):
            raise ApiError(f"Keap has returned the page token of {self.url} again.")
        return self._with(page_token=token)

    def _with(self, **params: Any) -> "PageRequest":
        parts = urlsplit(self.url)
        query = [(name, value) for name, value in parse_qsl(parts.query) if name not in params]
        url = parts._replace(query="").geturl()
        return PageRequest(url, {**dict(query), **self.params, **params})


def items_of(page: Any, key: str | None = None) -> list[Any]:
    """Return the items of a page.

    :param key: the name of the list; by default the only one that there is.
    :raises ApiError: there is no such list, or there are several.
    """
    if isinstance(page, list) and key is None:
        return page
    lists = {name: value for name, value in page.items() if isinstance(value, list)}
    if key is not None:
        lists = {key: lists[key]} if key in lists else {}
    if len(lists) != 1:
        names = ", ".join(sorted(page)) or "nothing"
        raise ApiError(f"Which of these is the list? Specify key=. The page has {names}.")
    return next(iter(lists.values()))


def _in_query(url: str, name: str) -> str | None:
    return dict(parse_qsl(urlsplit(url).query)).get(name)
