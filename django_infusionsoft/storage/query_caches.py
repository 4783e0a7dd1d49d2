"""Query caches of other packages, which must not keep what this app reads.

A cached row may have a used refresh token, and a cached clock stands still: an expired access
token would look valid, and nothing would ever be due.
"""

from collections.abc import Collection
from typing import Any

from django.apps import apps
from django.db.models import Model
from django.utils.module_loading import import_string


def exclude(models: Collection[type[Model]]) -> None:
    """Let every query of these models reach the database, whatever the site's settings say."""
    if apps.is_installed("cachalot"):
        _exclude_from_cachalot({model._meta.db_table for model in models})
    if apps.is_installed("cacheops"):
        profiles = import_string("cacheops.conf.prepare_profiles")()
        profiles.update({model._meta.label_lower: None for model in models})


def _exclude_from_cachalot(tables: set[str]) -> None:
    settings = import_string("cachalot.settings.cachalot_settings")
    convert = settings.converters["CACHALOT_UNCACHABLE_TABLES"]

    def convert_and_add(value: Any) -> Any:
        return convert(value) | tables

    # The settings are read again whenever one of them changes, and when cachalot itself is ready.
    settings.converters["CACHALOT_UNCACHABLE_TABLES"] = convert_and_add
    settings.load()
