"""Reads an export of grants in JSON lines. No error message repeats anything from a line."""

import codecs
import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, BinaryIO, Final, NoReturn

from django.utils import timezone

from django_infusionsoft.connect import grants
from django_infusionsoft.connect.importer import Grant
from django_infusionsoft.exceptions import ImportRejected
from django_infusionsoft.keap.oauth import account_in_scope, normalize_account

# Keap's tokens have some 30 characters, and the signed tokens of other servers some thousand.
MAX_BYTES: Final = 65_536
FIRST_MOMENT: Final = datetime.fromtimestamp(0, UTC)
# Longer lifetimes result from milliseconds instead of seconds; an access token is valid for a day.
MAX_LIFETIME: Final = timedelta(days=366)
LAST_SECOND: Final = datetime.max.replace(tzinfo=UTC).timestamp() - 1


def read(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield the number and the bytes of each line that is not blank; ``None``: it is too long."""
    for number in count(1):
        line = stream.readline(MAX_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_BYTES:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_BYTES)
            yield number, None
        elif text := (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip():
            yield number, text


def parse(number: int, line: bytes | None) -> Grant:
    """Return the grant in a line.

    :raises ImportRejected: the line is invalid.
    """
    if line is None:
        raise ImportRejected("longer than 64 KiB: put each grant on its own line.")
    facts = _object(line)
    try:
        pair = grants.imported_pair(
            account=_account(facts),
            access_token=facts.get("access_token"),
            refresh_token=facts.get("refresh_token"),
            expires_at=_moment(facts.get("expires_at")),
        )
    except ValueError:
        raise ImportRejected(
            '"access_token" and "refresh_token" are both required, each as a single word.'
        ) from None
    return Grant(number, pair, _client_id(facts))


def _object(line: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(line.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise ImportRejected("not UTF-8: use this encoding for the export.") from None
    except (ValueError, RecursionError):
        raise ImportRejected("not JSON: write one complete object on each line.") from None
    if not isinstance(facts, dict):
        raise ImportRejected("JSON, but not an object: write {…} on each line.")
    return facts


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    facts = dict(pairs)
    if len(facts) != len(pairs):
        raise ImportRejected("a key occurs twice in the object: keep the correct one.")
    return facts


def _no_number(name: str) -> NoReturn:
    raise ImportRejected("NaN and Infinity are not JSON: write a number.")


def _account(facts: dict[str, Any]) -> str:
    """Return the account from ``account``, or from ``scope`` if that is missing."""
    named, scope = facts.get("account"), account_in_scope(facts.get("scope"))
    if named in (None, ""):
        if scope is None:
            raise ImportRejected(
                'no account: add "account", such as "ab123", or the "scope" that Keap sent.'
            )
        return scope
    account = normalize_account(named)
    if account is None or len(account) >= _shortest_token(facts):
        raise ImportRejected('"account" is not an account name, such as "ab123".')
    if scope not in (None, account):
        raise ImportRejected(
            '"account" and "scope" name different accounts: keep the correct one.'
        )
    return account


def _shortest_token(facts: dict[str, Any]) -> float:
    """Return its length. A longer "account" is a misplaced token, and accounts are printed."""
    values = [facts.get("access_token"), facts.get("refresh_token")]
    return min(
        (len(value) for value in values if isinstance(value, str) and value), default=math.inf
    )


def _client_id(facts: dict[str, Any]) -> str | None:
    value = facts.get("client_id")
    if value in (None, ""):
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]{1,255}", value):
        raise ImportRejected('"client_id" is not a valid client id.')
    return value


def _moment(value: object) -> datetime:
    """Return when the access token expires."""
    moment = _moment_in(value)
    if moment is None:
        raise ImportRejected(
            '"expires_at" must be a time with a time zone, such as "2030-01-31T12:00:00Z", or '
            "Unix time in seconds; write 0 if it is unknown."
        )
    if not FIRST_MOMENT <= moment <= timezone.now() + MAX_LIFETIME:
        raise ImportRejected(
            '"expires_at" must be between 1970 and a year from now: it is when the access token '
            "expires, and Unix time is in seconds."
        )
    return moment


def _moment_in(value: object) -> datetime | None:
    """Return a value as a time, or ``None`` if it is invalid."""
    if isinstance(value, str):
        value = value.strip()
        if not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,9})?", value):
            with suppress(ValueError):
                moment = datetime.fromisoformat(value)
                return None if timezone.is_naive(moment) else moment
            return None
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Some numbers are too large for a datetime, and some integers for a float.
    return datetime.fromtimestamp(min(max(value, -1), LAST_SECOND), UTC)
