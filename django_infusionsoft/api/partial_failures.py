"""Successes that hold failures: what a part of an answer says about each item (keap-facts 14)."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from django_infusionsoft.exceptions import PartialFailure

# What a message names: objects may hold personal data, and would end up in logs.
IDS: Final = (int, str)
MAX_LISTED: Final = 5
MAX_WORDS_LENGTH: Final = 200


class ItemResult(NamedTuple):
    """What Keap says about one item of a request."""

    item: Any
    """Its id, if Keap names it; otherwise the object that Keap returned for it."""
    words: str
    is_ok: bool

    def __str__(self) -> str:
        words = self.words[:MAX_WORDS_LENGTH]
        return f"{self.item}: {words}" if isinstance(self.item, IDS) else words


def failure_in(content: object, **answer: Any) -> PartialFailure | None:
    """Return the exception for the answer to a write, if it says that an item failed.

    :param content: the decoded answer.
    :param answer: ``status``, ``response`` and ``quota`` of the exception.
    """
    results = list(_results(content))
    failed = [each for each in results if not each.is_ok]
    if not failed:
        return None
    listed = ", ".join(map(str, failed[:MAX_LISTED]))
    return PartialFailure(
        f"{len(failed)} of {len(results)} failed ({listed})",
        failures=[(each.item, each.words) for each in failed],
        succeeded=[each.item for each in results if each.is_ok],
        **answer,
    )


def _results(content: object) -> Iterator[ItemResult]:
    match content:
        case [*parts]:
            for part in parts:
                yield from _results(part)
        case {"success": bool() as is_ok, **details}:
            yield _of_goal(details, is_ok=is_ok)
            yield from _nested(details)
        case {"emails": [*emails], "errors": [*errors]}:
            yield from (ItemResult(each, "", is_ok=True) for each in emails)
            yield from map(_of_email, errors)
        case dict() if content and all(map(_is_word, content.items())):
            yield from (ItemResult(key, word, _is_ok(word)) for key, word in content.items())
        case dict():
            yield from _nested(content)


def _nested(content: Mapping[Any, Any]) -> Iterator[ItemResult]:
    for name, value in content.items():
        if name == "results" or name.endswith("_results"):
            yield from _results(value)


def _of_goal(goal: Mapping[Any, Any], *, is_ok: bool) -> ItemResult:
    """Of a goal, or of an automation's flow that it starts or stops."""
    item = goal.get("flow_id") or goal.get("goal_id") or goal
    return ItemResult(item, str(goal.get("message") or ""), is_ok)


def _of_email(error: Any) -> ItemResult:
    found = error if isinstance(error, Mapping) else {}
    words = found.get("error_message") or error
    return ItemResult(found.get("email") or error, str(words), is_ok=False)


def _is_word(entry: tuple[Any, Any]) -> bool:
    """Whether this is the result of an id, such as ``"7": "SUCCESS"``."""
    key, word = entry
    return key.isdecimal() and isinstance(word, str)


def _is_ok(word: str) -> bool:
    """Whether the tag or the sequence is there now. Keap publishes no list of the tags' words."""
    return word.upper() == "SUCCESS" or any(each in word.upper() for each in ("ALREADY", "DUPLIC"))
