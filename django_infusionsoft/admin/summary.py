"""The line above the list: how many are in each condition, what is overdue, does a worker run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_infusionsoft.admin import signs, words
from django_infusionsoft.admin.addresses import page_of_application
from django_infusionsoft.admin.filters import ConditionFilter
from django_infusionsoft.admin.signs import Sign
from django_infusionsoft.choices import Condition
from django_infusionsoft.conf import conf
from django_infusionsoft.health import Health
from django_infusionsoft.models import ApplicationState
from django_infusionsoft.plain import distance


@dataclass(frozen=True, slots=True)
class Count:
    """How many credentials are in a condition."""

    condition: Condition
    count: int

    @property
    def sign(self) -> Sign:
        """The condition's, quiet where there is none."""
        return signs.OF_CONDITIONS[self.condition]

    @property
    def query(self) -> str:
        """What shows them in the list."""
        return "?" + urlencode({ConditionFilter.parameter_name: self.condition.value})


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence about all of them, and where to mend it."""

    sign: Sign
    text: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """What stands above the list."""

    health: Health
    site_name: str

    @property
    def counts(self) -> list[Count]:
        """In the order of the conditions."""
        return [Count(condition, self.health.counts[condition]) for condition in Condition]

    @property
    def notices(self) -> Iterator[Notice]:
        """The worst first."""
        for state in self.health.troubles:
            yield self._trouble(state)
        if self.health.alive:
            yield self._worker()
            yield self._overdue()

    def _trouble(self, state: ApplicationState) -> Notice:
        text: Any = _("%(application)s: %(state)s") % {
            "application": state,
            "state": words.state(state),
        }
        sign = signs.BAD if state in self.health.rejected else signs.WAITING
        return Notice(sign, text, page_of_application(self.site_name, state.application_id))

    def _worker(self) -> Notice:
        seen = words.last_run(self.health)
        if not self.health.is_worker_late:
            return Notice(signs.GOOD, _("The worker runs. %(seen)s") % {"seen": seen})
        text = _("The worker does not run. %(seen)s Start the worker and beat, or cron.")
        return Notice(signs.BAD, text % {"seen": seen})

    def _overdue(self) -> Notice:
        if not self.health.due:
            return Notice(signs.GOOD, _("No refresh is overdue."))
        text = ngettext(
            "%(count)d refresh is due, for %(distance)s.",
            "%(count)d refreshes are due, the oldest for %(distance)s.",
            self.health.due,
        ) % {"count": self.health.due, "distance": distance(self.health.overdue_seconds)}
        is_late = self.health.overdue_seconds > conf.OVERDUE_SECONDS
        return Notice(signs.BAD if is_late else signs.BUSY, text)
