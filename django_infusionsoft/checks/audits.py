"""A check for apps that record what models' fields return: for the app's secrets, plain text."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from django.apps import apps
from django.core.checks import CheckMessage
from django.db.models import Model

from django_infusionsoft.checks.problems import problem
from django_infusionsoft.fields import EncryptedTextField
from django_infusionsoft.models import Application, Credential


def check_audit_apps(**kwargs: Any) -> list[CheckMessage]:
    """W024: an audit app would store tokens and client secrets in plain text."""
    found: list[CheckMessage] = []
    for app, (recorded, exclude) in AUDIT_APPS.items():
        if not apps.is_installed(app):
            continue
        columns = [
            f"{model.__name__}.{name}"
            for model in (Application, Credential)
            for name in sorted(recorded(model) & _secrets(model))
        ]
        if columns:
            found += problem(
                "W024",
                f"{app} records {', '.join(columns)} in plain text.",
                f"{exclude} Then delete what it has recorded.",
            )
    return found


def _secrets(model: type[Model]) -> set[str]:
    fields = model._meta.concrete_fields
    return {each.name for each in fields if isinstance(each, EncryptedTextField)}


def _all(model: type[Model]) -> set[str]:
    return {each.name for each in model._meta.concrete_fields}


def _recorded_by_auditlog(model: type[Model]) -> set[str]:
    registry: Any = import_module("auditlog.registry").auditlog
    if not registry.contains(model):
        return set()
    fields = registry.get_model_fields(model)
    # Of a masked field it records a half.
    return (set(fields["include_fields"]) or _all(model)) - set(fields["exclude_fields"])


def _recorded_by_easyaudit(model: type[Model]) -> set[str]:
    configured: Any = import_module("easyaudit.settings")
    is_recorded = (
        configured.WATCH_MODEL_EVENTS
        and not _names(model, configured.UNREGISTERED_CLASSES)
        and (not configured.REGISTERED_CLASSES or _names(model, configured.REGISTERED_CLASSES))
    )
    return _all(model) if is_recorded else set()


def _names(model: type[Model], classes: list[type]) -> bool:
    return any(issubclass(model, each) for each in classes)


EXCLUDE_FIELDS: Final = (
    "With AUDITLOG_INCLUDE_ALL_MODELS, set AUDITLOG_EXCLUDE_TRACKING_FIELDS = "
    "['client_secret', 'access_token', 'refresh_token']; otherwise, use exclude_fields."
)
EXCLUDE_MODELS: Final = (
    "Set DJANGO_EASY_AUDIT_UNREGISTERED_CLASSES_EXTRA = ['django_infusionsoft.Application', "
    "'django_infusionsoft.Credential']."
)
# What an app records of a model, and how to exclude it.
AUDIT_APPS: Final[dict[str, tuple[Callable[[type[Model]], set[str]], str]]] = {
    "auditlog": (_recorded_by_auditlog, EXCLUDE_FIELDS),
    "easyaudit": (_recorded_by_easyaudit, EXCLUDE_MODELS),
}
