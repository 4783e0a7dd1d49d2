"""Helpers that several tests use."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar
from unittest import mock

from django.db import OperationalError, connection, connections
from django.dispatch import Signal
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.exceptions import InfusionsoftError
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Client, Sandbox

T = TypeVar("T")

# A client other than that of the settings.
SECOND = Client("second-client", "second-secret")


@contextmanager
def keap_with(accounts: Sequence[str]) -> Iterator[Sandbox]:
    """Run Keap with these accounts and two clients, with the settings for it."""
    with (
        Sandbox(accounts=accounts, clients=[Client(), SECOND]) as running,
        override_settings(**running.settings),
    ):
        yield running


@contextmanager
def receiver(signal: Signal, function: Callable[..., Any]) -> Iterator[None]:
    """Connect a receiver to the signal for a while."""
    signal.connect(function, weak=False)
    try:
        yield
    finally:
        signal.disconnect(function)


@contextmanager
def received(signal: Signal) -> Iterator[list[dict[str, Any]]]:
    """Collect the arguments of each call of the signal."""
    calls: list[dict[str, Any]] = []
    with receiver(signal, lambda **kwargs: calls.append(kwargs)):
        yield calls


@contextmanager
def threads(count: int) -> Iterator[Callable[[Callable[[], T]], Future[T]]]:
    """Run functions in threads, whose database connections are closed at the end."""

    def closing(function: Callable[[], T]) -> T:
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as pool:
        yield lambda function: pool.submit(closing, function)


@contextmanager
def thread_limit(name: str, limit: int = 0) -> Iterator[None]:
    """Let only so many threads of this name start, as if the system allowed no more."""
    begin, left = threading.Thread.start, limit

    def start(self: threading.Thread) -> None:
        nonlocal left
        if self.name == name:
            if not left:
                raise RuntimeError("can't start new thread")
            left -= 1
        begin(self)

    with mock.patch.object(threading.Thread, "start", start):
        yield


def end_leases() -> None:
    """Expire every lease, as if its holder had died a while ago."""
    past = timezone.now() - timedelta(seconds=1)
    Credential.objects.filter(lease_until__isnull=False).update(lease_until=past, refresh_at=past)


@contextmanager
def failing_updates(
    *messages: str,
    written: bool = False,
    when: Callable[[], bool] = lambda: True,
    statement: str = "UPDATE",
    table: str = "credential",
) -> Iterator[list[str]]:
    """Let the next ``UPDATE`` of a credential fail for each message, as a lost connection does.

    :param written: the row is written, and only the answer is lost.
    :param when: whether the database fails yet.
    :returns: the messages that have not been raised yet.
    """
    left = list(messages)

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        is_ours = sql.startswith(statement) and f"django_infusionsoft_{table}" in sql
        if not (is_ours and left and when()):
            return execute(sql, params, many, context)
        if written:
            execute(sql, params, many, context)
        raise OperationalError(left.pop(0))

    with connection.execute_wrapper(wrapper):
        yield left


def row(credential: Credential) -> Credential:
    return Credential.objects.get(pk=credential.pk)


def ask(credential: Credential) -> str:
    """Ask for an access token as a web process does; return it or the name of the exception."""
    try:
        return row(credential).get_access_token()
    except InfusionsoftError as error:
        return type(error).__name__


def run() -> dict[str, int]:
    """Refresh everything that is due; return the counts that are not zero."""
    counts = Credential.objects.refresh_due().as_dict()
    return {name: count for name, count in counts.items() if count}
