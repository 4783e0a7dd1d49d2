"""The disk of SQLite and of the spool gets full while Keap is asked."""

import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from django.db import connection
from django.test import override_settings

from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox
from tests.processes import started

pytestmark = pytest.mark.django_db(transaction=True)

DISK_KIB = 4096


@pytest.fixture
def disk(tmp_path: Path, need: Callable[[str, str], None]) -> Iterator[Path]:
    """A small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k,mode=700", "none", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True)
    need("mount", "This user cannot mount a disk" if done.returncode else "")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


def fill(folder: Path) -> Path:
    """Write a file until the disk has no space left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))
    return path


def refreshing(database: Path, sandbox: Sandbox) -> "AbstractContextManager[Popen[str]]":
    """Start a process that refreshes the account."""
    return started(
        "-m",
        "tests.system.outage_process",
        "ab123",
        database_url=f"sqlite:///{database}",
        settings=sandbox.settings,
        stdout=PIPE,
        stderr=PIPE,
    )


def test_pair_survives_in_the_spool_when_the_disk_gets_full_while_keap_is_asked(
    sandbox: Sandbox, expired: Credential, disk: Path
) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("SQLite alone is a file")
    database = disk / "site.sqlite3"
    with closing(sqlite3.connect(database)) as copy:
        connection.connection.backup(copy)
    with override_settings(INFUSIONSOFT_SPOOL_DIR=disk / "spool"):
        gate = sandbox.hold("after")
        with refreshing(database, sandbox) as first:
            gate.wait_until_processed(timeout=30)
            filler = fill(disk)
            gate.release()
            output, log = first.communicate(timeout=60)
        assert (output, "disk is full" in log) == ("OperationalError\n", True)
        filler.unlink()
        with refreshing(database, sandbox) as second:
            assert second.communicate(timeout=60)[0] == "refreshed\n"
        assert list((disk / "spool").iterdir()) == []
    assert len(sandbox.token_requests) == 1
