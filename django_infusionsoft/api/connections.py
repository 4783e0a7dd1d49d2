"""The kept-alive connections to the API, which all sessions and threads of a process share."""

import os
from functools import cache
from typing import Any, Final

import requests
from requests.adapters import BaseAdapter

from django_infusionsoft.keap.sent import TracingAdapter

# How many connections to one host a process keeps. Threads beyond that open their own.
MAX_KEPT: Final = 64


class SharedConnections(BaseAdapter):
    """Sends requests over the connections of this process."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        return _adapter_of(os.getpid()).send(request, **kwargs)

    def close(self) -> None:
        """Keep the connections: a session ends, and others use them."""

    def __reduce__(self) -> str:
        return "connections"  # pickled by its name


@cache
def _adapter_of(process_id: int) -> TracingAdapter:
    """Return a process's own adapter, also without Python's knowledge of the fork, as in uWSGI.

    That of its parent is kept: closing its sockets is not a child's business.
    """
    return TracingAdapter(pool_maxsize=MAX_KEPT, max_retries=0)


connections: Final = SharedConnections()
