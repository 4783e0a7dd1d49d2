"""Django's ``flush`` truncates all tables, and creates content types and permissions again.

On PostgreSQL this took longer than the tests themselves. Few tables have rows after a test, and no
test changes content types and permissions.
"""

from typing import Any

from django.core.management.commands import flush
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

KEPT = {"auth_permission", "django_content_type", "django_migrations"}


class Command(flush.Command):
    def handle(self, **options: Any) -> None:
        alias = options["database"]
        connection = connections[alias]
        with connection.constraint_checks_disabled(), transaction.atomic(using=alias):
            for table in _tables_with_rows(connection):
                with connection.cursor() as cursor:
                    cursor.execute(f"DELETE FROM {table}")  # noqa: S608  # names of tables


def _tables_with_rows(connection: BaseDatabaseWrapper) -> list[str]:
    names = set(connection.introspection.django_table_names(include_views=False)) - KEPT
    queries = (
        f"SELECT '{name}' WHERE EXISTS (SELECT 1 FROM {connection.ops.quote_name(name)})"  # noqa: S608  # as above
        for name in sorted(names)
    )
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(queries))
        return [connection.ops.quote_name(name) for (name,) in cursor.fetchall()]
