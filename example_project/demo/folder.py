"""The folder with the demo's data, which the next demo uses again."""

import fcntl
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from cryptography.fernet import Fernet

from .errors import DemoError


@dataclass(frozen=True)
class Secrets:
    """Created once: the stored credentials cannot be decrypted with another encryption key."""

    admin_password: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    encryption_key: str = field(default_factory=lambda: Fernet.generate_key().decode())
    secret_key: str = field(default_factory=lambda: secrets.token_urlsafe(48))


class Folder:
    """The demo's data on disk, readable only for its owner."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broker = path / "broker"
        self.database = path / "db.sqlite3"
        self.logs = path / "logs"
        self.sandbox_state = path / "sandbox.json"
        self.schedule = path / "celerybeat-schedule"
        self._lock = path / "lock"
        self._secrets = path / "secrets.json"
        for folder in (path, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def forget_schedule(self) -> None:
        """Delete beat's schedule, which another version of Python may not be able to read."""
        for file in self.path.glob(f"{self.schedule.name}*"):
            file.unlink()

    def secrets(self) -> Secrets:
        """Return the secrets of the first start, or create them.

        :raises DemoError: the file is invalid.
        """
        try:
            return Secrets(**json.loads(self._secrets.read_text()))
        except FileNotFoundError:
            return self._create_secrets()
        except (TypeError, ValueError) as error:
            raise DemoError(
                f"{self._secrets} cannot be read ({error}). "
                f"Delete the folder {self.path} to start again."
            ) from error

    def _create_secrets(self) -> Secrets:
        secrets = Secrets()
        draft = self._secrets.with_suffix(".draft")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(secrets)))
        draft.replace(self._secrets)
        return secrets

    @contextmanager
    def only_user(self) -> "Iterator[TextIO]":
        """Lock the folder for this process; yield the lock file, for the demo's URL.

        :raises DemoError: another demo is using the folder.
        """
        with self._lock.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                raise DemoError(
                    f"A demo is running already: {lock.read().strip() or 'it is just starting'}. "
                    "Use that one, or stop it first."
                ) from error
            lock.truncate(0)
            yield lock
