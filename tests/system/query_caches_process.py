"""``python -m tests.system.query_caches_process``: read each row twice, under a query cache.

Prints the number of queries that the second reading of a site's own model has made, and the models
of the app whose second reading was not made by the same queries as the first.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import django

django.setup()

from django.apps import apps  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.db.models import Max, Model, QuerySet  # noqa: E402
from django.test.utils import CaptureQueriesContext  # noqa: E402

from django_infusionsoft.models import Credential  # noqa: E402


def queries_of(read: Callable[[], Any]) -> int:
    with CaptureQueriesContext(connection) as queries:
        read()
    return len(queries)


def read_all(rows: QuerySet[Any]) -> None:
    """Read in each way that a cache may treat in its own."""
    list(rows.all())
    list(rows.values_list("pk"))
    rows.count()
    rows.exists()
    rows.aggregate(Max("pk"))
    rows.filter(pk=0).first()


def readers() -> dict[str, Callable[[], Any]]:
    models: list[type[Model]] = list(apps.get_app_config("django_infusionsoft").get_models())
    every = {each.__name__: each._base_manager.all() for each in models}
    every |= {"due": Credential.objects.due(), "connected": Credential.objects.connected()}
    return {name: partial(read_all, rows) for name, rows in every.items()}


def main() -> None:
    call_command("migrate", run_syncdb=True, verbosity=0)
    queries_of(lambda: list(User.objects.all()))
    own = queries_of(lambda: list(User.objects.all()))
    cached = [name for name, read in readers().items() if queries_of(read) != queries_of(read)]
    print(json.dumps([own, cached]))  # noqa: T201


if __name__ == "__main__":
    main()
