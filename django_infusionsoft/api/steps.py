"""What takes several calls of the API, without I/O: a session sends each call that is yielded."""

from collections.abc import Generator, Hashable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

from django_infusionsoft.api import updates
from django_infusionsoft.api.custom_fields import CustomFields, models

T = TypeVar("T")


class Call(NamedTuple):
    """The arguments of ``session.call()``."""

    method: str
    url: str
    options: Mapping[str, Any]


Steps: TypeAlias = Generator[Call, Any, T]


def update(account: Hashable, url: str, changes: Mapping[str, Any]) -> Steps[Any]:
    """Change some properties of an object of v2, and return it; see ``Records.update()``."""
    changes = updates.writable(url, changes)
    named = changes.get("custom_fields")
    if isinstance(named, Mapping):
        kind = updates.kind_of(url)
        changes["custom_fields"] = yield from custom_fields(account, kind, named)
    params = updates.needed(url, changes)
    current = {} if params is None else (yield Call("GET", url, {"params": params}))
    options = {
        "params": {"update_mask": list(changes)},
        "json": updates.merged(changes, current),
    }
    return (yield Call("PATCH", url, options))


def custom_fields(
    account: Hashable, kind: str, values: Mapping[str, Any]
) -> Steps[list[dict[str, Any]]]:
    """Return contents by label as in ``Records.custom_fields()``."""
    fields = models.get((account, kind))
    if fields is None or not values.keys() <= fields.ids.keys():
        fields = yield from _read_model(account, kind)
    return fields.items_for(values)


def custom_field_values(
    account: Hashable, kind: str, item: Mapping[str, Any]
) -> Steps[dict[str, Any]]:
    """Return contents by label as in ``Records.custom_field_values()``."""
    ids = {str(each["id"]) for each in item.get("custom_fields") or ()}
    fields = models.get((account, kind))
    if fields is not None and not ids <= fields.labels.keys():
        # Not for each object, in case that the model never has the id.
        fields = models.get((account, kind), is_recent=True)
    if fields is None:
        fields = yield from _read_model(account, kind)
    return fields.values_of(item)


def _read_model(account: Hashable, kind: str) -> Steps[CustomFields]:
    model = yield Call("GET", f"v2/{kind}/model", {})
    return models.put((account, kind), model)
