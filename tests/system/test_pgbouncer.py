"""PgBouncer, whose server connections are all in use by callers' transactions."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections, transaction

from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox
from django_infusionsoft.storage import database
from tests.support import row, threads

pytestmark = [pytest.mark.every_database, pytest.mark.django_db(transaction=True)]

SERVER_CONNECTIONS = 2
CONFIGURATION = """
[databases]
{NAME} = host={HOST} port={PORT} dbname={NAME} user={USER} {password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    pytest.fail("PgBouncer did not start.")


@pytest.fixture
def pgbouncer(
    transactional_db: None,
    need: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """Let new connections go through a PgBouncer with few connections to the server."""
    if connection.vendor != "postgresql":
        pytest.skip("PgBouncer is for PostgreSQL")
    program = shutil.which("pgbouncer", path=os.defpath + ":/usr/sbin")
    need("pgbouncer", "" if program else "PgBouncer is not installed here")
    port, file = free_port(), tmp_path / "pgbouncer.ini"
    settings = connection.settings_dict
    password = f"password='{settings['PASSWORD']}'" if settings["PASSWORD"] else ""
    values = {**settings, "password": password, "port": port, "size": SERVER_CONNECTIONS}
    file.write_text(CONFIGURATION.format_map(values))
    # It refuses to run as root.
    user: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}
    with file.open() as opened:
        process = subprocess.Popen(
            [str(program), "--quiet", "/dev/stdin"],
            stdin=opened,
            stderr=subprocess.DEVNULL,
            **user,
        )
    try:
        wait_for(port, process)
        monkeypatch.setitem(settings, "HOST", "127.0.0.1")
        monkeypatch.setitem(settings, "PORT", port)
        yield
    finally:
        process.kill()
        process.wait()
        connection.close()  # perhaps it went through PgBouncer


def test_waits_of_all_are_short_when_transactions_use_up_the_connections(
    pgbouncer: None,
    sandbox: Sandbox,
    connect: Callable[..., Credential],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "CONNECTION_TIMEOUT_SECONDS", 0.5)
    found = [connect(account, seconds_left=-1) for account in ("ab123", "cd456")]
    everywhere = threading.Barrier(SERVER_CONNECTIONS + 1)

    def read(credential: Credential) -> None:
        with transaction.atomic():
            own = row(credential)
            everywhere.wait()
            own.get_access_token()

    with threads(SERVER_CONNECTIONS + 1) as start:
        readers = [start(lambda each=each: read(each)) for each in found]  # type: ignore[misc]
        everywhere.wait()
        started = time.monotonic()
        assert start(Credential.objects.count).result() == len(found)  # another page
        errors = [reader.exception() for reader in readers]
    assert time.monotonic() - started < 10
    # The first one to give up frees a connection, perhaps in time for the other.
    assert any(isinstance(each, DatabaseBusy) for each in errors)
    assert all("default_pool_size" in str(each) for each in errors if each is not None)
    assert len(sandbox.token_requests) == errors.count(None)
    assert Credential.objects.filter(lease_until__isnull=False).count() == 0


def test_pair_is_stored_once_a_connection_is_free(
    pgbouncer: None, sandbox: Sandbox, expired: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "CONNECTION_TIMEOUT_SECONDS", 0.2)
    gate = sandbox.hold("after")
    has_failed, may_end = threading.Event(), threading.Event()
    monkeypatch.setattr(database.logger, "error", lambda *_, **__: has_failed.set())

    def refresh() -> None:
        with transaction.atomic():
            row(expired).refresh()

    def use_other_connection() -> None:
        with transaction.atomic():
            Credential.objects.count()
            gate.release()
            may_end.wait()

    with threads(2) as start:
        refreshing = start(refresh)
        gate.wait_until_processed()
        start(use_other_connection)
        assert has_failed.wait(20)
        may_end.set()
        refreshing.result()
    assert sandbox.live_grants[0].refresh_token == row(expired).refresh_token
    connections.close_all()
