"""The encrypted field: plaintext is available only through the attribute."""

import copy
import json
import pickle
from typing import Any

import pytest
from cryptography.fernet import Fernet, InvalidToken
from django.core import serializers
from django.core.exceptions import FieldError
from django.db import connection, models, transaction
from django.db.models import Case, F, Value, When
from django.db.models.functions import Cast, Concat, Upper
from django.forms import modelform_factory
from django.test import override_settings

from django_infusionsoft.exceptions import ConfigurationError, DecryptionError
from django_infusionsoft.fields import Ciphertext, EncryptedTextField, get_cipher
from django_infusionsoft.models import Application

pytestmark = pytest.mark.django_db

OLD_KEY, NEW_KEY = (Fernet.generate_key().decode() for _ in range(2))
SECRET = "s3cret-" + "x" * 1000


def make_application(secret: str = SECRET, name: str = "main") -> Application:
    return Application.objects.create(name=name, client_id=name, client_secret=secret)


def stored(application: Application) -> str:
    """Return the stored value of the column."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT client_secret FROM django_infusionsoft_application WHERE id = %s",
            [application.pk],
        )
        return str(cursor.fetchone()[0])


# 1. Keys


@pytest.mark.parametrize("keys", [[], "text", ["not a key"], [None], [b"\xff"], None])
def test_error_names_the_setting_when_keys_are_invalid(keys: Any) -> None:
    with (
        override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=keys),
        pytest.raises(ConfigurationError, match="INFUSIONSOFT_ENCRYPTION_KEYS"),
    ):
        get_cipher()


@pytest.mark.parametrize("keys", [[f" {OLD_KEY} ", ""], ["", OLD_KEY]])
def test_spaces_and_empty_entries_around_keys_are_ignored(keys: list[str]) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=keys):
        assert make_application().client_secret == SECRET


def test_error_says_that_the_setting_is_empty_when_all_entries_are_empty() -> None:
    with (
        override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[""]),
        pytest.raises(ConfigurationError, match="is empty"),
    ):
        get_cipher()


def test_error_does_not_contain_a_malformed_key() -> None:
    with (
        override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OLD_KEY[:-5]]),
        pytest.raises(ConfigurationError) as caught,
    ):
        get_cipher()
    assert OLD_KEY[:-5] not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_first_key_encrypts_and_all_keys_decrypt() -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OLD_KEY]):
        application = make_application()
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[NEW_KEY, OLD_KEY]):
        assert Application.objects.get().client_secret == SECRET
        application.client_secret = SECRET
        application.save()
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[NEW_KEY]):
        assert Application.objects.get().client_secret == SECRET


def test_value_follows_the_fernet_specification() -> None:
    """The test vector of https://github.com/fernet/spec/blob/master/verify.json."""
    key = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="
    token = (
        "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64j"
        "VmpU4IwqDA=="
    )
    field = Application._meta.get_field("client_secret")
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[key]):
        assert field.decrypt(Ciphertext(token), row=1) == "hello"


# 2. Lazy decryption


def test_column_contains_only_ciphertext_after_save() -> None:
    application = make_application()
    assert SECRET not in stored(application)
    assert get_cipher().decrypt(stored(application).encode()).decode() == SECRET


def test_only_the_attribute_raises_when_no_key_decrypts_the_value() -> None:
    make_application()
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[NEW_KEY]):
        (application,) = list(Application.objects.all())
        assert str(application) == "main"
        with pytest.raises(
            DecryptionError, match=r"django_infusionsoft\.Application\.client_secret"
        ):
            application.client_secret  # noqa: B018


def test_error_has_no_cause_when_no_key_decrypts_the_value() -> None:
    make_application()
    with (
        override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[NEW_KEY]),
        pytest.raises(DecryptionError) as caught,
    ):
        Application.objects.get().client_secret  # noqa: B018
    assert not isinstance(caught.value.__cause__, InvalidToken)


def test_attribute_returns_the_plaintext_before_and_after_loading() -> None:
    assert make_application().client_secret == SECRET
    assert Application.objects.get().client_secret == SECRET


def test_deferred_attribute_is_loaded_on_access() -> None:
    make_application()
    application = Application.objects.defer("client_secret").get()
    assert application.client_secret == SECRET


def test_instance_contains_only_ciphertext_after_loading() -> None:
    make_application()
    application = Application.objects.get()
    application.client_secret  # noqa: B018
    assert SECRET not in repr(vars(application))
    assert SECRET.encode() not in pickle.dumps(application)
    assert copy.copy(application).client_secret == SECRET


def test_instance_contains_only_ciphertext_after_assignment() -> None:
    application = Application(client_secret=SECRET)
    assert application.client_secret == SECRET
    assert SECRET not in repr(vars(application))
    application.client_secret = SECRET + "-new"
    assert SECRET.encode() not in pickle.dumps(application)


def test_values_return_a_placeholder() -> None:
    make_application()
    (row,) = Application.objects.annotate(copied=F("client_secret")).values()
    assert [repr(row["client_secret"]), repr(row["copied"])] == ["<encrypted>", "<encrypted>"]


# 3. Saving with a wrong key


def test_value_is_unchanged_when_other_columns_are_saved_with_a_wrong_key() -> None:
    application = make_application()
    before = stored(application)
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[NEW_KEY]):
        loaded = Application.objects.get()
        loaded.name = "renamed"
        loaded.save()
    assert stored(application) == before
    assert Application.objects.get().client_secret == SECRET


def test_value_is_restored_when_refreshed_from_the_database() -> None:
    application = make_application()
    application.client_secret = "forgotten"
    application.refresh_from_db()
    assert application.client_secret == SECRET


# 4. Expressions


def test_bulk_update_stores_the_new_texts_encrypted() -> None:
    applications = [make_application(f"secret-{n}", f"app-{n}") for n in range(3)]
    for application in applications:
        application.client_secret += "-new"
    Application.objects.bulk_update(applications, ["client_secret"])
    for n, application in enumerate(applications):
        assert stored(application).startswith("gAAAA")
        assert Application.objects.get(pk=application.pk).client_secret == f"secret-{n}-new"


def test_bulk_create_stores_the_texts_encrypted() -> None:
    Application.objects.bulk_create(
        Application(name=str(n), client_id=str(n), client_secret=SECRET) for n in range(3)
    )
    assert {row.client_secret for row in Application.objects.all()} == {SECRET}
    assert all(stored(row).startswith("gAAAA") for row in Application.objects.all())


@pytest.mark.parametrize("value", ["plain", Value("plain")])
def test_update_stores_the_value_encrypted(value: Any) -> None:
    application = make_application()
    Application.objects.update(client_secret=value)
    assert stored(application).startswith("gAAAA")
    assert Application.objects.get().client_secret == "plain"


@pytest.mark.parametrize(
    "expression",
    [
        F("name"),
        Upper("name"),
        Concat(Value("a"), Value("b")),
        Case(When(name="main", then=Value("plain")), default=Value("plain")),
        Case(When(name="main", then=F("name"))),
        Cast(F("name"), models.TextField()),
    ],
)
def test_update_rejects_database_expressions(expression: Any) -> None:
    application = make_application()
    with pytest.raises(FieldError, match="client_secret"), transaction.atomic():
        Application.objects.update(client_secret=expression)
    assert Application.objects.get(pk=application.pk).client_secret == SECRET


def test_update_from_the_field_itself_is_rejected_with_a_reason() -> None:
    make_application()
    with pytest.raises(FieldError, match="not a database expression"):
        Application.objects.update(client_secret=F("client_secret"))


# 5. Lookups


@pytest.mark.parametrize(
    "lookup", ["exact", "iexact", "in", "contains", "gt", "startswith", "regex", "range"]
)
def test_lookup_is_rejected(lookup: str) -> None:
    with pytest.raises(FieldError):
        list(Application.objects.filter(**{f"client_secret__{lookup}": [SECRET, SECRET]}))


def test_lookup_through_a_transform_is_rejected() -> None:
    with pytest.raises(FieldError):
        list(Application.objects.filter(client_secret__length=3))


def test_isnull_is_the_only_lookup() -> None:
    make_application()
    assert Application.objects.filter(client_secret__isnull=False).count() == 1


# 6. Dumps


def test_dump_contains_ciphertext_and_can_be_loaded() -> None:
    application = make_application()
    dump = serializers.serialize("json", Application.objects.all())
    assert SECRET not in dump
    assert json.loads(dump)[0]["fields"]["client_secret"].startswith("fernet:gAAAA")
    Application.objects.all().delete()
    for loaded in serializers.deserialize("json", dump):
        loaded.save()
    assert stored(application).startswith("gAAAA")
    assert Application.objects.get().client_secret == SECRET


def test_dump_of_an_unsaved_instance_contains_ciphertext() -> None:
    assert SECRET not in serializers.serialize("json", [Application(client_secret=SECRET)])


# 7. Forms


def test_model_forms_exclude_the_field() -> None:
    assert "client_secret" not in modelform_factory(Application, fields="__all__").base_fields
    with pytest.raises(FieldError):
        modelform_factory(Application, fields=["client_secret"])


# 8. Other


def test_empty_text_is_stored_encrypted() -> None:
    application = make_application("")
    assert stored(application).startswith("gAAAA")
    assert Application.objects.get().client_secret == ""


def test_null_is_not_encrypted() -> None:
    field = EncryptedTextField(null=True)  # type: ignore[misc]  # the app has no nullable field
    assert field.get_db_prep_value(None, connection) is None
    assert field.from_db_value(None, None, connection) is None


def test_migrations_contain_no_keys() -> None:
    _, path, args, kwargs = EncryptedTextField("secret").deconstruct()
    assert path == "django_infusionsoft.fields.EncryptedTextField"
    assert (args, kwargs) == ([], {"verbose_name": "secret"})
