"""How long a caller waits for everything together: Keap, another refresh, the database."""

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import Final

from django_infusionsoft import elapsed
from django_infusionsoft.conf import conf

logger = logging.getLogger("django_infusionsoft")

_ends_at: Final[ContextVar[float | None]] = ContextVar("django_infusionsoft_wait", default=None)


@contextmanager
def limited(seconds: float | None = None) -> Iterator[None]:
    """Let the block wait this long, unless it is in a block with a limit of its own.

    :param seconds: by default ``WAIT_SECONDS``.
    """
    if _ends_at.get() is not None:
        yield
        return
    with _until(elapsed.monotonic() + (conf.WAIT_SECONDS if seconds is None else seconds)):
        yield


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Let the block wait this long, or less if it is in a block with a shorter limit."""
    with _until(elapsed.monotonic() + min(seconds, seconds_left())):
        yield


@contextmanager
def to_the_end() -> Iterator[None]:
    """Let the block wait as long as it takes: for commands and runs, without a request."""
    with _until(math.inf):
        yield


def seconds_left() -> float:
    """Return how long this block may still wait; infinity if it has no limit."""
    ends_at = _ends_at.get()
    return math.inf if ends_at is None else max(0.0, ends_at - elapsed.monotonic())


@contextmanager
def _until(ends_at: float) -> Iterator[None]:
    token = _ends_at.set(ends_at)
    try:
        yield
    finally:
        _ends_at.reset(token)


@cache
def threads_disabled() -> bool:
    """Whether threads run during requests only: in uWSGI without ``enable-threads``."""
    try:
        uwsgi = import_module("uwsgi")  # only uWSGI itself has it
    except ImportError:
        return False
    if getattr(uwsgi, "has_threads", False):
        return False
    logger.warning("threads_disabled")
    return True


def process_ends_without_threads() -> bool:
    """Whether this process ends by ``os._exit()``, and so waits for no thread before that.

    That is a process of Celery's prefork pool, or one of RQ that does a job. Processes of
    ``multiprocessing`` do wait.
    """
    # A module lacks its names while another thread imports it, and is not in use yet.
    current_process = getattr(sys.modules.get("billiard.process"), "current_process", None)
    if current_process is not None and current_process()._parent_pid is not None:  # noqa: SLF001
        return True
    current_job = getattr(sys.modules.get("rq.job"), "get_current_job", None)
    return current_job is not None and current_job() is not None
