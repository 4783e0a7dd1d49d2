"""A second connection to the database finds the same row as the caller's, or nothing is sent."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.utils import timezone

from django_infusionsoft.exceptions import DatabaseBusy, OutcomeUnknown
from django_infusionsoft.keap.oauth import TokenPair
from django_infusionsoft.models import Credential
from django_infusionsoft.refresh.leases import claim
from django_infusionsoft.refresh.sending import spool_key_of
from django_infusionsoft.sandbox import Sandbox
from tests.refresh.test_late_answers import DrippingKeap, keap, wait_until
from tests.support import row

__all__ = ["keap"]

pytestmark = pytest.mark.django_db(transaction=True)

TABLE = "django_infusionsoft_credential"


def execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.fixture
def other_schema(expired: Credential) -> Iterator[str]:
    """A schema with a copy of the credential."""
    if connection.vendor != "postgresql":
        pytest.skip("Only PostgreSQL has schemas in a database.")
    execute("CREATE SCHEMA other_tenant")
    execute(f"CREATE TABLE other_tenant.{TABLE} (LIKE public.{TABLE} INCLUDING ALL)")
    columns = ", ".join(
        str(field.column)
        for field in Credential._meta.concrete_fields
        if field.column != "application_key"
    )
    execute(
        f"INSERT INTO other_tenant.{TABLE} ({columns}) SELECT {columns} FROM public.{TABLE}"  # noqa: S608
    )
    yield "other_tenant"
    execute("DROP SCHEMA other_tenant CASCADE")


@pytest.mark.parametrize("way", ["get_access_token", "refresh"])
def test_nothing_is_sent_when_the_transaction_has_another_search_path(
    sandbox: Sandbox, other_schema: str, way: str
) -> None:
    with transaction.atomic():
        execute(f"SET LOCAL search_path = {other_schema}, public")
        credential = Credential.objects.get_default()
        with pytest.raises(DatabaseBusy, match="search_path"):
            getattr(credential, way)()
    assert sandbox.token_requests == []


def test_nothing_is_stored_when_the_transaction_has_another_search_path(
    other_schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    pair = TokenPair("new-access-token", "new-refresh-token", 3600, "ab123")
    before = Credential.objects.get_default().access_token
    with transaction.atomic():
        execute(f"SET LOCAL search_path = {other_schema}, public")
        with pytest.raises(DatabaseBusy, match="search_path"):
            Credential.objects.connect(pair, application=None)
        assert Credential.objects.get_default().access_token == before
    assert Credential.objects.get_default().access_token == before
    assert "pair_not_stored account=ab123" in caplog.text
    assert "not_stored_yet" not in caplog.text


def test_valid_access_token_is_returned_when_the_transaction_has_another_search_path(
    sandbox: Sandbox, other_schema: str
) -> None:
    later = "expires_at = now() + interval '30 s', issued_at = now()"
    execute(f"UPDATE other_tenant.{TABLE} SET {later}")  # noqa: S608
    with transaction.atomic():
        execute(f"SET LOCAL search_path = {other_schema}, public")
        credential = Credential.objects.get_default()
        assert credential.get_access_token() == credential.access_token
    assert sandbox.token_requests == []


def test_nothing_is_sent_when_the_transaction_has_another_role(
    sandbox: Sandbox, other_schema: str
) -> None:
    role = f"infusionsoft_{uuid4().hex[:8]}"
    execute(f"CREATE ROLE {role}")
    try:
        with transaction.atomic():
            credential = Credential.objects.get_default()
            execute(f"SET LOCAL ROLE {role}")
            with pytest.raises(DatabaseBusy, match="role"):
                credential.get_access_token()
    finally:
        execute(f"DROP ROLE {role}")
    assert sandbox.token_requests == []


def test_refresh_in_a_transaction_works_when_both_connections_have_the_same_search_path(
    sandbox: Sandbox, other_schema: str
) -> None:
    with transaction.atomic():
        credential = Credential.objects.get_default()
        assert credential.get_access_token() == row(credential).access_token
    assert len(sandbox.token_requests) == 1


def test_late_reply_waits_in_the_spool_when_its_thread_finds_another_row(
    keap: DrippingKeap, other_schema: str, spool: Path
) -> None:
    execute(f"SET search_path = {other_schema}, public")
    try:
        credential = Credential.objects.get_default()
        with pytest.raises(OutcomeUnknown):
            credential.refresh()
        keap.finish()
        wait_until(lambda: list(spool.glob("*.pair")))
        assert credential.generation == 1
        Credential.objects.refresh_due()
        assert row(credential).generation == 2
    finally:
        execute("SET search_path = public")
    assert Credential.objects.get_default().generation == 1


def test_spool_names_the_schema_of_the_table(expired: Credential, other_schema: str) -> None:
    assert spool_key_of(expired).schema == "public"
    execute(f"SET search_path = {other_schema}, public")
    try:
        assert spool_key_of(Credential.objects.get_default()).schema == other_schema
        execute(f"DROP TABLE {other_schema}.{TABLE}")  # the table of all tenants is in public
        assert spool_key_of(Credential.objects.get_default()).schema == "public"
    finally:
        execute("SET search_path = public")


def test_nothing_is_sent_when_the_claimed_row_has_another_refresh_token(
    sandbox: Sandbox, expired: Credential, connect: Callable[..., Credential]
) -> None:
    """A copied schema has the same identities and generations."""
    expired.refresh_token  # noqa: B018  # is loaded
    Credential.objects.update(refresh_token="of-another-schema")
    with pytest.raises(DatabaseBusy, match="another refresh token"):
        claim(expired)
    assert sandbox.token_requests == []
    assert row(expired).lease_until is None


def test_nothing_is_sent_when_only_the_transaction_sees_the_row(
    sandbox: Sandbox,
) -> None:
    """As with a variable for row-level security, or before the commit."""
    reply: dict[str, Any] = sandbox.issue("cd456")
    with transaction.atomic():
        credential = Credential.objects.import_tokens(
            account="cd456",
            access_token=reply["access_token"],
            refresh_token=reply["refresh_token"],
            expires_at=timezone.now(),
        )
        with pytest.raises(DatabaseBusy):
            credential.get_access_token()
    assert sandbox.token_requests == []
    credential.get_access_token()
