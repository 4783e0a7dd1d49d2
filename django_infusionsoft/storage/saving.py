"""Model instances whose ``save()`` writes back no column that the app itself changes."""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar, Self

from django.core.exceptions import FieldError
from django.db import models, router
from django.db.models import QuerySet
from django.db.models.signals import class_prepared, post_init
from django.dispatch import receiver

logger = logging.getLogger("django_infusionsoft")


class GuardedModel(models.Model):
    """Only ``QuerySet.update()`` changes the columns of a stored row that are not editable.

    ``save()`` of a new instance inserts all columns. Later it writes only the columns that were
    assigned since the row was loaded, so that an old instance overwrites nothing else.
    """

    # Which method changes a column that is not editable.
    methods: ClassVar[Mapping[str, str]] = {}
    # The columns that were assigned to a stored row's instance and are not saved yet. Replaced
    # each time: copies of the instance share the set.
    _assigned: frozenset[str] = frozenset()

    class Meta:
        abstract = True

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name in _columns(type(self)) and not self._state.adding:
            self.__dict__["_assigned"] = self._assigned | {name}

    def save(
        self,
        *,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Iterable[str] | None = None,
    ) -> None:
        """Insert a new row, or write the editable columns that were assigned or are named.

        :raises FieldError: a column that is not editable was assigned. Nothing is saved.
        """
        alias = using or router.db_for_write(type(self), instance=self)
        names = None if update_fields is None else list(update_fields)
        if not force_insert:
            if self._state.adding or alias != self._state.db:
                self._require_new(alias)
            else:
                names = self._names_to_save(names)
        super().save(
            force_insert=force_insert, force_update=force_update, using=alias, update_fields=names
        )
        saved = self._assigned if names is None else _attnames(type(self), names)
        self.__dict__["_assigned"] = self._assigned - saved

    @classmethod
    def from_db(
        cls, db: str | None, field_names: Collection[str], values: Collection[Any], **kwargs: Any
    ) -> Self:
        if post_init.has_listeners(cls):  # which may read the columns
            return super().from_db(db, field_names, values, **kwargs)
        instance = super().from_db(db, (), (), **kwargs)
        # Not with __setattr__, which would make loading a row several times as slow.
        instance.__dict__.update(zip(field_names, values, strict=True))
        return instance

    def refresh_from_db(
        self,
        using: str | None = None,
        fields: Iterable[str] | None = None,
        from_queryset: QuerySet[Self] | None = None,
    ) -> None:
        names = None if fields is None else list(fields)
        kept = frozenset() if names is None else self._assigned - _attnames(type(self), names)
        super().refresh_from_db(using, names, from_queryset)
        self.__dict__["_assigned"] = kept

    @classmethod
    def require_editable(cls, names: Iterable[str]) -> None:
        """Check names of columns before they are written.

        :raises FieldError: one of them is not editable. The message names the method to use.
        """
        columns, owned = _columns(cls), defaultdict[str, list[str]](list)
        for name in sorted(_attnames(cls, names)):
            if not columns.get(name, True):
                owned[cls.methods.get(name, "refresh()")].append(name)
        if owned:
            hints = ", ".join(f"{method} for {', '.join(of)}" for method, of in owned.items())
            raise FieldError(f"save() does not change these columns of a stored row: use {hints}.")

    def _names_to_save(self, names: list[str] | None) -> list[str]:
        columns = _columns(type(self))
        assigned = self._assigned
        if names is not None:
            assigned &= _attnames(type(self), names)
        self.require_editable(assigned)
        wanted = sorted(assigned) if names is None else names
        return [name for name in wanted if columns.get(name, True)]

    def _require_new(self, alias: str) -> None:
        """Raise ``FieldError`` if a new instance has the primary key of a stored row."""
        rows = type(self)._base_manager.using(alias)
        if self.pk is not None and rows.filter(pk=self.pk).exists():
            self.require_editable(_columns(type(self)))

    def _do_update(
        self,
        base_qs: Any,
        using: str | None,
        pk_val: Any,
        values: Collection[tuple[Any, Any, Any]],
        *args: Any,
    ) -> Any:
        """Write only editable columns, for ``loaddata`` too, which does not call ``save()``."""
        columns = _columns(type(self))
        editable = [each for each in values if columns.get(each[0].attname, True)]
        updated = super()._do_update(base_qs, using, pk_val, editable, *args)
        if updated and len(editable) < len(values):
            logger.warning("columns_not_saved %s=%s", self._meta.model_name, pk_val)
        return updated


@receiver(class_prepared)
def _watch_peers(sender: type[models.Model], **kwargs: Any) -> None:
    """Let ``FETCH_PEERS`` (Django 6.1) load deferred columns: it assigns them."""
    if issubclass(sender, GuardedModel):
        for field in sender._meta.local_concrete_fields:
            descriptor = getattr(sender, field.attname)
            if fetch_many := getattr(descriptor, "fetch_many", None):
                descriptor.fetch_many = partial(_fetch_many, fetch_many)


def _fetch_many(
    fetch_many: Callable[[Sequence[GuardedModel]], None], instances: Sequence[GuardedModel]
) -> None:
    before = [each.__dict__.get("_assigned", frozenset()) for each in instances]
    fetch_many(instances)
    for each, assigned in zip(instances, before, strict=True):
        each.__dict__["_assigned"] = assigned


@cache
def _columns(model: type[models.Model]) -> dict[str, bool]:
    """Return whether each column is editable, without the primary key and generated columns."""
    fields = model._meta.concrete_fields
    return {
        each.attname: each.editable
        for each in fields
        if not (each.primary_key or getattr(each, "generated", False))
    }


def _attnames(model: type[models.Model], names: Iterable[str]) -> frozenset[str]:
    """Return the attributes' names, such as ``application_id`` for ``application``."""
    known = {each.name: each.attname for each in model._meta.concrete_fields}
    return frozenset(known.get(name, name) for name in names)
