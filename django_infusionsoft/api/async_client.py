"""The async connections to the API, which all sessions of an event loop share.

httpx2 is the continuation of httpx, to which Starlette and others have moved. niquests replaces
urllib3, which requests uses here, and aiohttp has no proof of what was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from http.cookiejar import DefaultCookiePolicy
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from django_infusionsoft.exceptions import ConfigurationError

if TYPE_CHECKING:
    import httpx2

# How many connections a loop opens at most, and keeps.
MAX_CONNECTIONS: Final = 200
MAX_IDLE: Final = 64
IDLE_SECONDS: Final = 15.0

_Keeper = AsyncGenerator["httpx2.AsyncClient"]
_kept: Final[dict[asyncio.AbstractEventLoop, tuple[_Keeper, httpx2.AsyncClient]]] = {}
_opening: Final[dict[asyncio.AbstractEventLoop, asyncio.Lock]] = {}


async def client() -> httpx2.AsyncClient:
    """Return the client of the running event loop. It is closed when the loop ends.

    :raises ConfigurationError: httpx2 is not installed.
    """
    loop = asyncio.get_running_loop()
    async with _opening.setdefault(loop, asyncio.Lock()):
        if loop not in _kept:
            for ended in [each for each in _kept if each.is_closed()]:
                del _kept[ended], _opening[ended]
            # In a thread: the import and the certificates take a while.
            keeper = _keep(loop, await asyncio.to_thread(_new_client))
            _kept[loop] = keeper, await anext(keeper)
    return _kept[loop][1]


def failures() -> tuple[type[Exception], ...]:
    """Return the errors of a request without an answer; others are of a wrong call."""
    library: Any = import_module("httpx2")
    return TimeoutError, library.TransportError, library.DecodingError


async def _keep(loop: asyncio.AbstractEventLoop, new: httpx2.AsyncClient) -> _Keeper:
    # asyncio.run(), asgiref and ASGI servers close the asynchronous generators of a loop at its
    # end, and have no other hook.
    try:
        yield new
    finally:
        del _kept[loop], _opening[loop]
        await new.aclose()


def _new_client() -> httpx2.AsyncClient:
    try:
        library: Any = import_module("httpx2")
    except ImportError:
        raise ConfigurationError(
            "asession() needs httpx2: pip install django-infusionsoft[async]"
        ) from None
    limits = library.Limits(
        max_connections=MAX_CONNECTIONS,
        max_keepalive_connections=MAX_IDLE,
        keepalive_expiry=IDLE_SECONDS,
    )
    new: httpx2.AsyncClient = library.AsyncClient(limits=limits)
    # One account's cookies must not be sent with another's request.
    new.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return new
