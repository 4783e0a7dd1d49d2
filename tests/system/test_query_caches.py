"""With a query cache for the whole site, what the app reads still comes from the database."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings

from tests import services
from tests.processes import ROOT, environment

LOCAL = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
SETTINGS: dict[str, dict[str, Any]] = {
    "cachalot": {"CACHES": LOCAL},
    "cacheops": {
        "CACHEOPS": {"*.*": {"ops": "all", "timeout": 60}},
        "CACHEOPS_REDIS": services.BROKERS["redis"].url,
    },
}


@pytest.mark.parametrize(
    ("name", "is_first"), [("cachalot", True), ("cachalot", False), ("cacheops", False)]
)
def test_what_the_app_reads_is_not_cached(
    name: str, is_first: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip(name, reason=f"django-{name} is not installed here")
    if name == "cacheops":
        request.getfixturevalue("redis_url")
    own = settings.INSTALLED_APPS
    installed = {
        "INSTALLED_APPS": [name, *own] if is_first else [*own, name],
        # Tables are created faster without migrations.
        "MIGRATION_MODULES": {each.label: None for each in apps.get_app_configs()},
    }
    process = subprocess.run(
        [sys.executable, "-m", "tests.system.query_caches_process"],
        cwd=ROOT,
        env=environment(f"sqlite:///{tmp_path / 'cache.sqlite3'}", SETTINGS[name] | installed),
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    queries_of_a_cached_model, cached = json.loads(process.stdout)
    assert queries_of_a_cached_model == 0  # the cache is on
    assert cached == []
