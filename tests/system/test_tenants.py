"""With django-tenants: each customer has a schema, and the app's tables are in each of them."""

import json
import os
from collections.abc import Iterator
from subprocess import PIPE
from typing import Any

import pytest
from django.db import connection

from tests.processes import started

pytest.importorskip("django_tenants")
pytestmark = [pytest.mark.every_database, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def tenants_url(database_url: str) -> Iterator[str]:
    """The URL of an empty database."""
    if connection.vendor != "postgresql":
        pytest.skip("Only PostgreSQL has schemas in a database.")
    name = f"tenants_{os.getpid()}"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    base, _, _ = database_url.rpartition("/")
    yield f"{base}/{name}"
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_each_tenant_gets_its_own_access_token_reply_and_mail(
    tenants_url: str,
) -> None:
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    with started(
        "-m",
        "tests.system.tenants_process",
        database_url=tenants_url,
        settings={},
        stdout=PIPE,
        stderr=PIPE,
    ) as process:
        output, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    for line in output.splitlines():
        what = json.loads(line)
        (verb, name), *_ = what.items()
        lines[verb, name] = what
    for name in ("public", "acme", "bolt"):
        asked = lines["asked", name]
        assert (asked["is_its_own"], asked["account"]) == (True, f"{name}1")
        assert asked["generation"] == 2
        assert asked["requests"].count(f"{name}1") == 1
    # The reply that waits in the spool is stored by its own tenant's run only.
    assert [lines["ran", name]["spool"] for name in ("acme", "public", "bolt")] == [1, 1, 0]
    assert lines["ran", "bolt"]["token"] == "spooled-access"
    assert lines["lost", "bolt"]["status"] == "reauthorization_required"
    assert lines["lost", "bolt"]["is_alerted"]
