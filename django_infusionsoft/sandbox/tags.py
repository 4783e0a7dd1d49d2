"""Tags and their categories, and their formats in each version of the API."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Self

# Over-long names are cut, not refused (keap-facts section 14).
MAX_NAME = 255


@dataclass
class Tag:
    """A tag; its time in epoch seconds."""

    number: int
    created_at: float
    name: str
    description: str = ""
    category: int | None = None

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        return cls(**saved)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_v2(self) -> dict[str, Any]:
        written_at = datetime.fromtimestamp(self.created_at, UTC).strftime(
            "%Y-%m-%dT%H:%M:%S.000Z"
        )
        category = {"category": {"id": str(self.category)}} if self.category else {}
        return {
            "id": str(self.number),
            "name": self.name,
            "description": self.description,
            "create_time": written_at,
            "update_time": written_at,
            **category,
        }


@dataclass
class TagCategory:
    """A category of tags."""

    number: int
    name: str
    description: str = ""

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        return cls(**saved)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_v2(self) -> dict[str, Any]:
        return {"id": str(self.number), "name": self.name, "description": self.description}
