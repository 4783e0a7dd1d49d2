"""Lists of v1 and v2: which request follows a page. Without I/O, for every client of the API."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from django_infusionsoft.exceptions import ApiError

# Of the lists of v1, these can be ordered by id.
ORDERED_BY_ID: Final = re.compile(r"(^|/)v1/(contacts|companies)/?$")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request for one page of a list."""

    url: str
    params: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0
    """How many page tokens Keap has returned before."""
    checkpoint: str = ""
    """One of them, and the only one that is remembered: the newest after 1, 2, 4, 8 … pages."""

    @classmethod
    def first(cls, url: str, params: Mapping[str, Any]) -> "PageRequest":
        """Return the request for the first page."""
        is_ordered = "order" in params or _in_query(url, "order") is not None
        if ORDERED_BY_ID.search(urlsplit(url).path) and not is_ordered:
            # Without an order that Keap promises, an offset may skip objects (keap-facts 14).
            params = {**params, "order": "id"}
        return cls(url, params)

    def following(self, page: Any) -> "PageRequest | None":
        """Return the request for the next page; ``None`` after the last one.

        :param page: the decoded answer to this one.
        :raises ApiError: the list never ends: Keap has returned the same token before.
        """
        if not isinstance(page, dict):
            return None  # such as v1's hooks: all at once
        if token := page.get("next_page_token"):
            return self._with_token(str(token))
        # The ``next`` of v1 never ends. An empty page does.
        if "next" in page and (count := max(map(len, _lists(page).values()), default=0)):
            offset = int(self.params.get("offset") or _in_query(self.url, "offset") or 0)
            return self._with(offset=offset + count)
        return None

    def _with_token(self, token: str) -> "PageRequest":
        # Earlier it was a whole URL (keap-facts 14).
        if "://" in token:
            token = _in_query(token, "page_token") or token
        if token in (self.params.get("page_token"), self.checkpoint):
            raise ApiError(f"Keap has returned a page token of {self.url} again.")
        # By Brent's algorithm, which finds a cycle of any length.
        is_power_of_2 = self.tokens & (self.tokens - 1) == 0
        return replace(
            self._with(page_token=token),
            tokens=self.tokens + 1,
            checkpoint=token if is_power_of_2 else self.checkpoint,
        )

    def _with(self, **params: Any) -> "PageRequest":
        parts = urlsplit(self.url)
        query = parse_qsl(parts.query, keep_blank_values=True)
        kept = urlencode([(name, value) for name, value in query if name not in params])
        return replace(
            self, url=parts._replace(query=kept).geturl(), params={**self.params, **params}
        )


def items_of(page: Any, key: str | None = None) -> list[Any]:
    """Return the items of a page.

    :param key: the name of the list; by default the only one that there is.
    :raises ApiError: there is no such list, or there are several.
    """
    if isinstance(page, list) and key is None:
        return page
    lists = _lists(page)
    if key is not None:
        lists = {key: lists[key]} if key in lists else {}
    if len(lists) != 1:
        names = ", ".join(sorted(page)) if isinstance(page, dict) else "no names"
        raise ApiError(f"Which of these is the list? Specify key=. The page has {names}.")
    return next(iter(lists.values()))


def _lists(page: Any) -> dict[str, list[Any]]:
    found = page.items() if isinstance(page, dict) else ()
    return {name: value for name, value in found if isinstance(value, list)}


def _in_query(url: str, name: str) -> str | None:
    return dict(parse_qsl(urlsplit(url).query)).get(name)
