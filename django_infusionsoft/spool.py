"""The spool: a folder of encrypted pairs that Keap has given and the database does not have yet.

A pair is written down here the moment it has been read, so that it outlives its process, and
removed once it is stored. That is not forced to the disk: it would take as long as storing it.
Where storing fails, it is, and the pair waits for whoever finds it: the next run, or a reader.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from cryptography.fernet import InvalidToken
from django.views.decorators.debug import sensitive_variables

from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError, SpoolError
from django_infusionsoft.fields import get_cipher
from django_infusionsoft.oauth import TokenPair
from django_infusionsoft.plain import quoted

logger = logging.getLogger("django_infusionsoft")

# Somebody is storing it, or died before that.
IN_FLIGHT: Final = ".reply"
# Storing it has failed.
WAITING: Final = ".pair"
HALF_WRITTEN: Final = ".half-written-"
HALF_WRITTEN_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where the answer to one generation's refresh token belongs."""

    database: str
    """``NAME`` of the database. Not its host, which changes when a database is replaced."""
    credential_id: int
    generation: int
    fingerprint: str
    """Of the refresh token that was presented: the row must still hold it. It tells apart the
    databases that one user has under one name."""

    @property
    def stem(self) -> str:
        """The file's name without its suffix: nothing in it is a secret."""
        credential = f"{self.credential_id}-{self.generation}-{self.fingerprint}"
        return f"{_site(self.database)}-{credential}"


@dataclass(slots=True)
class Slip:
    """One pair in the spool, or on its way there."""

    place: Place
    pair: TokenPair = field(repr=False)
    path: Path | None = None
    """``None`` while it could not be written."""

    @property
    def is_in_flight(self) -> bool:
        """Whether it has been written ahead, and nobody has failed to store it."""
        return self.path is not None and self.path.suffix == IN_FLIGHT

    @property
    def age_seconds(self) -> float:
        """How long ago it was written; 0 where it is gone."""
        try:
            return time.time() - self.path.stat().st_mtime if self.path else 0.0
        except FileNotFoundError:
            return 0.0

    def secure(self) -> bool:
        """Force the pair to the disk, for whoever comes next; return whether it is there."""
        try:
            folder = _folder()
            if folder is None:
                return False
            if self.path is None:
                self.path = _write(folder, self.place, self.pair)
            waiting = self.path.with_suffix(WAITING)
            _sync(self.path)
            self.path = self.path.replace(waiting)
            _sync(folder)
        except (OSError, ConfigurationError):
            logger.exception("spool_not_written credential=%s", self.place.credential_id)
            return False
        return True

    def forget(self) -> None:
        """Remove the pair: it is stored, or belongs nowhere any more."""
        if self.path is None:
            return
        try:
            self.path.unlink(missing_ok=True)
        except OSError:  # found by the next run, which knows that its time is over
            logger.exception("spool_not_emptied file=%s", self.path)
        self.path = None


@sensitive_variables()
def keep(place: Place, pair: TokenPair) -> Slip:
    """Write the pair down ahead of storing it. Whatever fails is logged: it is a second safety."""
    slip = Slip(place, pair)
    try:
        if folder := _folder():
            slip.path = _write(folder, place, pair)
    except Exception:
        logger.exception("spool_not_written credential=%s", place.credential_id)
    return slip


def find(place: Place, *, in_flight: bool) -> Slip | None:
    """Return the pair that the refresh token of this place was already exchanged for, if any.

    :param in_flight: also where storing it has not failed: for who holds the lease.
    :raises SpoolError: it is there and cannot be read.
    """
    folder = _existing_folder()
    if folder is None:
        return None
    # In the order in which a file changes its name, so that none slips through.
    for suffix in (IN_FLIGHT, WAITING) if in_flight else (WAITING,):
        slip = _read(folder / f"{place.stem}{suffix}")
        if slip is not None and slip.place == place:
            return slip
    return None


def waiting(database: str) -> Iterator[Slip]:
    """Yield what the spool holds for a database, in flight or not; tell what cannot be read."""
    folder = _existing_folder()
    if folder is None:
        return
    _remove_half_written(folder)
    for path in sorted(folder.glob(f"{_site(database)}-*-*")):
        try:
            slip = _read(path)
        except SpoolError as error:
            logger.error("spool_unreadable error=%s", quoted(error))
            continue
        if slip is not None and slip.place.database == database:
            yield slip


def problem() -> str:
    """Return why nothing can be written to the spool, or the empty string. Changes nothing."""
    try:
        path = _path()
        if path is None:
            return ""
        if os.path.lexists(path):
            _require_ours(path)
        existing = next(each for each in (path, *path.parents) if each.exists())
    except (OSError, ConfigurationError) as error:
        return str(error)
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"{existing} cannot be written to."


def _path() -> Path | None:
    configured = os.fspath(conf.SPOOL_DIR)
    return _path_of(configured, os.geteuid()) if configured else None


@lru_cache
def _path_of(configured: str, uid: int) -> Path:
    return Path(configured.replace("{uid}", str(uid)))


def _existing_folder() -> Path | None:
    """Return the folder, if there is one. One that is not ours is told, and stops nothing."""
    try:
        path = _path()
        if path is None:
            return None
        _require_ours(path)
    except FileNotFoundError:
        return None
    except (OSError, ConfigurationError):
        logger.exception("spool_not_read")
        return None
    return path


def _folder() -> Path | None:
    """Return the folder, which is this user's and nobody else's; ``None`` where there is none.

    :raises SpoolError: it is somebody else's.
    """
    path = _path()
    if path is None:
        return None
    try:
        _require_ours(path)
    except FileNotFoundError:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_ours(path)
    return path


def _require_ours(path: Path) -> None:
    """Trust no folder but one of our own that is closed: under /var/tmp anybody could make one.

    :raises SpoolError: it is a link, somebody else's, or open to others.
    """
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise SpoolError(f"INFUSIONSOFT_SPOOL_DIR: {path} is not a folder, but a file or a link.")
    if found.st_uid != os.geteuid():
        raise SpoolError(
            f"INFUSIONSOFT_SPOOL_DIR: {path} is another user's. Name a folder for each user, or "
            f"let all processes of the site run as one."
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise SpoolError(f"INFUSIONSOFT_SPOOL_DIR: {path} is open to others: chmod 700 it.")


@sensitive_variables()
def _write(folder: Path, place: Place, pair: TokenPair) -> Path:
    content = {
        "database": place.database,
        "credential": place.credential_id,
        "generation": place.generation,
        "presented": place.fingerprint,
        "access_token": pair.access_token,
        "refresh_token": pair.refresh_token,
        "expires_in": pair.expires_in,
        "account": pair.account,
        "received_at": time.time() - (pair.expires_in - pair.seconds_left),
    }
    sealed = get_cipher().encrypt(json.dumps(content).encode())
    # Of this thread alone. In a folder that nobody else can write to, the name need not be secret.
    writer = f"{os.getpid()}-{threading.get_native_id()}"
    name = f"{folder}/{HALF_WRITTEN}{place.stem}-{writer}"
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            _write_all(descriptor, sealed)
        finally:
            os.close(descriptor)
        path = folder / f"{place.stem}{IN_FLIGHT}"
        os.replace(name, path)  # noqa: PTH105  # a refresh has few microseconds for each of these
        return path
    except BaseException:
        with suppress(OSError):
            Path(name).unlink(missing_ok=True)
        raise


def _write_all(descriptor: int, content: bytes) -> None:
    # A disk that is nearly full takes a part.
    while content:
        content = content[os.write(descriptor, content) :]


@sensitive_variables()
def _read(path: Path) -> Slip | None:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            sealed = file.readall()
        if not sealed:  # what a machine that lost its power leaves
            path.unlink(missing_ok=True)
            return None
        return _slip(path, json.loads(get_cipher().decrypt(sealed)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SpoolError(
            f"{path} holds a token pair and cannot be read ({error.strerror}): let all processes "
            f"of the site run as the same user."
        ) from None
    except InvalidToken:
        raise SpoolError(
            f"No key in INFUSIONSOFT_ENCRYPTION_KEYS opens {path}, which holds a token pair: put "
            f"back the key that it was written with, or remove the file."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        # Without the cause, which may show the content.
        raise SpoolError(f"{path} holds something that this version does not know.") from None


def _slip(path: Path, content: dict[str, Any]) -> Slip:
    # The wall clock, since another process reads it; of the same machine, so only a clock that
    # was set meanwhile can be wrong, and never beyond the pair's whole life.
    age = max(0.0, time.time() - content["received_at"])
    pair = TokenPair(
        access_token=content["access_token"],
        refresh_token=content["refresh_token"],
        expires_in=content["expires_in"],
        account=content["account"],
        received_at=time.monotonic() - age,
    )
    place = Place(
        content["database"], content["credential"], content["generation"], content["presented"]
    )
    return Slip(place, pair, path)


def _remove_half_written(folder: Path) -> None:
    """Remove what processes left that died while writing, before anything was lost to them."""
    for path in folder.glob(f"{HALF_WRITTEN}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > HALF_WRITTEN_SECONDS:
                path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache
def _site(database: str) -> str:
    return sha256(database.encode()).hexdigest()[:8]
