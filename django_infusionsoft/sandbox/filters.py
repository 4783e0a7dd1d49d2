"""The ``filter`` and ``order_by`` of v2 (keap-facts sections 4 and 14)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

T = TypeVar("T")
Matches = Callable[[T, str], bool]


def matching(items: Iterable[T], text: str, known: Mapping[str, Matches[T]]) -> list[T]:
    """Return the items that meet all clauses, such as `email==a@ex.test;given_name==Ma*`.

    :raises ValueError: a clause is not understood, or its field is unknown.
    """
    found = list(items)
    for clause in filter(None, text.split(";")):
        name, operator, value = clause.partition("==")
        if not operator or name not in known:
            raise ValueError(f"Filter {clause!r}: there are {', '.join(sorted(known))}.")
        found = [each for each in found if known[name](each, value)]
    return found


def ordered(items: Sequence[T], text: str, known: Mapping[str, Callable[[T], Any]]) -> list[T]:
    """Return the items in an order such as `create_time desc`.

    :raises ValueError: it is not understood.
    """
    if not text:
        return list(items)
    name, _, direction = text.strip().partition(" ")
    if name not in known or direction.lower() not in ("", "asc", "desc"):
        raise ValueError(f"order_by {text!r}: there are {', '.join(sorted(known))}.")
    return sorted(items, key=known[name], reverse=direction.lower() == "desc")


def matches_text(value: str, pattern: str) -> bool:
    """Compare case-blind; a wildcard may stand at the end only."""
    value, pattern = value.lower(), pattern.lower()
    if "*" in pattern[:-1]:
        raise ValueError("A wildcard may stand at the end only.")
    return value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern


def moment(text: str) -> float:
    """Return the epoch seconds of a date with a time; a date alone is refused.

    :raises ValueError: it is none.
    """
    if "T" not in text:
        raise ValueError(f"{text!r} has no time: send 2026-01-01T00:00:00.000Z.")
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone.")
    return found.timestamp()
