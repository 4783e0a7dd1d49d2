"""Small things that several tests use."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import OperationalError, connection, connections
from django.dispatch import Signal

T = TypeVar("T")


@contextmanager
def received(signal: Signal) -> Iterator[list[dict[str, Any]]]:
    """Collect what the signal is sent with."""
    calls: list[dict[str, Any]] = []

    def receiver(**kwargs: Any) -> None:
        calls.append(kwargs)

    signal.connect(receiver)
    try:
        yield calls
    finally:
        signal.disconnect(receiver)


@contextmanager
def threads(count: int) -> Iterator[Callable[[Callable[[], T]], Future[T]]]:
    """Run functions in threads of their own, whose database connections are closed in the end."""

    def closing(function: Callable[[], T]) -> T:
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as pool:
        yield lambda function: pool.submit(closing, function)


@contextmanager
def failing_updates(*messages: str, written: bool = False) -> Iterator[list[str]]:
    """Let the next ``UPDATE`` of a credential fail for each message, as a lost database does.

    :param written: only the answer is lost; the row has been written.
    :returns: the messages that nobody has met yet.
    """
    left = list(messages)

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        is_ours = sql.startswith("UPDATE") and "django_infusionsoft_credential" in sql
        if not is_ours or not left:
            return execute(sql, params, many, context)
        if written:
            execute(sql, params, many, context)
        raise OperationalError(left.pop(0))

    with connection.execute_wrapper(wrapper):
        yield left
