"""An export of grants: JSON lines, read one at a time. No error tells anything of a line."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, BinaryIO, Final, NoReturn

from django.utils import timezone

from django_infusionsoft import grants
from django_infusionsoft.imports import Grant, Refused
from django_infusionsoft.oauth import account_in_scope, normalize_account

# Keap's tokens have some 30 characters, and a signed one of another server some thousand.
MOST_BYTES: Final = 65_536
FIRST_MOMENT: Final = datetime.fromtimestamp(0, UTC)
# Beyond it a number of milliseconds was meant for seconds; an access token lives for a day.
LONGEST_LIFE: Final = timedelta(days=366)
LAST_SECOND: Final = datetime.max.replace(tzinfo=UTC).timestamp() - 1


def read(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield the number and the bytes of each line that is not blank; ``None``: it is too long."""
    for number in count(1):
        line = stream.readline(MOST_BYTES + 1)
        if not line:
            return
        if len(line) > MOST_BYTES:
            _skip_rest(stream, line)
            yield number, None
        elif text := (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip():
            yield number, text


def parse(number: int, line: bytes | None) -> Grant:
    """Return the grant that a line tells of.

    :raises Refused: the line cannot be right.
    """
    if line is None:
        raise Refused("longer than 64 KiB: put each grant on a line of its own.")
    facts = _object(line)
    expires_at = _moment(facts.get("expires_at"))
    try:
        pair = grants.imported_pair(
            account=_account(facts),
            access_token=facts.get("access_token"),
            refresh_token=facts.get("refresh_token"),
            expires_at=expires_at,
        )
    except ValueError:
        raise Refused(
            '"access_token" and "refresh_token" must both be there, each of them one word.'
        ) from None
    return Grant(
        line=number,
        account=str(pair.account),
        access_token=pair.access_token,
        refresh_token=str(pair.refresh_token),
        expires_at=expires_at,
        client_id=_client_id(facts),
    )


def _skip_rest(stream: BinaryIO, part: bytes) -> None:
    while part and not part.endswith(b"\n"):
        part = stream.readline(MOST_BYTES)


def _object(line: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(line.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise Refused("not UTF-8: write the export in this encoding.") from None
    except (ValueError, RecursionError):
        raise Refused("not JSON: write one whole object on each line.") from None
    if not isinstance(facts, dict):
        raise Refused("JSON, but not an object: write {…} on each line.")
    return facts


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    facts = dict(pairs)
    if len(facts) != len(pairs):
        raise Refused("a key stands in the object twice: keep the one that is right.")
    return facts


def _no_number(name: str) -> NoReturn:
    raise Refused("NaN and Infinity are not JSON: write a number.")


def _account(facts: dict[str, Any]) -> str:
    """Return the account that is named, or that the scope tells."""
    named, scope = facts.get("account"), account_in_scope(facts.get("scope"))
    if named in (None, ""):
        if scope is None:
            raise Refused('no account: add "account", such as "ab123", or the "scope" of Keap\'s.')
        return scope
    account = normalize_account(named)
    if account is None or len(account) >= _shortest_token(facts):
        raise Refused('"account" is not the name of an account, such as "ab123".')
    if scope not in (None, account):
        raise Refused('"account" and "scope" tell of different accounts: keep the right one.')
    return account


def _shortest_token(facts: dict[str, Any]) -> float:
    """Return its length. Only a token in its place is as long, and an account is printed."""
    values = [facts.get("access_token"), facts.get("refresh_token")]
    return min(
        (len(value) for value in values if isinstance(value, str) and value), default=math.inf
    )


def _client_id(facts: dict[str, Any]) -> str | None:
    value = facts.get("client_id")
    if value in (None, ""):
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]{1,255}", value):
        raise Refused('"client_id" is not the id of a client.')
    return value


def _moment(value: object) -> datetime:
    """Return when an access token ends."""
    moment = _moment_in(value)
    if moment is None:
        raise Refused(
            '"expires_at" must be a time with a time zone, such as "2030-01-31T12:00:00Z", or '
            "Unix time in seconds; write 0 where nobody knows it."
        )
    if not FIRST_MOMENT <= moment <= timezone.now() + LONGEST_LIFE:
        raise Refused(
            '"expires_at" must lie between 1970 and a year from now: it is when the access token '
            "ends, and Unix time counts in seconds."
        )
    return moment


def _moment_in(value: object) -> datetime | None:
    """Return what a value tells, or ``None`` where it is no moment at all."""
    if isinstance(value, str):
        value = value.strip()
        if not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,9})?", value):
            return _iso_moment(value)
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Some are too large for a datetime, and a few for a float.
    return datetime.fromtimestamp(min(max(value, -1), LAST_SECOND), UTC)


def _iso_moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if timezone.is_naive(moment) else moment
