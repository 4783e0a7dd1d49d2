"""Small things that several tests use."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from django.db import OperationalError, connection, connections
from django.dispatch import Signal
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.exceptions import InfusionsoftError
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Client, Sandbox

T = TypeVar("T")

# Another one than that of the settings.
SECOND = Client("second-client", "second-secret")


@contextmanager
def keap_with(accounts: Sequence[str]) -> Iterator[Sandbox]:
    """Keap with these accounts and two clients, and the settings that point at it."""
    with (
        Sandbox(accounts=accounts, clients=[Client(), SECOND]) as running,
        override_settings(**running.settings),
    ):
        yield running


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


def end_leases() -> None:
    """Let every lease have run out, as if its holder had died a while ago."""
    past = timezone.now() - timedelta(seconds=1)
    Credential.objects.filter(lease_until__isnull=False).update(lease_until=past, refresh_at=past)


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


def row(credential: Credential) -> Credential:
    return Credential.objects.get(pk=credential.pk)


def ask(credential: Credential) -> str:
    """Ask for an access token as a web process does; return it, or the kind of exception."""
    try:
        return row(credential).get_access_token()
    except InfusionsoftError as error:
        return type(error).__name__


def run() -> dict[str, int]:
    """Let a run go over everything that is due; return its counts but the zeros."""
    counts = Credential.objects.refresh_due().as_dict()
    return {name: count for name, count in counts.items() if count}
