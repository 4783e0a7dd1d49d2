"""The spool: a directory of encrypted replies that are not in the database yet.

A token pair (access and refresh token) is written here as soon as it has been read, so that it
survives the death of its process, and removed once it is stored. The space for it is taken before
the request is sent. It is not forced to the disk: that would take as long as storing it. If
storing fails, it is, and the pair waits for the next run or for a caller who needs an access
token. Other outcomes are written here only if storing them fails.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

from cryptography.fernet import InvalidToken

from django_infusionsoft import elapsed, exceptions
from django_infusionsoft.exceptions import ConfigurationError, InfusionsoftError, SpoolError
from django_infusionsoft.fields import get_cipher
from django_infusionsoft.keap.oauth import TokenPair, is_token
from django_infusionsoft.refresh import spool_folder
from django_infusionsoft.refresh.spool_folder import Space
from django_infusionsoft.text import quoted

logger = logging.getLogger("django_infusionsoft")

# A process is storing it, or died before that.
IN_FLIGHT: Final = ".reply"
# Storing it failed, and so did releasing the lease: no need to wait until that expires.
WAITING: Final = ".pair"
# The outcome of an attempt that got no token pair. Storing it failed, as above.
OUTCOME: Final = ".outcome"
# The arguments of exceptions besides their message.
ERROR_DETAILS: Final = ("reason", "retry_after")
# A file that no row needs is kept for so long: it may be another database's of the same name.
KEPT_SECONDS: Final = 7 * 86_400.0
# One that is older is reported.
OLD_SECONDS: Final = 3600.0
_reported: Final[set[Path]] = set()


@dataclass(frozen=True, slots=True)
class SpoolKey:
    """Identifies the answer to one generation's refresh token."""

    database: str
    """``NAME`` of the database. Not its host, which changes when a database is moved."""
    credential_id: int
    generation: int
    fingerprint: str
    """Of the refresh token that was presented: the row must still have it."""
    identity: str = ""
    """The row's, which never changes. It tells databases of the same name apart."""
    schema: str = ""
    """Of the row's table, on PostgreSQL: a copied schema has the same identities."""

    @property
    def stem(self) -> str:
        """The file's name without its suffix. It contains no secret."""
        row = f"{self.credential_id}-{self.identity}"
        return f"{_site(self.database, self.schema)}-{row}-{self.generation}-{self.fingerprint}"


@dataclass(slots=True)
class _Spooled:
    """One reply in the spool, or to be written there."""

    suffix: ClassVar[str]
    """While it is being stored."""
    waiting_suffix: ClassVar[str]
    """Once storing it has failed."""
    key: SpoolKey
    path: Path | None = field(default=None, kw_only=True)
    """``None`` if it is not written."""

    @property
    def content(self) -> dict[str, Any]:
        """What the file contains besides its key."""
        raise NotImplementedError

    @property
    def age_seconds(self) -> float:
        """How long ago it was written; 0 if it is gone."""
        try:
            return time.time() - self.path.stat().st_mtime if self.path else 0.0
        except FileNotFoundError:
            return 0.0

    def fsync(self) -> bool:
        """Force it to the disk, for another process; return whether that succeeded."""
        try:
            folder = spool_folder.usable()
            if folder is None:
                return False
            if self.path is None:
                self.path = _write(folder, self, Space())
            spool_folder.fsync(self.path)
            self.path = self.path.replace(self.path.with_suffix(self.waiting_suffix))
            spool_folder.fsync(folder)
        except (OSError, ConfigurationError):
            logger.exception("spool_not_written credential=%s", self.key.credential_id)
            return False
        return True

    def discard(self) -> None:
        """Remove it: it is stored, or no row needs it any more."""
        if self.path is None:
            return
        try:
            self.path.unlink(missing_ok=True)
        except OSError:  # the next run finds it, and knows that it is not needed
            logger.exception("spool_not_emptied file=%s", self.path)
        self.path = None


@dataclass(slots=True)
class SpooledPair(_Spooled):
    """A token pair."""

    suffix = IN_FLIGHT
    waiting_suffix = WAITING
    pair: TokenPair = field(repr=False)
    lease_id: str = ""
    """The lease of its attempt."""

    @property
    def is_in_flight(self) -> bool:
        """Whether it is in the spool, and storing it has not failed."""
        return self.path is not None and self.path.suffix == IN_FLIGHT

    @property
    def content(self) -> dict[str, Any]:
        pair = self.pair
        return {
            "access_token": pair.access_token,
            "refresh_token": pair.refresh_token,
            "expires_in": pair.expires_in,
            "account": pair.account,
            "lease": self.lease_id,
            "received_at": time.time() - (pair.expires_in - pair.seconds_left),
        }


@dataclass(slots=True)
class SpooledError(_Spooled):
    """The outcome of an attempt that got no token pair."""

    suffix = OUTCOME
    waiting_suffix = OUTCOME
    error: InfusionsoftError
    lease_id: str
    due_at: datetime | None
    """When the credential was due; ``None`` if unknown."""
    after_401: bool = False
    again: bool = False
    """As in the ``Claim``."""

    @property
    def content(self) -> dict[str, Any]:
        details = {name: getattr(self.error, name, None) for name in ERROR_DETAILS}
        return {
            "error": type(self.error).__name__,
            "message": str(self.error),
            "details": {name: value for name, value in details.items() if value is not None},
            "lease": self.lease_id,
            "due_at": self.due_at.isoformat() if self.due_at else None,
            "after_401": self.after_401,
            "again": self.again,
        }


Spooled: TypeAlias = SpooledPair | SpooledError


def reserve(key: SpoolKey, lease_id: str) -> Space:
    """Take the space for the pair that a request may bring. Errors are only logged, once.

    :raises DiskFull: there is no space.
    """
    return spool_folder.reserve(f"{key.stem}.{lease_id}")


def save(
    key: SpoolKey, pair: TokenPair, lease_id: str = "", space: Space | None = None
) -> SpooledPair:
    """Write the pair before it is stored. Errors are only logged: the spool is a second safety."""
    spooled = SpooledPair(key, pair, lease_id)
    with spool_folder.reported_errors():
        if folder := spool_folder.usable():
            spooled.path = _write(folder, spooled, space or Space())
    return spooled


def load(key: SpoolKey) -> SpooledPair | None:
    """Return the token pair that this key's refresh token was already exchanged for, if any.

    :raises SpoolError: it exists and cannot be read.
    """
    folder = spool_folder.existing()
    if folder is None:
        return None
    # In the order in which a file changes its name, so that none is missed.
    for suffix in (IN_FLIGHT, WAITING):
        spooled = _read(folder / f"{key.stem}{suffix}")
        if isinstance(spooled, SpooledPair) and spooled.key == key:
            return spooled
    return None


def load_error(key: SpoolKey) -> SpooledError | None:
    """Return the outcome of an attempt to present this key's refresh token that got no pair."""
    folder = spool_folder.existing()
    if folder is None:
        return None
    for each in (key, replace(key, fingerprint="")):  # without one: nothing was presented
        with suppress(SpoolError):  # a run logs it
            spooled = _read(folder / f"{each.stem}{OUTCOME}")
            if isinstance(spooled, SpooledError) and spooled.key == each:
                return spooled
    return None


def pending(database: str, schema: str = "") -> Iterator[Spooled]:
    """Yield a schema's replies in the spool, in flight or not; log those that are unreadable."""
    folder = spool_folder.existing()
    if folder is None:
        return
    for path in sorted(folder.glob(f"{_site(database, schema)}-*-*")):
        if path.suffix == spool_folder.RESERVED:
            _discard_old(path)
            continue
        try:
            spooled = _read(path)
        except SpoolError as error:
            logger.error("spool_unreadable error=%s", quoted(error))
            continue
        if spooled is None:
            _report_old(path)
        elif (spooled.key.database, spooled.key.schema) == (database, schema):
            yield spooled


def keep_for_a_week(spooled: Spooled) -> None:
    """Keep a reply that may belong to another database of the same name, and report it."""
    if spooled.path is not None and spooled.age_seconds <= KEPT_SECONDS:
        _report_old(spooled.path)
        return
    logger.warning("spooled_pair_without_a_row credential=%s", spooled.key.credential_id)
    spooled.discard()


def old_files() -> list[Path]:
    """Return the files that should have been stored by now, of all sites of this user."""
    folder = spool_folder.existing()
    files = [] if folder is None else sorted(folder.iterdir())
    return [each for each in files if each.suffix != spool_folder.RESERVED and _is_old(each)]


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > OLD_SECONDS
    except FileNotFoundError:
        return False


def _discard_old(path: Path) -> None:
    """Remove the space of a process that died: no request takes so long."""
    if _is_old(path):
        with suppress(OSError):
            path.unlink()


def _report_old(path: Path) -> None:
    """Log a file that no row needs, once by each process."""
    if path not in _reported and _is_old(path):
        _reported.add(path)
        logger.warning("spool_file_kept file=%s", path)


def _write(folder: Path, spooled: _Spooled, space: Space) -> Path:
    key = spooled.key
    content = {
        "database": key.database,
        "credential": key.credential_id,
        "generation": key.generation,
        "presented": key.fingerprint,
        "identity": key.identity,
        "schema": key.schema,
        **spooled.content,
    }
    sealed = get_cipher().encrypt(json.dumps(content).encode())
    sealed += b"\n" + _digest(sealed)
    path = folder / f"{key.stem}{spooled.suffix}"
    # Not under another name first: readers skip an empty file, and one call writes all of it.
    spool_folder.write(path, sealed, space)
    return path


def _read(path: Path) -> Spooled | None:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            # The rest of the reserved space is empty.
            sealed, _, digest = file.readall().rstrip(b"\0").rpartition(b"\n")
        if digest != _digest(sealed):  # it is being written, or a crash left a part of it
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()
            return None
        return _parse(path, json.loads(get_cipher().decrypt(sealed)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SpoolError(
            f"{path} contains a token pair and cannot be read ({error.strerror}): run all "
            f"processes of the site as the same user."
        ) from None
    except InvalidToken:
        raise SpoolError(
            f"No key in INFUSIONSOFT_ENCRYPTION_KEYS can decrypt {path}, which contains a token "
            f"pair: restore the key that it was encrypted with, or remove the file."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        # Without the cause, which may contain a secret.
        raise SpoolError(f"{path} contains data that this version does not recognize.") from None


def _parse(path: Path, content: dict[str, Any]) -> Spooled:
    names = ("database", "credential", "generation", "presented", "identity", "schema")
    key = SpoolKey(*[content[name] for name in names])
    if "error" in content:
        due_at = content["due_at"] and datetime.fromisoformat(content["due_at"])
        flags = {name: content[name] for name in ("after_401", "again")}
        return SpooledError(key, _error(content), content["lease"], due_at, **flags, path=path)
    return SpooledPair(key, _token_pair(content), content["lease"], path=path)


def _error(content: dict[str, Any]) -> InfusionsoftError:
    error = getattr(exceptions, content["error"])(content["message"], **content["details"])
    if not isinstance(error, InfusionsoftError):
        raise TypeError
    return error


def _token_pair(content: dict[str, Any]) -> TokenPair:
    # The wall clock, because another process wrote it, on the same machine: only setting the clock
    # makes it wrong, and never by more than the pair's lifetime.
    age = max(0.0, time.time() - content["received_at"])
    pair = TokenPair(
        access_token=content["access_token"],
        refresh_token=content["refresh_token"],
        expires_in=content["expires_in"],
        account=content["account"],
        received_at=elapsed.monotonic() - age,
    )
    if not (is_token(pair.access_token) and is_token(pair.refresh_token or pair.access_token)):
        raise ValueError
    return pair


def _digest(sealed: bytes) -> bytes:
    return sha256(sealed).hexdigest()[:16].encode()


@lru_cache
def _site(database: str, schema: str) -> str:
    return sha256(f"{database}\0{schema}".encode()).hexdigest()[:8]
