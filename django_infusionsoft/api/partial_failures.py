"""Successes that hold failures: what a part of an answer says about each item (keap-facts 14)."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from django_infusionsoft.exceptions import PartialFailure


class ItemResult(NamedTuple):
    """What Keap says about one item of a request."""

    item: Any
    """Its id, if Keap names it; otherwise the object that Keap returned for it."""
    message: str
    is_ok: bool


def require_all(status: int, content: object) -> None:
    """Raise ``PartialFailure`` if the answer to a write says that an item failed.

    :param content: the decoded answer.
    """
    results = list(_results(content))
    failed = [each for each in results if not each.is_ok]
    if failed:
        listed = ", ".join(f"{each.item}: {each.message}" for each in failed[:5])
        raise PartialFailure(
            f"{len(failed)} of {len(results)} failed ({listed})",
            status=status,
            failures=[(each.item, each.message) for each in failed],
            succeeded=[each.item for each in results if each.is_ok],
        )


def _results(content: object) -> Iterator[ItemResult]:
    match content:
        case [*goals]:
            yield from _of_goals(goals)
        case {"emails": [*emails], "errors": [*errors]}:
            yield from (ItemResult(each, "", is_ok=True) for each in emails)
            yield from (_error(each) for each in errors)
        case dict():
            for name, value in content.items():
                if name == "results" or name.endswith("_results"):
                    yield from _results(value)
            if content and all(map(_is_word, content.items())):
                yield from (ItemResult(key, word, _is_ok(word)) for key, word in content.items())


def _of_goals(goals: Iterable[object]) -> Iterator[ItemResult]:
    for goal in goals:
        if isinstance(goal, Mapping) and isinstance(goal.get("success"), bool):
            item = goal.get("goal_id") or goal.get("goalId") or goal
            yield ItemResult(item, str(goal.get("message") or ""), is_ok=goal["success"])


def _error(error: Any) -> ItemResult:
    found = error if isinstance(error, Mapping) else {}
    item = found.get("email") or error
    return ItemResult(item, str(found.get("error_message") or error), is_ok=False)


def _is_word(entry: tuple[str, object]) -> bool:
    """Whether this is the result of an id, such as ``"7": "SUCCESS"``."""
    key, word = entry
    return key.isdecimal() and isinstance(word, str)


def _is_ok(word: str) -> bool:
    """Whether the tag or the sequence is there now. Keap publishes no list of these words."""
    return word.upper() == "SUCCESS" or any(each in word.upper() for each in ("ALREADY", "DUPLIC"))
