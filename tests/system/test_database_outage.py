"""The database fails between Keap's reply and the write. Nothing is lost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from django.core.management import call_command
from django.test import override_settings

from django_infusionsoft.models import Credential
from django_infusionsoft.monitoring.history import fingerprint
from django_infusionsoft.sandbox import Sandbox
from tests.processes import started
from tests.system.database_proxy import DatabaseProxy

pytestmark = [pytest.mark.every_database, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def proxy(database_url: str) -> Iterator[DatabaseProxy]:
    with DatabaseProxy(database_url) as proxy:
        yield proxy


@contextmanager
def refreshing(sandbox: Sandbox, proxy: DatabaseProxy, *options: str) -> Iterator[Any]:
    """Start a process that refreshes the account; Keap has rotated and not yet answered."""
    gate = sandbox.hold("after")
    with started(
        "-m",
        "tests.system.outage_process",
        "ab123",
        *options,
        database_url=proxy.url,
        settings=sandbox.settings,
        stdout=PIPE,
        stderr=PIPE,
    ) as process:
        gate.wait_until_processed(timeout=20)
        yield process, gate


@pytest.fixture
def spooled(sandbox: Sandbox, proxy: DatabaseProxy, expired: Credential) -> Credential:
    """A credential whose new token pair could not be stored. The database works again."""
    with refreshing(sandbox, proxy) as (process, gate):
        proxy.cut()
        gate.release()
        output, log = process.communicate(timeout=60)
        proxy.restore()
    assert output in ("OperationalError\n", "InterfaceError\n")
    assert "pair_spooled" in log
    return expired


def stored(credential: Credential) -> Credential:
    return Credential.objects.get(pk=credential.pk)


def is_alive(credential: Credential, sandbox: Sandbox) -> bool:
    (grant,) = sandbox.live_grants
    return stored(credential).refresh_token == grant.refresh_token


def read(credential: Credential) -> None:
    credential.get_access_token()


WAYS: dict[str, Callable[[Credential], object]] = {
    "a run": lambda credential: Credential.objects.refresh_due(),
    "the command": lambda credential: call_command("infusionsoft_refresh"),
    "the command for one account": lambda credential: call_command(
        "infusionsoft_refresh", account="ab123"
    ),
    "a reader that was there before": read,
    "a reader that comes later": lambda credential: read(stored(credential)),
    "a session": lambda credential: stored(credential).session().get("v2/contacts"),
}


@pytest.mark.parametrize("way", WAYS)
def test_pair_is_picked_up_from_the_spool_by(
    sandbox: Sandbox, spooled: Credential, spool: Path, way: str
) -> None:
    presented = fingerprint(spooled.refresh_token)
    WAYS[way](spooled)
    assert is_alive(spooled, sandbox)
    assert len(sandbox.token_requests) == 1
    assert stored(spooled).get_access_token() == stored(spooled).access_token
    assert [path.name for path in spool.iterdir()] == []
    event = spooled.events.get(kind="recovered")
    assert (event.outcome, event.fingerprint) == ("ok", presented)
    assert stored(spooled).lease_until is None


def test_pair_in_the_spool_is_synced_to_disk_and_readable_by_its_owner_only(
    sandbox: Sandbox, spooled: Credential, spool: Path
) -> None:
    (file,) = spool.iterdir()
    assert file.suffix == ".pair"
    assert (spool.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    (grant,) = sandbox.live_grants
    assert grant.refresh_token.encode() not in file.read_bytes()
    Credential.objects.refresh_due()


def test_pair_is_stored_by_its_own_process_when_the_database_is_back_in_time(
    sandbox: Sandbox, proxy: DatabaseProxy, expired: Credential
) -> None:
    with refreshing(sandbox, proxy) as (process, gate):
        proxy.cut()
        gate.release()
        for line in process.stderr:
            if "pair_not_stored_yet" in line:
                break
        proxy.restore()
        assert process.stdout.readline() == "refreshed\n"
    assert is_alive(expired, sandbox)
    assert expired.events.filter(kind="refreshed").count() == 1


def test_pair_in_the_spool_is_dropped_when_the_account_was_reconnected(
    sandbox: Sandbox,
    spooled: Credential,
    connect: Callable[..., Credential],
    spool: Path,
    backdated: Callable[[], None],
) -> None:
    again = connect()
    backdated()
    Credential.objects.refresh_due()
    assert stored(spooled).access_token == again.access_token
    assert list(spool.iterdir()) == []
    assert spooled.events.filter(kind="late_reply_dropped").count() == 1


def test_pair_in_the_spool_is_dropped_later_when_the_credential_was_deleted(
    spooled: Credential,
    spool: Path,
    backdated: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    spooled.delete()
    Credential.objects.refresh_due()
    assert len(list(spool.iterdir())) == 1  # it could belong to another database of the same name
    backdated()
    Credential.objects.refresh_due()
    assert list(spool.iterdir()) == []
    assert "spooled_pair_without_a_row" in caplog.text


def log_of_a_loss(proxy: DatabaseProxy, process: Any, gate: Any) -> str:
    """Cut the database off until the process has given up; return its log."""
    proxy.cut()
    gate.release()
    # Both pipes at once: the tracebacks of a long path fill one, and the process would wait.
    _, log = process.communicate(timeout=60)
    proxy.restore()
    return str(log)


@override_settings(INFUSIONSOFT_SPOOL_DIR="")
def test_critical_log_entry_shows_no_secret_when_there_is_no_spool(
    sandbox: Sandbox, proxy: DatabaseProxy, expired: Credential
) -> None:
    with refreshing(sandbox, proxy) as (process, gate):
        log = log_of_a_loss(proxy, process, gate)
    (grant,) = sandbox.live_grants
    assert "pair_not_stored credential=" in log
    assert grant.refresh_token not in log


def test_critical_log_entry_shows_no_secret_when_the_disk_is_full_too(
    sandbox: Sandbox, proxy: DatabaseProxy, expired: Credential, spool: Path
) -> None:
    if proxy.url.startswith("sqlite"):
        pytest.skip("a full disk stops SQLite before Keap is asked")
    with refreshing(sandbox, proxy, "--full-disk") as (process, gate):
        log = log_of_a_loss(proxy, process, gate)
    (grant,) = sandbox.live_grants
    assert "pair_not_stored credential=" in log
    assert "spool_not_written credential=" in log
    assert grant.refresh_token not in log
    assert not any(spool.glob("*.pair"))
