"""An authenticated API request, what a view may refuse, and what views share."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from zlib import crc32

from .messages import Reply, Request, json_reply
from .people import Account, KeapUser
from .records import Records
from .switches import Switches

T = TypeVar("T")
MAX_PAGE = 1000  # keap-facts section 4


class RefusedError(Exception):
    """The request gets an error; the text is sent in the reply."""

    status = 400
    details: list[dict[str, str]]

    def __init__(self, message: str, details: Sequence[dict[str, str]] = ()) -> None:
        super().__init__(message)
        self.details = list(details)


class BadRequestError(RefusedError):
    """The request's parameters or body are invalid."""


class MissingError(RefusedError):
    """The object does not exist."""

    status = 404

    def __init__(self, kind: str, number: object) -> None:
        message = f"{kind} with id {number} not found"
        super().__init__(message, [{"domain": kind, "resource": str(number)}])


@dataclass(frozen=True)
class Call:
    """One request: its user, its account's records, and the numbers in its path."""

    request: Request
    user: KeapUser
    account: Account
    records: Records
    switches: Switches
    now: float
    numbers: tuple[int, ...] = ()

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query

    @property
    def number(self) -> int:
        """The first number in the path."""
        return self.numbers[0]

    def body(self) -> dict[str, Any]:
        """Return the body's JSON object.

        :raises BadRequestError: it is none.
        """
        try:
            found = json.loads(self.request.body)
        except ValueError:
            raise BadRequestError("The body is not JSON.") from None
        if not isinstance(found, dict):
            raise BadRequestError("The body is not a JSON object.")
        return found


View = Callable[[Call], Reply]


@dataclass(frozen=True)
class Operation:
    """What the sandbox plays: a method and a path, with these query parameters."""

    method: str
    path: str
    """With numbers in braces: `v2/contacts/{contact_id}`."""
    view: View
    parameters: frozenset[str] = frozenset()

    def creates(self, kind: str) -> bool:
        """Whether it creates objects of this kind in v2, such as `contacts`."""
        return (self.method, self.path) == ("POST", f"v2/{kind}")


def problem(
    request: Request,
    status: int,
    message: str,
    *,
    details: list[dict[str, str]] | None = None,
) -> Reply:
    """Return an application error: v2's format is documented, v1's has `message`."""
    if not request.path.startswith("/crm/rest/v2/"):
        return json_reply({"message": message}, status=status)
    names = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 501: "NOT_IMPLEMENTED"}
    content = {
        "code": status,
        "message": message,
        "status": names[status],
        "details": details or [],
    }
    return json_reply(content, status=status)


def number_in(
    query: Mapping[str, str], name: str, *, default: int, least: int = 0, most: int = 10**9
) -> int:
    """Return a number in the query.

    :raises BadRequestError: it is none, or out of range.
    """
    text = query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not least <= int(text[:12]) <= most:
        raise BadRequestError(f"{name} is a number from {least} to {most}.")
    return int(text)


def page_of(items: Sequence[T], query: Mapping[str, str]) -> tuple[Sequence[T], str]:
    """Return the page of v2 that the query asks for, and the next page's token or ''."""
    # 0 is allowed (keap-facts section 4), and means the default here.
    size = number_in(query, "page_size", default=0, most=MAX_PAGE) or MAX_PAGE
    start = _offset(query.get("page_token", ""))
    end = start + size
    return items[start:end], _page_token(end) if end < len(items) else ""


def user_number(user: KeapUser) -> int:
    """Return a number derived from the email address, so that it is the same after a restart."""
    return 10_000 + crc32(user.email.encode()) % 90_000


def _page_token(offset: int) -> str:
    return urlsafe_b64encode(f"offset:{offset}".encode()).decode()


def _offset(page_token: str) -> int:
    if not page_token:
        return 0
    try:
        _, _, offset = urlsafe_b64decode(page_token).decode("ascii").partition("offset:")
        return int(offset)
    except (Base64Error, UnicodeDecodeError, ValueError):
        raise BadRequestError("page_token does not belong to this list.") from None
