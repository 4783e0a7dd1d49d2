"""Parsed requests and replies as values, without sockets."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlsplit

FORM = "application/x-www-form-urlencoded"
JSON = "application/json;charset=UTF-8"
HTML = "text/html; charset=utf-8"
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


@dataclass(frozen=True)
class Request:
    """One HTTP request. Header names are lower case; `target` is as on the request line."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @cached_property
    def path(self) -> str:
        return urlsplit(self.target).path

    @cached_property
    def query(self) -> "Fields":
        return Fields(urlsplit(self.target).query)

    @cached_property
    def form(self) -> "Fields":
        """The body's fields; empty if its Content-Type is not that of a form."""
        content_type = self.headers.get("content-type", "").partition(";")[0]
        is_form = content_type.strip().lower() == FORM
        return Fields(self.body.decode("utf-8", "replace") if is_form else "")

    @cached_property
    def host(self) -> str:
        return self.headers.get("host", "")

    def cookie(self, name: str) -> str:
        try:
            morsel = SimpleCookie(self.headers.get("cookie", "")).get(name)
        except CookieError:
            return ""
        return morsel.value if morsel else ""


class Fields(dict[str, str]):
    """Decoded form or query fields with their first values; `repeated` names repeated ones."""

    def __init__(self, encoded: str) -> None:
        super().__init__()
        self.repeated: set[str] = set()
        self._pairs = parse_qsl(encoded, keep_blank_values=True)
        for name, value in self._pairs:
            if name in self:
                self.repeated.add(name)
            else:
                self[name] = value

    def all(self, name: str) -> list[str]:
        """Return each value of a field that may be repeated."""
        return [value for each, value in self._pairs if each == name]


@dataclass(frozen=True)
class Reply:
    """One HTTP reply. Content-Length is added when it is sent, unless `headers` contains it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def location(self) -> str:
        return self.headers.get("Location", "")

    def json(self) -> Any:
        return json.loads(self.body)


def json_reply(
    content: object,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    is_pretty: bool = False,
) -> Reply:
    """Return a JSON reply: compact, or indented like the Apigee gateway's token errors."""
    layout: dict[str, Any] = {"indent": 2} if is_pretty else {"separators": (",", ":")}
    body = json.dumps(content, **layout).encode()
    return Reply(status, {"Content-Type": JSON, **(headers or {})}, body)


def html_reply(page: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, {"Content-Type": HTML, **(headers or {})}, page.encode())
