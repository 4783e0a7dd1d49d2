"""Stores the state in a file, so that a restarted sandbox has its grants."""

import json
import os
import tempfile
from pathlib import Path

from .state import State

VERSION = 1


class StateFileError(Exception):
    """The state file cannot be read or written, or has another format."""


def attach(state: State, path: Path) -> None:
    """Load `path` if it exists, and write it after every change of `state`.

    The whole file is written each time, which suits a demo but not thousands of grants.
    """
    if not path.parent.is_dir():
        raise StateFileError(f"{path} cannot be written: {path.parent} is not a directory.")
    if path.exists():
        _load(state, path)
    state.on_change = lambda: _save(state, path)
    _save(state, path)


def _load(state: State, path: Path) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']!r}")
        state.restore(content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        message = f"{path} is not a state file of this sandbox ({error!r}). Move it away."
        raise StateFileError(message) from error


def _save(state: State, path: Path) -> None:
    content = json.dumps({"version": VERSION, **state.snapshot()}, indent=1)
    # mkstemp creates the file with mode 0600. No fsync: a rename survives the end of this process,
    # and losing a sandbox's state in a system crash does no harm.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
