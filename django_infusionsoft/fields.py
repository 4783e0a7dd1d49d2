"""The encrypted model field: ciphertext in the database and in memory, decrypted on access."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.core.exceptions import FieldError
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model
from django.db.models.expressions import Case, Expression, Value, When
from django.db.models.functions import Cast
from django.db.models.lookups import IsNull, Lookup, Transform
from django.db.models.query_utils import DeferredAttribute

from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError, DecryptionError
from django_infusionsoft.redaction import Secret, clears_locals

if TYPE_CHECKING:
    TextField = models.TextField[str, str]
else:
    TextField = models.TextField

# Marks ciphertext in dumpdata's output, so that loaddata does not encrypt it again.
DUMP_PREFIX = "fernet:"


def get_cipher() -> MultiFernet:
    """Return the cipher for ``INFUSIONSOFT_ENCRYPTION_KEYS``: the first encrypts, all decrypt.

    :raises ConfigurationError: there is no key, or one is not a Fernet key.
    """
    return _build_cipher(tuple(conf.ENCRYPTION_KEYS))


@lru_cache(maxsize=8)
def _build_cipher(configured: tuple[object, ...]) -> MultiFernet:
    # Without the empty string that "".split(",") returns for an empty environment variable.
    keys = [key for key in (str(each).strip() for each in configured) if key]
    if not keys:
        raise ConfigurationError(
            "INFUSIONSOFT_ENCRYPTION_KEYS is empty: generate a key with `python manage.py "
            "infusionsoft_key` and add it to this list."
        )
    try:
        return MultiFernet([Fernet(key) for key in keys])
    except (ValueError, TypeError):
        # The cause would contain the key.
        raise ConfigurationError(
            "INFUSIONSOFT_ENCRYPTION_KEYS contains an invalid Fernet key: generate one with "
            "`python manage.py infusionsoft_key`."
        ) from None


@dataclass(frozen=True, slots=True, repr=False)
class Ciphertext:
    """An encrypted value, as it is stored."""

    value: str

    def __repr__(self) -> str:
        return "<encrypted>"


def seal(text: str) -> Ciphertext:
    """Return the text, encrypted with the first key.

    :raises ConfigurationError: there is no key.
    """
    return Ciphertext(get_cipher().encrypt(text.encode()).decode())


class EncryptedAttribute(DeferredAttribute):
    """Decrypts on access. With ``__set__``, it takes precedence over the instance's dictionary."""

    field: EncryptedTextField

    def __get__(self, instance: Model | None, cls: Any = None) -> Any:
        value = super().__get__(instance, cls)
        if instance is None or not isinstance(value, Ciphertext):
            return value
        return self.field.decrypt(value, row=instance.pk)

    @clears_locals
    def __set__(self, instance: Model, value: object) -> None:
        # Encrypt now, not on save, so that a pickled instance contains no plain text. An empty
        # string is not secret, so that a new instance, such as a form's, needs no key.
        sealed = seal(value) if value and isinstance(value, str) else value
        instance.__dict__[self.field.attname] = sealed


def _is_encrypted(expression: Value) -> bool:
    try:
        return isinstance(expression.output_field, EncryptedTextField)
    except FieldError:  # a Value of a type for which Django knows no field
        return False


class EncryptedTextField(TextField):
    """A text field encrypted with Fernet, decrypted on access and written only as a literal value.

    ``values()``, ``values_list()`` and annotations return ``<encrypted>``, never the text. The
    only lookup is ``isnull``. Saving other columns keeps a value that no key can decrypt.

    Fernet binds a value to its key, not to its row: a user who can write to the database can copy
    it to another row.
    """

    descriptor_class = EncryptedAttribute

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A model form would show the plain text.
        kwargs["editable"] = False
        super().__init__(*args, **kwargs)

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        del kwargs["editable"]
        return name, path, args, kwargs

    def decrypt(self, ciphertext: Ciphertext, *, row: object) -> str:
        """Return the plain text.

        :param row: the primary key of the value's row, for the message.
        :raises DecryptionError: no key can decrypt it; the message names the column.
        """
        try:
            return Secret(get_cipher().decrypt(ciphertext.value.encode()).decode())
        except (InvalidToken, UnicodeDecodeError):
            raise DecryptionError(
                f"No key in INFUSIONSOFT_ENCRYPTION_KEYS can decrypt "
                f"{self.model._meta.label}.{self.name} of row {row}: put back the key that it was "
                f"written with, or replace the value."
            ) from None

    def from_db_value(
        self, value: str | None, expression: object, connection: object
    ) -> Ciphertext | None:
        return None if value is None else Ciphertext(value)

    def pre_save(self, model_instance: Model, add: bool) -> Any:
        # Not through the descriptor: an unchanged value is saved without decrypting it.
        return model_instance.__dict__[self.attname]

    def get_prep_value(self, value: Any) -> Any:
        return value if isinstance(value, Ciphertext) else super().get_prep_value(value)

    def get_db_prep_value(
        self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False
    ) -> Any:
        value = value if prepared else self.get_prep_value(value)
        if isinstance(value, str):
            value = seal(value)
        return value.value if isinstance(value, Ciphertext) else value

    def get_db_prep_save(self, value: Any, connection: BaseDatabaseWrapper) -> Any:
        if not isinstance(value, Expression):
            return self.get_db_prep_value(value, connection=connection)
        if isinstance(value, Value):
            return self.get_db_prep_value(value.value, connection=connection)
        if not self._encrypts_literals(value):
            raise FieldError(
                f"{self.model._meta.label}.{self.name} is encrypted in Python and takes a value, "
                f"not a database expression."
            )
        return value

    def _encrypts_literals(self, expression: Any) -> bool:
        """Whether every result of the expression is a value of this field.

        ``bulk_update`` builds such expressions: their values pass through ``get_db_prep_value``.
        """
        match expression:
            case None:
                return True
            case Value():
                return expression.value is None or _is_encrypted(expression)
            case When():
                parts = [expression.result]
            case Case():
                parts = [*expression.cases, expression.default]
            case Cast():
                parts = expression.get_source_expressions()
            case _:
                return False
        return all(map(self._encrypts_literals, parts))

    def get_lookup(self, lookup_name: str) -> type[Lookup[Any]] | None:
        return IsNull if lookup_name == "isnull" else None

    def get_transform(self, lookup_name: str) -> type[Transform] | None:
        return None

    def value_to_string(self, obj: Model) -> Any:
        value = obj.__dict__[self.attname]
        return DUMP_PREFIX + value.value if isinstance(value, Ciphertext) else value

    def to_python(self, value: Any) -> Any:
        if isinstance(value, str) and value.startswith(DUMP_PREFIX):
            return Ciphertext(value.removeprefix(DUMP_PREFIX))
        return value if isinstance(value, Ciphertext) else super().to_python(value)
