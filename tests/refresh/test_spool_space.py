"""The space for a reply, which is taken before the request is sent."""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.db import connection

from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.keap.oauth import TokenPair
from django_infusionsoft.models import ApplicationState, Credential
from django_infusionsoft.refresh import spool_folder
from django_infusionsoft.refresh.spool import SpoolKey, load, old_files, pending, reserve, save
from django_infusionsoft.refresh.spool_folder import RESERVED, RESERVED_BYTES
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import keap_with, row, run, threads

KEY = SpoolKey("site", 1, 5, "0123456789ab")
PAIR = TokenPair("new-access-token", "new-refresh-token", 3600, "ab123")
ACCOUNTS = [f"ab{number}" for number in range(100, 107)]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without space for a reply."""

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spool_folder, "_allocate", fail)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with keap_with(ACCOUNTS) as running:
        yield running


def sizes(folder: Path) -> dict[str, int]:
    return {path.suffix: path.stat().st_size for path in folder.iterdir()}


@pytest.fixture
def expired(connect: Callable[..., Credential]) -> Credential:
    return connect(ACCOUNTS[0], seconds_left=-1)


@pytest.mark.django_db(transaction=True)
def test_space_is_taken_before_the_request_is_sent(
    sandbox: Sandbox, expired: Credential, spool: Path
) -> None:
    gate = sandbox.hold("before")
    with threads(1) as start:
        refreshing = start(row(expired).refresh)
        gate.wait_until_arrived()
        assert sizes(spool) == {RESERVED: RESERVED_BYTES}
        gate.release()
        refreshing.result()
    assert sizes(spool) == {}


@pytest.mark.django_db
def test_space_is_given_back_when_there_is_no_pair(
    sandbox: Sandbox, expired: Credential, spool: Path
) -> None:
    sandbox.plan(faults.error_500())
    run()
    assert sizes(spool) == {}


def test_pair_is_written_into_the_space(spool: Path) -> None:
    space = reserve(KEY, "lease")
    assert space.path
    number = space.path.stat().st_ino
    spooled = save(KEY, PAIR, "lease", space)
    assert spooled.path
    assert spooled.path.stat().st_ino == number
    space.release()  # has nothing to give back
    found = load(KEY)
    assert found
    assert found.pair.refresh_token == "new-refresh-token"
    spooled.discard()
    assert sizes(spool) == {}


def test_space_of_another_attempt_stays(spool: Path) -> None:
    first, second = reserve(KEY, "first"), reserve(KEY, "second")
    spooled = save(KEY, PAIR, "first", first)
    second.release()
    assert load(KEY)
    spooled.discard()


def test_space_of_a_dead_process_is_removed_when_it_is_old(spool: Path) -> None:
    space = reserve(KEY, "lease")
    assert list(pending("site")) == []
    assert space.path
    assert space.path.exists()
    os.utime(space.path, (time.time() - 7200,) * 2)
    assert old_files() == []
    assert list(pending("site")) == []
    assert not space.path.exists()
    spooled = save(KEY, PAIR, "lease", space)  # its process was only stopped
    assert load(KEY)
    spooled.discard()


@pytest.mark.django_db
def test_nothing_is_sent_when_the_disk_of_spool_and_database_is_full(
    full_disk: None, connect: Callable[..., Credential], sandbox: Sandbox
) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("SQLite alone is a file")
    for account in ACCOUNTS:
        connect(account, seconds_left=-1)
    with pytest.raises(DatabaseBusy, match=r"is full: nothing was sent"):
        Credential.objects.for_account("ab100").get_access_token()
    assert run() == {"unavailable": len(ACCOUNTS) - 1}
    assert sandbox.token_requests == []
    assert not ApplicationState.objects.exclude(block_reason="").exists()
    assert Credential.objects.filter(unanswered_attempts=0).count() == len(ACCOUNTS)


@pytest.mark.django_db
def test_folder_of_another_user_is_reported_once(
    spool: Path,
    connect: Callable[..., Credential],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a volume, when another container had another user."""
    spool.mkdir(mode=0o700)
    monkeypatch.setattr("os.geteuid", lambda: spool.stat().st_uid + 1)
    for account in ACCOUNTS:
        connect(account, seconds_left=-1)
    assert run() == {"refreshed": len(ACCOUNTS)}
    (record,) = [each for each in caplog.records if each.message.startswith("spool_unusable")]
    assert "belongs to another user" in record.message
    assert record.exc_info is None


@pytest.mark.django_db
def test_refreshes_go_on_and_the_spool_is_reported_once_when_only_its_disk_is_full(
    full_disk: None,
    connect: Callable[..., Credential],
    caplog: pytest.LogCaptureFixture,
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite's file is on the same disk here")
    for account in ACCOUNTS:
        connect(account, seconds_left=-1)
    assert run() == {"refreshed": len(ACCOUNTS)}
    (record,) = [each for each in caplog.records if each.message.startswith("spool_unusable")]
    assert record.levelno == logging.ERROR
    assert record.exc_info is None
