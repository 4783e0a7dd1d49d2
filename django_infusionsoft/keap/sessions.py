"""``requests`` without what a tool has put in its place, and without a parent's connections.

A cache that a site installs for the whole process, such as requests-cache's ``install_cache()``,
replaces ``requests.Session``. It would return one account's data to another account. The original
classes are still there, and so is what tools for tests and tracing change in them.
"""

import os
from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import BaseAdapter
from requests.cookies import RequestsCookieJar
from requests.hooks import default_hooks
from requests.sessions import SessionRedirectMixin
from requests.utils import default_headers

if TYPE_CHECKING:
    from requests import Session as OriginalSession
    from requests.adapters import HTTPAdapter
else:

    def _original(base: type, name: str) -> type:
        """Return the subclass that ``requests`` itself has defined under this name."""
        return next(
            each
            for each in base.__subclasses__()
            if (each.__module__, each.__name__) == (base.__module__, name)
        )

    OriginalSession = _original(SessionRedirectMixin, "Session")
    HTTPAdapter = _original(BaseAdapter, "HTTPAdapter")

__all__ = ["HTTPAdapter", "Session"]


@cache
def _defaults() -> dict[str, Any]:
    return vars(OriginalSession())


class Session(OriginalSession):
    """A session whose requests are sent, over connections of this process."""

    # The process that may have connections; 0 after unpickling.
    _pid = 0

    def __init__(self, adapter: BaseAdapter | None = None) -> None:
        """:param adapter: sends the requests; by default adapters of the session's own."""
        if adapter is None:
            super().__init__()
        else:
            self._set_defaults()
        self.mount("https://", adapter or HTTPAdapter())
        self.mount("http://", adapter or HTTPAdapter())
        self._pid = os.getpid()

    def _set_defaults(self) -> None:
        """Do what ``__init__()`` does, without the adapters that it makes, which take longer."""
        vars(self).update(_defaults())
        self.headers = default_headers()  # type: ignore[assignment]  # as requests does
        self.hooks = default_hooks()
        self.proxies, self.params = {}, {}
        self.cookies = RequestsCookieJar()
        self.adapters = OrderedDict()

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        if self._pid != os.getpid():
            self._give_up_connections()
        return super().send(request, **kwargs)

    def _give_up_connections(self) -> None:
        """Leave the connections to the parent process, which would get this one's replies."""
        for adapter in self.adapters.values():
            if isinstance(adapter, HTTPAdapter):
                # As if it were unpickled: with a new pool.
                adapter.__setstate__(adapter.__getstate__())  # type: ignore[attr-defined]
        self._pid = os.getpid()
