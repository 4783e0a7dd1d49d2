"""The rows through which all processes of a site know how it stands with their clients."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db.models import Q, QuerySet

from django_infusionsoft.choices import Trouble
from django_infusionsoft.database import DatabaseNow

if TYPE_CHECKING:
    from django_infusionsoft.models import Application, ApplicationState


def states(alias: str) -> QuerySet[ApplicationState]:
    """All of them, by the database's clock too."""
    # By its name: the models are above this module.
    model: type[ApplicationState] = apps.get_model("django_infusionsoft", "ApplicationState")
    return (
        model._base_manager.using(alias)
        .select_related("application")
        .annotate(database_now=DatabaseNow())  # type: ignore[no-redef]  # declared for readers
    )


def troubled(alias: str) -> QuerySet[ApplicationState]:
    """Those whose client is not used."""
    return states(alias).exclude(trouble=Trouble.NONE)


def blocked_keys(alias: str, *, ahead_seconds: float | None) -> list[int]:
    """Return the ``application_key`` of those of which nothing is to be claimed now.

    Their clients are not used, or have no free place for so many seconds; ``None``: whatever.
    """
    is_blocked = ~Q(trouble=Trouble.NONE)
    if ahead_seconds is not None:
        is_blocked |= Q(booked_until__gt=from_now(ahead_seconds))
    blocked = states(alias).filter(is_blocked)
    return list(blocked.values_list("application_key", flat=True))


def row_of(alias: str, state: ApplicationState) -> QuerySet[ApplicationState]:
    return states(alias).filter(pk=state.pk)


def state_of(alias: str, application: Application | None) -> ApplicationState:
    """Return an application's, made where there is none yet; ``None``: the settings' client."""
    found = states(alias).filter(application=application)
    state = found.first()
    if state is None:
        made = {"since": DatabaseNow(), "probe_at": DatabaseNow()}
        states(alias).get_or_create(application=application, defaults=made)
        state = found.get()
    return state


def from_now(seconds: float) -> Any:
    """Return a moment by the database's clock."""
    # SQLite writes a sum with more digits, and compares text: it would not be due at once.
    return DatabaseNow() + timedelta(seconds=seconds) if seconds else DatabaseNow()
