"""Whether the app can use its database, and why not."""

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any, Final

from django.db.models import F, QuerySet

from django_infusionsoft.storage.credentials import credential_model
from django_infusionsoft.storage.database import (
    close_lost_connections,
    limited_lock_waits,
    own_transaction,
)
from django_infusionsoft.storage.worker import WorkerState
from django_infusionsoft.text import one_line


class DatabaseProblem(StrEnum):
    """Why the database cannot be used, as the health view reports it."""

    NOT_MIGRATED = "not_migrated"
    READ_ONLY = "read_only"
    LOCKED = "locked"
    UNAVAILABLE = "no_database"


# PostgreSQL's SQLSTATEs, MariaDB's numbers, and what SQLite writes.
SIGNS: Final[Mapping[DatabaseProblem, Collection[str | int]]] = {
    DatabaseProblem.NOT_MIGRATED: (
        "42P01",
        "42703",
        1146,
        1054,
        "no such table",
        "no such column",
    ),
    DatabaseProblem.READ_ONLY: ("25006", 1290, 1792, 1836, "readonly database"),
    DatabaseProblem.LOCKED: ("55P03", 1205, 1223, " is locked"),
}
TEXTS: Final[Mapping[DatabaseProblem, str]] = {
    DatabaseProblem.NOT_MIGRATED: "The database lacks tables or columns of this app: run "
    "`python manage.py migrate`.",
    DatabaseProblem.READ_ONLY: "The database is read-only, so no refresh can be stored: use the "
    "primary server, or give the user of this process write access.",
    DatabaseProblem.LOCKED: "The database is locked, so no refresh can be stored: end the program "
    "or the transaction that has locked it.",
}


def check_usable(alias: str) -> None:
    """Do what writes the app's tables, without changing a row. Waits for locks a few seconds only.

    :raises django.db.Error: the tables are missing, read-only or locked.
    """
    close_lost_connections()
    with own_transaction(alias), limited_lock_waits(alias):
        for model in (credential_model(), WorkerState):
            rows: QuerySet[Any] = model._base_manager.using(alias)
            rows.filter(pk__lt=1).update(id=F("id"))  # there is none


def problem_of(error: BaseException) -> DatabaseProblem:
    """Return which problem an error of the database shows."""
    found: BaseException | None = error
    while found is not None:
        signs = (getattr(found, "sqlstate", None), *found.args[:1])
        for problem, known in SIGNS.items():
            if any(_matches(sign, each) for sign in signs for each in known):
                return problem
        found = found.__cause__
    return DatabaseProblem.UNAVAILABLE


def explain(error: BaseException) -> str:
    """Return in one line what is wrong with the database, and what to do."""
    return TEXTS.get(problem_of(error)) or f"The database is not available: {one_line(str(error))}"


def _matches(sign: Any, known: str | int) -> bool:
    if isinstance(known, str) and isinstance(sign, str):
        return known in sign
    return bool(sign == known)
