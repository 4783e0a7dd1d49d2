"""The verbs of ``single`` for async code: nothing waits for Keap on the event loop.

A refresh runs in a thread with a database connection of its own, not in the one thread that
asgiref keeps for all other database work, which would stand still meanwhile. Only in a
``TestCase`` it does run there, since no other connection sees the test's data.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Final, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from asgiref.sync import sync_to_async
from django.contrib.auth.base_user import AbstractBaseUser
from django.db import connections

from django_infusionsoft.refresh import single
from django_infusionsoft.storage.credentials import CredentialRow, alias_of, copy_from
from django_infusionsoft.storage.database import is_in_testcase, tenant_selector

T = TypeVar("T")
# How many accounts one process refreshes at once for async code.
MAX_THREADS: Final = 32
_threads: Final = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="infusionsoft-async")


class _Turn:
    """Lets the tasks of an event loop refresh a credential one after another."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.newest: CredentialRow | None = None
        """The instance with the token pair of the last one, for those that have waited."""


_Turns = WeakValueDictionary[tuple[str, int], _Turn]
_turns: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns]] = WeakKeyDictionary()


async def get_access_token(credential: CredentialRow) -> str:
    """See ``Credential.aget_access_token()``."""
    if credential.has_fresh_access_token:
        return credential.access_token
    turn = _turn_of(credential)
    async with turn.lock:
        if turn.newest is not None and turn.newest.has_fresh_access_token:
            copy_from(credential, turn.newest)
        if not credential.has_fresh_access_token:
            await _in_thread(credential, lambda: single.get_access_token(credential))
            turn.newest = credential
    return credential.access_token


async def replace_access_token(credential: CredentialRow, rejected: str) -> str:
    """See ``Credential.aaccess_token_instead_of()``."""
    turn = _turn_of(credential)
    async with turn.lock:
        if turn.newest is not None and turn.newest.generation > credential.generation:
            copy_from(credential, turn.newest)
        if credential.access_token == rejected or not credential.has_fresh_access_token:
            await _in_thread(credential, lambda: single.replace_access_token(credential, rejected))
            turn.newest = credential
    return credential.access_token


async def refresh(credential: CredentialRow, *, user: AbstractBaseUser | None) -> None:
    """See ``Credential.arefresh()``."""
    await _in_thread(credential, lambda: single.refresh(credential, force=True, user=user))


def _turn_of(credential: CredentialRow) -> _Turn:
    turns = _turns.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    key = alias_of(credential), credential.pk
    if (turn := turns.get(key)) is None:
        turn = turns[key] = _Turn()
    return turn


async def _in_thread(credential: CredentialRow, function: Callable[[], T]) -> T:
    alias = alias_of(credential)
    in_testcase, select_tenant = await sync_to_async(_place_of)(alias)
    if in_testcase:
        return await sync_to_async(function)()

    def run() -> T:
        try:
            select_tenant()
            return function()
        finally:
            connections.close_all()

    # If the task is cancelled, the thread goes on: its answer is stored.
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads, copy_context().run, run)


def _place_of(alias: str) -> tuple[bool, Callable[[], None]]:
    return is_in_testcase(alias), tenant_selector(alias)
