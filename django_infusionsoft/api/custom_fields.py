"""Custom fields by their names: Keap's objects name only their ids (keap-facts 14)."""

import threading
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from django_infusionsoft import elapsed

# A label may change.
MAX_AGE_SECONDS: Final = 600.0
RECENT_SECONDS: Final = 60.0
# Of accounts and kinds of objects.
MAX_MODELS: Final = 1000


@dataclass(frozen=True, slots=True)
class CustomFields:
    """The custom fields of one kind of objects, by label."""

    ids: Mapping[str, str]
    """The id of each label, and of each name of Keap's own."""
    labels: Mapping[str, str]
    """The label of each id; Keap's name of it if another field has the same label."""

    @classmethod
    def in_model(cls, model: Mapping[str, Any]) -> "CustomFields":
        """Read the answer of ``v2/contacts/model`` or another model."""
        fields = [each for each in model.get("custom_fields") or () if "id" in each]
        count = Counter(str(each.get("label")) for each in fields)
        labels, ids = {}, {}
        for each in fields:
            label, name = str(each.get("label")), str(each.get("field_name"))
            labels[str(each["id"])] = label if count[label] == 1 else name
            ids[name] = str(each["id"])
        return cls(ids | {label: each for each, label in labels.items()}, labels)

    def values_of(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the custom fields of an object, as contents by label."""
        return {
            self.labels.get(str(each["id"]), str(each["id"])): each.get("content")
            for each in item.get("custom_fields") or ()
        }

    def items_for(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return contents by label as ``custom_fields`` of an object.

        :raises LookupError: there is no such field; the message names those that there are.
        """
        for name in values.keys() - self.ids.keys():
            known = ", ".join(sorted(self.labels.values())) or "none"
            raise LookupError(f"No custom field is named {name!r}. There are: {known}.")
        return [{"id": self.ids[name], "content": value} for name, value in values.items()]


class ModelCache:
    """The models that this process has read, for a while. They contain no secret."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[Hashable, tuple[float, CustomFields]] = {}

    def get(self, key: Hashable, *, is_recent: bool = False) -> CustomFields | None:
        """Return the fields, unless they are too old.

        :param is_recent: if true, they must have been read in the last minute.
        """
        read_at, fields = self._found.get(key, (0.0, None))
        max_age = RECENT_SECONDS if is_recent else MAX_AGE_SECONDS
        return None if elapsed.monotonic() - read_at > max_age else fields

    def put(self, key: Hashable, model: Mapping[str, Any]) -> CustomFields:
        """Store the fields of a model, and return them."""
        fields = CustomFields.in_model(model)
        with self._lock:
            if len(self._found) >= MAX_MODELS:
                self._found.clear()
            self._found[key] = elapsed.monotonic(), fields
        return fields


models: Final = ModelCache()
