"""Custom fields by their names: Keap's objects name only their ids (keap-facts 14)."""

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from django_infusionsoft import elapsed

# A label may change: names are read again after this time, and if one is unknown.
MAX_AGE_SECONDS: Final = 600.0
# Of accounts and kinds of objects.
MAX_MODELS: Final = 1000


@dataclass(frozen=True, slots=True)
class CustomFields:
    """The custom fields of one kind of objects, by label."""

    ids: Mapping[str, str]
    """The id of each label, and of each name of Keap's own."""
    labels: Mapping[str, str]
    """The label of each id."""

    @classmethod
    def in_model(cls, model: Mapping[str, Any]) -> "CustomFields":
        """Read the answer of ``v1`` or ``v2`` to ``contacts/model`` or another model."""
        fields = [each for each in model.get("custom_fields") or () if "id" in each]
        by_name = {str(each.get("field_name")): str(each["id"]) for each in fields}
        by_label = {str(each.get("label")): str(each["id"]) for each in fields}
        labels = {str(each["id"]): str(each.get("label")) for each in fields}
        return cls({**by_name, **by_label}, labels)

    def values_of(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the custom fields of an object, as contents by label."""
        return {
            self.labels.get(str(each["id"]), str(each["id"])): each.get("content")
            for each in item.get("custom_fields") or ()
        }

    def items_for(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return contents by label as ``custom_fields`` of an object.

        :raises KeyError: there is no such field; the message names those that there are.
        """
        for name in values.keys() - self.ids.keys():
            known = ", ".join(sorted(self.labels.values())) or "none"
            raise KeyError(f"No custom field is named {name!r}. There are: {known}.")
        return [{"id": self.ids[name], "content": value} for name, value in values.items()]


class ModelCache:
    """The models that this process has read, for a while. They contain no secret."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[Hashable, tuple[float, CustomFields]] = {}

    def get(self, key: Hashable) -> CustomFields | None:
        """Return the fields, unless they are too old."""
        read_at, fields = self._found.get(key, (0.0, None))
        is_old = elapsed.monotonic() - read_at > MAX_AGE_SECONDS
        return None if is_old else fields

    def put(self, key: Hashable, model: Mapping[str, Any]) -> CustomFields:
        """Store the fields of a model, and return them."""
        fields = CustomFields.in_model(model)
        with self._lock:
            if len(self._found) >= MAX_MODELS:
                self._found.clear()
            self._found[key] = elapsed.monotonic(), fields
        return fields


models: Final = ModelCache()
