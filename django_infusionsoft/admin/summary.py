"""The summary above the list: counts by condition, overdue refreshes, the worker."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_infusionsoft.admin import icons, labels
from django_infusionsoft.admin.filters import ConditionFilter
from django_infusionsoft.admin.icons import Icon
from django_infusionsoft.admin.links import page_if_any
from django_infusionsoft.choices import Condition
from django_infusionsoft.conf import conf
from django_infusionsoft.models import ApplicationState
from django_infusionsoft.monitoring.health import Health
from django_infusionsoft.text import distance


@dataclass(frozen=True, slots=True)
class Count:
    """The number of credentials in a condition."""

    condition: Condition
    count: int

    @property
    def icon(self) -> Icon:
        """The condition's icon."""
        return icons.OF_CONDITIONS[self.condition]

    @property
    def query(self) -> str:
        """The query string that filters the list by the condition."""
        return "?" + urlencode({ConditionFilter.parameter_name: self.condition.value})


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence about all credentials, and the page to fix a problem, if any."""

    icon: Icon
    text: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """The contents of the summary."""

    health: Health
    site_name: str

    @property
    def counts(self) -> list[Count]:
        """One for each condition, in their order."""
        return [Count(condition, self.health.counts[condition]) for condition in Condition]

    @property
    def notices(self) -> Iterator[Notice]:
        """Problems first."""
        for state in self.health.blocked_applications:
            yield self._block_reason(state)
        if self.health.alive:
            yield self._worker()
            yield self._overdue()

    def _block_reason(self, state: ApplicationState) -> Notice:
        text: Any = _("%(application)s: %(state)s") % {
            "application": state,
            "state": labels.state(state),
        }
        icon = icons.BAD if state in self.health.rejected else icons.WAITING
        pk = state.application_id  # ``None`` for the client in the settings, which has no page
        url = page_if_any(self.site_name, "application_change", pk) if pk else ""
        return Notice(icon, text, url)

    def _worker(self) -> Notice:
        seen = labels.last_run(self.health)
        if not self.health.is_worker_late:
            return Notice(icons.GOOD, _("The worker is running. %(seen)s") % {"seen": seen})
        text = _(
            "The worker is not running. %(seen)s Start Celery's worker and beat, or the cron job."
        )
        return Notice(icons.BAD, text % {"seen": seen})

    def _overdue(self) -> Notice:
        if not self.health.due:
            return Notice(icons.GOOD, _("No refresh is overdue."))
        text = ngettext(
            "%(count)d refresh has been due for %(distance)s.",
            "%(count)d refreshes are due, the oldest for %(distance)s.",
            self.health.due,
        ) % {"count": self.health.due, "distance": distance(self.health.overdue_seconds)}
        is_late = self.health.overdue_seconds > conf.OVERDUE_SECONDS
        return Notice(icons.BAD if is_late else icons.BUSY, text)
