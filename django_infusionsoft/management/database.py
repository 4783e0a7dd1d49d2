"""How the commands report that they cannot use the database."""

from typing import Final

from django.core.management.base import CommandError

from django_infusionsoft.storage.usability import DatabaseProblem, explain, problem_of

# Monitoring plugins exit with 3 if the status is unknown.
UNAVAILABLE: Final = 3
UNUSABLE: Final = 4


def database_error(error: BaseException) -> CommandError:
    """Return the error, in one line and with its exit code."""
    is_unavailable = problem_of(error) == DatabaseProblem.UNAVAILABLE
    return CommandError(explain(error), returncode=UNAVAILABLE if is_unavailable else UNUSABLE)
