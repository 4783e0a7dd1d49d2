"""Keeps secrets out of error reports, which show the local variables of each frame.

Sentry's SDK and Django's debug page and mails show them by their ``repr()``.
"""

import logging
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

from django.http import HttpRequest

P = ParamSpec("P")
T = TypeVar("T")

# As Django's own reports.
HIDDEN: Final = "********************"


class Secret(str):
    """A token, a client secret or a code: a string whose ``repr()`` does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"


def clears_locals(function: Callable[P, T]) -> Callable[P, T]:
    """Let exceptions leave the function without the local variables of its frames.

    The frames stay, with their lines: HTTP libraries and parsers keep secrets in many variables.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        handled = sys.exception()  # by the caller: not ours
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            clear_locals(error, handled)
            raise

    return wrapper


def clear_locals(error: BaseException, handled: BaseException | None = None) -> None:
    """Clear the variables of the frames, if they have ended, of an exception and its causes.

    :param handled: an exception whose frames are kept.
    """
    pending: list[BaseException | None] = [error]
    seen = {id(None), id(handled)}
    while pending:
        each = pending.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            pending += [each.__cause__, each.__context__]


def clear_logged(record: logging.LogRecord) -> bool:
    """Clear the variables of a logged exception. A filter, which lets every record pass."""
    if record.exc_info and record.exc_info[1]:
        clear_locals(record.exc_info[1])
    return True


def hide_posted(request: HttpRequest, name: str) -> None:
    """Hide a parameter of a form from now on, from reports that Django does not filter, too."""
    if name in request.POST:
        posted = request.POST.copy()
        posted[name] = HIDDEN
        request.POST = posted  # type: ignore[assignment]  # annotated as immutable


def hide_query_from_sentry() -> None:
    """Remove the query from the events of this request: Sentry's SDK has read it already."""
    sentry: Any = sys.modules.get("sentry_sdk")  # only if the site uses it
    if sentry is not None and sentry.get_client().is_active():
        sentry.get_isolation_scope().add_event_processor(_without_query)


def _without_query(event: dict[str, Any], hint: object) -> dict[str, Any]:
    event.get("request", {}).pop("query_string", None)
    return event
