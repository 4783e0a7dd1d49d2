"""Keep the state in a file, so that a restarted sandbox knows its connections."""

import json
import os
import tempfile
from pathlib import Path

from .state import State

VERSION = 1


class StateFileError(Exception):
    """The state file cannot be read or is not one."""


def attach(state: State, path: Path) -> None:
    """Load `path` if it is there, and write it anew at every change of `state`.

    The file is written whole each time: fit for a demo, not for thousands of grants.
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
    # mkstemp makes the file 0600. No fsync: a rename survives the end of this process,
    # and a lost sandbox is no loss when the whole machine went down.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
