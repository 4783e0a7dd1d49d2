"""Keeps secrets out of error reports, which show the local variables of each frame.

Sentry's SDK and Django's debug page and mails show them by their ``repr()``.
"""

import logging
import sys
import traceback
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from functools import wraps
from types import FrameType
from typing import Any, Final, ParamSpec, TypeVar

from django.http import HttpRequest

P = ParamSpec("P")
T = TypeVar("T")

# As Django's own reports.
HIDDEN: Final = "********************"
PACKAGE: Final = __name__.partition(".")[0]


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


def async_clears_locals(
    function: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """The same for an async function."""

    @wraps(function)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        handled = sys.exception()
        try:
            return await function(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            clear_locals(error, handled)
            raise

    return wrapper


def clear_locals(
    error: BaseException,
    handled: BaseException | None = None,
    handlers: Collection[FrameType] = (),
) -> None:
    """Clear the variables of the frames, if they have ended, of an exception and its causes.

    :param handled: an exception whose frames are kept.
    :param handlers: frames; those of the exceptions that they have caught are kept, too.
    """
    pending: list[BaseException | None] = [error]
    seen = {id(None), id(handled)}
    while pending:
        each = pending.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            # A traceback begins with the frame that has caught the exception.
            if each.__traceback__ and each.__traceback__.tb_frame in handlers:
                continue
            traceback.clear_frames(each.__traceback__)
            pending += [each.__cause__, each.__context__]


def clear_logged(record: logging.LogRecord) -> bool:
    """Clear the variables of a logged exception. A filter, which lets every record pass.

    Not those of an exception that the site was handling when it called the app.
    """
    if record.exc_info and record.exc_info[1]:
        clear_locals(record.exc_info[1], handlers=_frames_of_the_site())
    return True


def _frames_of_the_site() -> list[FrameType]:
    """Return the running frames that are not the app's."""
    frames = (frame for frame, _ in traceback.walk_stack(None))
    return [each for each in frames if each.f_globals.get("__name__", "").split(".")[0] != PACKAGE]


def hide_posted(request: HttpRequest, name: str) -> None:
    """Hide a parameter of a form, also in reports that Django's own filter does not process."""
    if name in request.POST:
        posted = request.POST.copy()
        posted[name] = HIDDEN
        request.POST = posted  # type: ignore[assignment]  # annotated as immutable


def hide_query_from_sentry() -> None:
    """Remove the query from the events of this request: Sentry's SDK has read it already.

    Versions before 2.12 lack some of these names; no error of the SDK's may end the request.
    """
    sentry: Any = sys.modules.get("sentry_sdk")  # only if the site uses it
    with suppress(Exception):
        if sentry is not None and sentry.get_client().is_active():
            scope = sentry.get_isolation_scope()
            # Without a scope for each request, all requests share one.
            if _without_query not in getattr(scope, "_event_processors", ()):
                scope.add_event_processor(_without_query)


def _without_query(event: dict[str, Any], hint: object) -> dict[str, Any]:
    event.get("request", {}).pop("query_string", None)
    return event
