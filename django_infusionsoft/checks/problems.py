"""What a check returns when it has found a problem."""

from django.core import checks
from django.core.checks import CheckMessage


def problem(code: str, text: str, hint: str) -> list[CheckMessage]:
    """Return an error with a code such as ``E003``, or a warning with one such as ``W003``."""
    kind = checks.Error if code.startswith("E") else checks.Warning
    return [kind(text, hint=hint, id=f"django_infusionsoft.{code}")]
