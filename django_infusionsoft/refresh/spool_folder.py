"""The directory of the spool: where it is, whether it is safe to use, and space in it."""

import errno
import logging
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from django_infusionsoft import elapsed
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError, SpoolError
from django_infusionsoft.text import quoted

logger = logging.getLogger("django_infusionsoft")

# Space for one reply. A token pair of Keap's needs less than a kibibyte, encrypted.
RESERVED: Final = ".reserved"
RESERVED_BYTES: Final = 4 * 1024
NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# File systems in memory, and the layer of a container.
VOLATILE: Final = ("overlay", "ramfs", "tmpfs")
# How long a directory that was checked is not checked again: each call of the system makes the
# threads of a run wait for each other.
CHECK_SECONDS: Final = 10.0
_checked_at: Final[dict[Path, float]] = {}
# The errors that this process has logged since the spool last worked.
_reported: Final[set[str]] = set()


class DiskFull(Exception):
    """There is no space for a reply on the disk of ``folder``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder


@dataclass(slots=True)
class Space:
    """The space for one reply, taken before its request is sent: none if ``path`` is ``None``."""

    path: Path | None = None
    descriptor: int = -1

    def release(self) -> None:
        """Give it back, unless a reply has been written to it."""
        if self.path is None:
            return
        os.close(self.descriptor)
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self.path = None

    def open(self, path: Path) -> int | None:
        """Move it to this path; return its file descriptor, or ``None`` if it is gone."""
        try:
            if self.path is not None:
                self.path.rename(path)
                self.path = None
                return self.descriptor
        except FileNotFoundError:  # another process has removed it: it was old
            self.release()
        return None


def reserve(name: str) -> Space:
    """Take the space for a reply; errors are logged, once.

    :raises DiskFull: there is none.
    """
    space, folder = Space(), None
    try:
        if folder := usable():
            path = folder / f"{name}{RESERVED}"
            space = Space(path, _create(path))
            _allocate(space.descriptor)
    except Exception as error:  # the spool is a second safety
        _report(error)
        space.release()
        if folder and isinstance(error, OSError) and error.errno in NO_SPACE:
            raise DiskFull(folder) from error
    return space


def _allocate(descriptor: int) -> None:
    # Not posix_fallocate(), which takes longer than a reply's whole way through the spool.
    _write_all(descriptor, bytes(RESERVED_BYTES))
    os.lseek(descriptor, 0, os.SEEK_SET)


def write(path: Path, content: bytes, space: Space) -> None:
    """Write a file, in the reserved space if there is one, or nothing."""
    reserved = space.open(path)
    descriptor = _create(path) if reserved is None else reserved
    try:
        try:
            _write_all(descriptor, content)
        finally:
            os.close(descriptor)
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    if reserved is not None:  # otherwise the next one may fail again
        _reported.clear()


def _write_all(descriptor: int, content: bytes) -> None:
    while content:  # a nearly full disk accepts a part of it
        content = content[os.write(descriptor, content) :]


def fsync(path: Path) -> None:
    """Force a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def reported_errors() -> Iterator[None]:
    """Log errors, each once, and suppress them."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        _report(error)


def _report(error: Exception) -> None:
    """Log it unless this process has done so since the spool last worked."""
    # Not the file's name, which is another one each time.
    what = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    if what not in _reported:
        _reported.add(what)
        logger.error("spool_unusable error=%s", quoted(error))


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:  # the directory was removed after it was checked
        _checked_at.clear()
        usable()
        return os.open(path, flags, 0o600)


def check() -> str:
    """Return why the spool cannot be written, or the empty string, without changing anything."""
    try:
        path = _path()
        if path is None:
            return ""
        if os.path.lexists(path):
            _require_ours(path)
        existing = next(each for each in (path, *path.parents) if each.exists())
    except (OSError, ConfigurationError) as error:
        return str(error)
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"{existing} is not writable."


def volatility(mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return why the directory does not outlive the service or container, if that can be seen."""
    path = _path()
    if path is None or not mounts.exists():  # not on Linux
        return ""
    found: tuple[str, str, str] = ("", "", "")
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        fields, _, rest = line.partition(" - ")
        root, point = fields.split()[3:5]
        # The last of several mounts at one point hides the others.
        if path.is_relative_to(point) and len(point) >= len(found[1]):
            found = root, point, rest.split()[0]
    root, point, kind = found
    if "systemd-private-" in root:
        return f"{point} is private to the service (PrivateTmp=)."
    return (
        f"{point} is of type {kind}, which is lost with the container or at a restart."
        if kind in VOLATILE
        else ""
    )


def _path() -> Path | None:
    configured = os.fspath(conf.SPOOL_DIR)
    return _path_of(configured, os.geteuid()) if configured else None


@lru_cache
def _path_of(configured: str, uid: int) -> Path:
    return Path(configured.replace("{uid}", str(uid)))


def existing() -> Path | None:
    """Return the directory if it exists. One that is not safe is logged once, and ignored."""
    try:
        path = _path()
        if path is None:
            return None
        _require_ours(path)
    except FileNotFoundError:
        return None
    except (OSError, ConfigurationError) as error:
        _report(error)
        return None
    return path


def usable() -> Path | None:
    """Return the directory, created if need be; ``None`` if none is configured.

    :raises SpoolError: it belongs to another user, or is open to others.
    """
    path, now = _path(), elapsed.monotonic()
    if path is None or now - _checked_at.get(path, -math.inf) < CHECK_SECONDS:
        return path
    try:
        _require_ours(path)
    except FileNotFoundError:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_ours(path)
    _checked_at[path] = now
    return path


def is_usable() -> bool:
    """Whether there is a spool that can be used; if not, the reason is logged once."""
    try:
        return usable() is not None
    except (OSError, ConfigurationError) as error:
        _report(error)
        return False


def _require_ours(path: Path) -> None:
    """Check that only this user can use the directory: any user can create one in /var/tmp.

    :raises SpoolError: it is no directory, belongs to another user, or is open to others.
    """
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise SpoolError(f"INFUSIONSOFT_SPOOL_DIR: {path} is a file or a link, not a directory.")
    if found.st_uid != os.geteuid():
        raise SpoolError(
            f"INFUSIONSOFT_SPOOL_DIR: {path} belongs to another user. Use a directory for each "
            f"user, or run all processes of the site as the same user."
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise SpoolError(
            f"INFUSIONSOFT_SPOOL_DIR: {path} is accessible to other users: chmod 700 it."
        )
