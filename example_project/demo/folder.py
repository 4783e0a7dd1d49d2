"""Where a demo keeps its data, so that the next one finds it."""

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
    """Made once. Without the encryption key the stored credentials could not be read again."""

    admin_password: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    encryption_key: str = field(default_factory=lambda: Fernet.generate_key().decode())
    secret_key: str = field(default_factory=lambda: secrets.token_urlsafe(48))


class Folder:
    """The demo's data on disk, for its owner's eyes only."""

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
        """Remove what beat remembers: another version of Python may not be able to read it."""
        for file in self.path.glob(f"{self.schedule.name}*"):
            file.unlink()

    def secrets(self) -> Secrets:
        """Return the secrets of the first start, or make them.

        :raises DemoError: where the file cannot be understood.
        """
        try:
            return Secrets(**json.loads(self._secrets.read_text()))
        except FileNotFoundError:
            return self._make_secrets()
        except (TypeError, ValueError) as error:
            raise DemoError(
                f"{self._secrets} cannot be read ({error}). "
                f"Remove the folder {self.path} to begin anew."
            ) from error

    def _make_secrets(self) -> Secrets:
        made = Secrets()
        draft = self._secrets.with_suffix(".draft")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(made)))
        draft.replace(self._secrets)
        return made

    @contextmanager
    def only_user(self) -> "Iterator[TextIO]":
        """Hold the folder for this process; yield a file in which to say where the demo is.

        :raises DemoError: while another demo runs on the folder.
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
