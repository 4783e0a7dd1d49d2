"""The encrypted column: ciphertext at rest and in memory, plaintext only where it is used."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.core.exceptions import FieldError
from django.db import models
from django.db.models.expressions import Case, Expression, Value, When
from django.db.models.functions import Cast
from django.db.models.lookups import IsNull
from django.db.models.query_utils import DeferredAttribute

from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError, DecryptionError

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Model
    from django.db.models.lookups import Lookup, Transform

    TextField = models.TextField[str, str]
else:
    TextField = models.TextField

# Marks ciphertext in dumpdata's output, so that loaddata does not encrypt it once more.
DUMP_PREFIX = "fernet:"


def get_cipher() -> MultiFernet:
    """Return the key ring of ``INFUSIONSOFT_ENCRYPTION_KEYS``: the first key writes, all read.

    :raises ConfigurationError: if there is no key or one that is not a Fernet key.
    """
    # Without what "".split(",") leaves of an empty variable.
    keys = [key for key in (str(each).strip() for each in conf.ENCRYPTION_KEYS) if key]
    if not keys:
        raise ConfigurationError(
            "INFUSIONSOFT_ENCRYPTION_KEYS is empty: make a key with "
            "`python manage.py infusionsoft_key` and put it into this list."
        )
    return _build_cipher(tuple(keys))


@lru_cache(maxsize=8)
def _build_cipher(keys: tuple[str, ...]) -> MultiFernet:
    try:
        return MultiFernet([Fernet(key) for key in keys])
    except (ValueError, TypeError):
        # The cause would show the key.
        raise ConfigurationError(
            "INFUSIONSOFT_ENCRYPTION_KEYS holds something that is not a Fernet key: make one "
            "with `python manage.py infusionsoft_key`."
        ) from None


class Ciphertext:
    """A stored value that nobody has needed yet."""

    __slots__ = ("value",)

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "<encrypted>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ciphertext) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)


def seal(text: str) -> Ciphertext:
    """Return the text under the first key.

    :raises ConfigurationError: there is no key.
    """
    return Ciphertext(get_cipher().encrypt(text.encode()).decode())


class EncryptedAttribute(DeferredAttribute):
    """Decrypts on access. A data descriptor: without ``__set__`` the instance's dict would win."""

    field: EncryptedTextField

    def __get__(self, instance: Model | None, cls: Any = None) -> Any:
        value = super().__get__(instance, cls)
        return self.field.decrypt(value) if isinstance(value, Ciphertext) else value

    def __set__(self, instance: Model, value: object) -> None:
        # At once, and not when it is saved: a pickled or printed instance holds no plaintext.
        # An empty text is no secret: a new instance, such as a form's, needs no key.
        sealed = seal(value) if value and isinstance(value, str) else value
        instance.__dict__[self.field.attname] = sealed


def _is_encrypted(expression: Value) -> bool:
    try:
        return isinstance(expression.output_field, EncryptedTextField)
    except FieldError:  # a bare Value of a type that Django cannot guess
        return False


class EncryptedTextField(TextField):
    """A text column under Fernet, read lazily and written only as a literal value.

    ``values()``, ``values_list()`` and annotations give ``<encrypted>``, never the text. The only
    look-up is ``isnull``. A value that no key opens is kept as it is when other columns are saved.

    Fernet binds a value to its key, not to its row: who may write to the database may move one.
    """

    descriptor_class = EncryptedAttribute

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Never in a form: a model form would show the plaintext.
        kwargs["editable"] = False
        super().__init__(*args, **kwargs)

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        del kwargs["editable"]
        return name, path, args, kwargs

    def decrypt(self, ciphertext: Ciphertext) -> str:
        """Return the plaintext.

        :raises DecryptionError: if no key opens it; the message names the column.
        """
        try:
            return get_cipher().decrypt(ciphertext.value.encode()).decode()
        except InvalidToken:
            raise DecryptionError(
                f"No key in INFUSIONSOFT_ENCRYPTION_KEYS opens "
                f"{self.model._meta.label}.{self.name}: put back the key that it was written "
                f"with, or replace the value."
            ) from None

    def from_db_value(
        self, value: str | None, expression: object, connection: object
    ) -> Ciphertext | None:
        return None if value is None else Ciphertext(value)

    def pre_save(self, model_instance: Model, add: bool) -> Any:
        # Past the descriptor: an untouched value goes back unopened.
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
        if not self._encrypts_by_itself(value):
            raise FieldError(
                f"{self.model._meta.label}.{self.name} is encrypted by Python and takes a value, "
                f"not a database expression."
            )
        return value

    def _encrypts_by_itself(self, expression: Any) -> bool:
        """Tell whether all that the expression can give is values of this field.

        That is what ``bulk_update`` builds: its values pass through ``get_db_prep_value``.
        """
        if expression is None:
            return True
        if isinstance(expression, Value):
            return expression.value is None or _is_encrypted(expression)
        if isinstance(expression, When):
            return self._encrypts_by_itself(expression.result)
        if isinstance(expression, Case):
            branches = [*expression.cases, expression.default]
            return all(self._encrypts_by_itself(branch) for branch in branches)
        if isinstance(expression, Cast):
            return all(map(self._encrypts_by_itself, expression.get_source_expressions()))
        return False

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
