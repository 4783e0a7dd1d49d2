"""What ``infusionsoft_refresh --all`` asks before it refreshes, and reports afterwards."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.core.management.base import CommandError
from django.db.models import QuerySet

from django_infusionsoft.conf import conf
from django_infusionsoft.models import ApplicationState, Credential
from django_infusionsoft.refresh.storing import reauthorization_error
from django_infusionsoft.refresh.trust import DISTRUST
from django_infusionsoft.storage.credentials import is_refreshable


def confirm(*, returncode: int) -> None:
    """Ask on the terminal whether to present all refresh tokens.

    :raises CommandError: the answer is not yes. Nothing has been changed.
    """
    count = Credential.objects.connected().filter(is_refreshable()).count()
    seconds = round(count / conf.REFRESH_RATE) if conf.REFRESH_RATE else 0
    question = (
        f"This presents the refresh tokens of all {count} connected accounts to Keap, in "
        f"{seconds} seconds or more, because nothing else shows which of them Keap still accepts. "
        "Accounts whose refresh tokens it rejects must be reconnected. Check first that this "
        "database is the one in use, and not a copy: a copy would use up the refresh tokens.\n"
        "Continue? [y/N] "
    )
    try:
        answer = input(question)
    except EOFError:  # no terminal
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandError(
            "Nothing was done. To skip the question: --no-input", returncode=returncode
        )


@dataclass(frozen=True, slots=True)
class Findings:
    """What the refreshes of all accounts have shown."""

    lost: list[Credential]
    """They must be reconnected."""
    doubted: list[Credential]
    """Keap has rejected them, too, and the app does not believe it yet."""
    left: int
    """How many accounts are still due."""
    is_distrusted: bool
    """Whether Keap has rejected so many accounts in a row that the others are left alone."""

    @property
    def is_any_rejected(self) -> bool:
        return bool(self.lost or self.doubted)

    def as_dict(self) -> dict[str, Any]:
        return {
            "lost": [str(each) for each in self.lost],
            "doubted": [str(each) for each in self.doubted],
            "left": self.left,
        }

    def lines(self) -> Iterator[str]:
        """Return the report in English."""
        for each in self.lost:
            yield str(reauthorization_error(each))
        for each in self.doubted:
            yield f"{each} was rejected, and is retried automatically."
        if self.left:
            yield f"Not refreshed: {self.left} accounts, which stay due."
        if self.is_distrusted:
            yield DISTRUST


def findings() -> Findings:
    """Return what the stored rows say."""
    rows = Credential.objects.get_queryset().filter(is_refreshable())
    lost, doubted = rows.needs_reauthorization(), rows.connected().filter(is_doubted=True)
    return Findings(
        _without_secrets(lost),
        _without_secrets(doubted),
        rows.due().count(),
        ApplicationState.objects.filter(is_distrusted=True).exists(),
    )


def _without_secrets(rows: QuerySet[Credential]) -> list[Credential]:
    return list(rows.defer("access_token", "refresh_token").order_by("account", "pk"))
