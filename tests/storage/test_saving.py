"""``save()``: it never writes what refreshes, connections and runs write."""

import copy
import pickle
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import django
import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.exceptions import FieldError
from django.core.management import call_command
from django.db import DatabaseError, connection, models, transaction
from django.db.models.signals import post_init
from django.forms import modelform_factory
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_infusionsoft.keap.oauth import TokenPair
from django_infusionsoft.models import Application, Credential
from tests.support import receiver, row

# What a site may change with save().
EDITABLE = {
    "account",
    "account_name",
    "application",
    "authorized_by",
    "keap_user",
    "keap_user_is_admin",
}
OWNED = sorted(
    each.name
    for each in Credential._meta.concrete_fields
    if each.name not in {*EDITABLE, "id", "application_key"}
)


def columns(credential: Credential) -> dict[str, Any]:
    """Return the stored columns that a site may not change, and the decrypted tokens."""
    found = row(credential)
    return {name: getattr(found, name) for name in OWNED}


@pytest.fixture
def old(credential: Credential) -> Credential:
    """An instance that was loaded before another process has refreshed the credential."""
    instance = row(credential)
    row(credential).refresh()
    return instance


def test_columns_that_a_site_may_change_are_the_editable_ones() -> None:
    fields = Credential._meta.concrete_fields
    assert {each.name for each in fields if each.editable} - {"id", "application_key"} == EDITABLE


# An instance that is older than the row


@pytest.mark.parametrize("options", [{}, {"update_fields": ["account_name"]}])
def test_newer_pair_is_kept_when_an_old_instance_is_saved(
    old: Credential, options: dict[str, Any]
) -> None:
    stored = columns(old)
    old.account_name = "Our name"
    old.save(**options)
    assert columns(old) == stored
    assert row(old).account_name == "Our name"
    row(old).refresh()


def test_newer_pair_is_kept_when_its_columns_are_named(old: Credential) -> None:
    stored = columns(old)
    old.account_name = "Our name"
    old.save(update_fields=["account_name", *OWNED])
    assert columns(old) == stored
    assert row(old).account_name == "Our name"


@pytest.mark.parametrize("is_named", [True, False])
def test_save_fails_when_a_column_of_the_app_was_assigned(old: Credential, is_named: bool) -> None:
    stored = columns(old)
    for name in OWNED:
        instance = copy.copy(old)
        instance.account_name = "Our name"
        setattr(instance, name, getattr(instance, name))  # even to the same value
        with pytest.raises(FieldError, match=name):
            instance.save(update_fields=["account_name", name] if is_named else None)
    assert columns(old) == stored
    assert row(old).account_name == ""


@pytest.mark.parametrize(
    ("name", "value", "method"),
    [
        ("refresh_token", "another", "import_tokens()"),
        ("status", "disconnected", "disconnect()"),
        ("refresh_at", None, "request_refresh()"),
        ("failures", 0, "refresh()"),
    ],
)
def test_error_names_the_method_to_use(
    credential: Credential, name: str, value: object, method: str
) -> None:
    setattr(credential, name, value)
    with pytest.raises(FieldError) as caught:
        credential.save()
    assert method in str(caught.value)
    assert "another" not in str(caught.value)


def test_instance_can_be_saved_again_when_the_columns_were_reloaded(old: Credential) -> None:
    old.status, old.refresh_token, old.account_name = "disconnected", "another", "Our name"
    old.refresh_from_db(fields=["status", "refresh_token"])
    old.save()
    assert row(old).account_name == "Our name"
    old.status = "disconnected"
    old.refresh_from_db()
    old.save()
    assert row(old).status == "connected"


def test_only_assigned_columns_are_written(credential: Credential, second: Application) -> None:
    old, ana = row(credential), User.objects.create(username="ana")
    Credential.objects.update(authorized_by=ana, keap_user="ana", account="cd456")
    old.account_name, old.application = "Our name", second
    old.save()
    stored = row(credential)
    assert (stored.authorized_by, stored.keap_user, stored.account) == (ana, "ana", "cd456")
    assert (stored.account_name, stored.application) == ("Our name", second)
    with CaptureQueriesContext(connection) as queries:
        old.save()
    assert len(queries) == 0


def test_deleted_row_is_not_inserted_again(old: Credential) -> None:
    row(old).delete()
    old.account_name = "Our name"
    with pytest.raises(DatabaseError), transaction.atomic():
        old.save()
    assert not Credential.objects.exists()


def test_profile_is_not_written_again_by_a_later_save(credential: Credential) -> None:
    credential.fetch_profile()
    Credential.objects.update(account_name="Our name")
    credential.save()
    assert row(credential).account_name == "Our name"


def test_deferred_columns_are_loaded_and_not_written(old: Credential) -> None:
    stored = columns(old)
    deferred = Credential.objects.only("account_name").get()
    assert deferred.access_token == stored["access_token"]
    row(old).refresh()
    stored = columns(old)
    deferred.account_name = "Our name"
    deferred.save()
    assert columns(old) == stored
    deferred.refresh_token = "another"
    with pytest.raises(FieldError):
        deferred.save()


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Django has no fetch modes before 6.1")
def test_columns_that_are_fetched_for_all_peers_are_not_written(
    connect_two: list[Credential],
) -> None:
    peers: Any = Credential.objects.only("account").order_by("pk")
    first, second = peers.fetch_mode(models.FETCH_PEERS)
    with CaptureQueriesContext(connection) as queries:
        first.access_token, second.access_token, first.account_name  # noqa: B018
    assert len(queries) == 2
    Credential.objects.update(account_name="Our name")
    for each in (first, second):
        row(each).refresh()
        each.save()
        assert (row(each).generation, row(each).account_name) == (2, "Our name")
    second.refresh_token = "another"
    with pytest.raises(FieldError):
        second.save()


def unpickled(instance: Credential) -> Credential:
    return pickle.loads(pickle.dumps(instance))  # type: ignore[no-any-return]  # noqa: S301


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, unpickled])
def test_copies_of_an_instance_remember_what_was_assigned(
    old: Credential, duplicate: Callable[[Credential], Credential]
) -> None:
    stored = columns(old)
    old.account_name = "Our name"
    other = duplicate(old)
    other.status = "disconnected"
    with pytest.raises(FieldError):
        other.save()
    old.save()
    assert columns(old) == stored
    assert row(old).account_name == "Our name"


def test_instance_is_saved_when_receivers_read_it_while_it_is_loaded(old: Credential) -> None:
    stored, seen = columns(old), []
    with receiver(post_init, lambda instance, **kwargs: seen.append(str(instance))):
        loaded = row(old)
    assert seen == ["ab123"]
    loaded.account_name = "Our name"
    loaded.save()
    assert columns(old) == stored


# Other ways to save


def test_update_or_create_changes_only_what_a_site_may_change(old: Credential) -> None:
    stored = columns(old)
    Credential.objects.update_or_create(account="ab123", defaults={"account_name": "Our name"})
    assert row(old).account_name == "Our name"
    with pytest.raises(FieldError, match="import_tokens"):
        Credential.objects.update_or_create(
            account="ab123", defaults={"refresh_token": "another", "account_name": "Other"}
        )
    assert columns(old) == stored
    assert row(old).account_name == "Our name"


def test_update_or_create_inserts_all_columns(db: None) -> None:
    now = timezone.now()
    created, _ = Credential.objects.update_or_create(
        account="ab123",
        defaults={"access_token": "access", "refresh_token": "refresh", "issued_at": now}
        | {"expires_at": now, "connected_at": now, "status": "disconnected", "generation": 7},
    )
    stored = row(created)
    assert (stored.refresh_token, stored.status, stored.generation) == (
        "refresh",
        "disconnected",
        7,
    )
    created.account_name = "Our name"
    created.save()
    created.generation = 8
    with pytest.raises(FieldError):
        created.save()


def test_form_with_all_columns_changes_only_what_a_site_may_change(old: Credential) -> None:
    stored = columns(old)
    form = modelform_factory(Credential, fields="__all__")(
        {"account": "ab123", "account_name": "Our name"} | stored, instance=old
    )
    assert form.is_valid()
    form.save()
    assert columns(old) == stored
    assert row(old).account_name == "Our name"


def test_newer_pair_is_kept_when_a_fixture_is_loaded(
    credential: Credential, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Credential.objects.update(account_name="Our name")
    fixture = tmp_path / "credentials.json"
    call_command("dumpdata", "django_infusionsoft.credential", output=str(fixture))
    credential.refresh()
    Credential.objects.update(account_name="")
    stored = columns(credential)
    call_command("loaddata", str(fixture), stdout=StringIO())
    assert columns(credential) == stored
    assert row(credential).account_name == "Our name"
    assert f"columns_not_saved credential={credential.pk}" in caplog.text
    Credential.objects.all().delete()
    call_command("loaddata", str(fixture), stdout=StringIO())
    assert row(credential).refresh_token != stored["refresh_token"]


def test_new_instance_does_not_replace_a_stored_row(old: Credential) -> None:
    stored = columns(old)
    values = {each.attname: each.value_from_object(old) for each in Credential._meta.fields}
    del values["application_key"]
    with pytest.raises(FieldError, match="import_tokens"):
        Credential(**values).save()
    assert columns(old) == stored


def test_bulk_operations_change_only_what_a_site_may_change(old: Credential) -> None:
    stored = columns(old)
    old.account_name = "Our name"
    assert Credential.objects.bulk_update([old], ["account_name"]) == 1
    with pytest.raises(FieldError, match="status"):
        Credential.objects.bulk_update([old], ["account_name", "status"])
    with pytest.raises(FieldError, match="refresh_token"):
        Credential.objects.bulk_create(
            [old], update_conflicts=True, update_fields=["refresh_token"], unique_fields=["id"]
        )
    assert columns(old) == stored
    assert row(old).account_name == "Our name"


@pytest.mark.django_db(transaction=True)
def test_asave_fails_when_a_column_of_the_app_was_assigned(credential: Credential) -> None:
    credential.status = "disconnected"
    with pytest.raises(FieldError):
        async_to_sync(credential.asave)()


# The app's own writes


def test_instance_can_be_saved_after_each_of_its_methods(credential: Credential) -> None:
    credential.refresh()
    credential.get_access_token()
    credential.disconnect()
    pair = TokenPair("access", "refresh", 86_400, "ab123")
    connected = Credential.objects.connect(pair, application=None)
    for each in (credential, connected):
        each.account_name = "Our name"
        each.save()
    assert row(credential).refresh_token == "refresh"
