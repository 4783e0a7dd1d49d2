"""Mails to ``INFUSIONSOFT_ALERT_RECIPIENTS``: what needs a person, and what was mended.

The rows say what has been told: nothing is told twice, and nothing is forgotten where a mail
cannot be sent. One mail tells of many, and the next comes some minutes later at the earliest.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urljoin

from django.apps import apps
from django.conf import settings
from django.core.mail import EmailMessage
from django.db.models import F, QuerySet
from django.template.loader import render_to_string
from django.urls import NoReverseMatch, reverse
from django.utils import timezone, translation
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_infusionsoft import upkeep
from django_infusionsoft.application_states import from_now, states
from django_infusionsoft.choices import Condition, Status, Trouble
from django_infusionsoft.conf import conf
from django_infusionsoft.database import DatabaseNow, own_transaction
from django_infusionsoft.health import Health, Verdict, health_of
from django_infusionsoft.plain import one_line
from django_infusionsoft.rows import is_in

if TYPE_CHECKING:
    from django_infusionsoft.models import ApplicationState, Credential

logger = logging.getLogger("django_infusionsoft")

PAUSE_SECONDS: Final = 600.0
# How long one process may take to send a mail before another one tries.
SENDING_SECONDS: Final = 120.0
# That refreshes are overdue is told again after a day.
OVERDUE_PAUSE: Final = timedelta(days=1)
# Of accounts, in a mail; the others are counted.
MOST_NAMED: Final = 20
# In one statement.
MARKED_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class News:
    """What no mail has told yet."""

    lost: Sequence[int]
    """Credentials that need a person."""
    mended: Sequence[int]
    """Credentials that do not any more."""
    refused: Sequence[ApplicationState]
    """Of applications whose client Keap refuses."""
    accepted: Sequence[ApplicationState]
    """Of those whose client it does not refuse any more."""
    is_overdue: bool
    """Whether it is to be told that refreshes are overdue."""
    is_up_to_date: bool
    """Whether it is to be told that they are not any more."""

    def __str__(self) -> str:
        """The log line's fields."""
        facts = {
            "lost": len(self.lost),
            "mended": len(self.mended),
            "refused": len(self.refused),
            "accepted": len(self.accepted),
            "overdue": int(self.is_overdue),
            "up_to_date": int(self.is_up_to_date),
        }
        return " ".join(f"{name}={fact}" for name, fact in facts.items())

    def __bool__(self) -> bool:
        return self.is_bad or bool(self.mended or self.accepted or self.is_up_to_date)

    @property
    def is_bad(self) -> bool:
        """Whether any of it needs somebody."""
        return bool(self.lost or self.refused or self.is_overdue)


@dataclass(frozen=True, slots=True)
class Line:
    """What a mail tells of one account. Names come from Keap, and so from strangers."""

    title: str
    what: str
    url: str
    """Where it is connected again; empty where the site has no such page."""


def tell(alias: str) -> bool:
    """Send a mail if there is news and it is time; return whether one was sent.

    Never raises: an alarm must not break what it is about. What could not be told is told by the
    next call.
    """
    try:
        return bool(conf.ALERT_RECIPIENTS) and _tell(alias)
    except Exception:  # whatever a database, a mail server or a site's own template raises
        logger.exception("alarm_not_sent")
        return False


def _tell(alias: str) -> bool:
    health = health_of(alias)
    news = _news(alias, health)
    if not news or not upkeep.take_mail(
        alias, seconds=SENDING_SECONDS, pause_seconds=PAUSE_SECONDS
    ):
        return False
    # Not in the language and the time of whoever's request this may be.
    with translation.override(settings.LANGUAGE_CODE), timezone.override(None):
        _mail(alias, news, health).send()
    _mark(alias, news)
    logger.info("alarm_sent %s", news)
    return True


def _news(alias: str, health: Health) -> News:
    with own_transaction(alias):
        lost = _credentials(alias).filter(status=Status.REAUTHORIZATION_REQUIRED, is_alerted=False)
        # Not while it is tried once more, by a person's will, which may be in vain.
        is_mended = is_in(Condition.CONNECTED) | is_in(Condition.DISCONNECTED)
        mended = _credentials(alias).filter(is_mended, is_alerted=True)
        refused = states(alias).filter(
            # As for the signal: not where machines with different clients make it come and go.
            trouble=Trouble.REJECTED,
            told_trip=F("trips"),
            is_alerted=False,
        )
        accepted = states(alias).filter(is_alerted=True).exclude(trouble=Trouble.REJECTED)
        return News(
            lost=_ids(lost),
            mended=_ids(mended),
            refused=list(refused),
            accepted=list(accepted),
            **_overdue(alias, health),
        )


def _overdue(alias: str, health: Health) -> dict[str, bool]:
    told_at = health.upkeep.overdue_mailed_at if health.upkeep else None
    is_news = told_at is None or told_at < health.now - OVERDUE_PAUSE
    return {
        "is_overdue": health.is_behind and is_news and _has_had_time(alias, health),
        "is_up_to_date": told_at is not None and not health.is_behind,
    }


def _has_had_time(alias: str, health: Health) -> bool:
    """Whether a worker could have been seen, which may be started after the first connection."""
    if health.last_run_at:
        return True
    since = from_now(-conf.OVERDUE_SECONDS)
    return _credentials(alias).filter(connected_at__lte=since).exists()


def _mail(alias: str, news: News, health: Health) -> EmailMessage:
    context = {
        "news": news,
        "health": health,
        "lost": _named(alias, news.lost),
        "lost_more": max(0, len(news.lost) - MOST_NAMED),
        "mended": _named(alias, news.mended),
        "mended_more": max(0, len(news.mended) - MOST_NAMED),
        "list_url": _url("admin:django_infusionsoft_credential_changelist"),
    }
    text = render_to_string("django_infusionsoft/mail/alarm.txt", context)
    return EmailMessage(
        f"[Keap] {_subject(news, health)}",
        re.sub(r"\n{3,}", "\n\n", text.strip()) + "\n",
        to=conf.ALERT_RECIPIENTS,
        headers={"Auto-Submitted": "auto-generated"},  # no answers that somebody is away
    )


def _subject(news: News, health: Health) -> str:
    """Return what comes first of what needs somebody."""
    if news.is_overdue:
        return _("Refreshes are overdue")
    if news.refused:
        return _("Keap refuses the client")
    if news.lost:
        text = ngettext(
            "%(count)d account needs attention",
            "%(count)d accounts need attention",
            len(news.lost),
        )
        return text % {"count": len(news.lost)}
    return _("All is well again") if health.verdict == Verdict.OK else _("Some of it is mended")


def _named(alias: str, ids: Sequence[int]) -> list[Line]:
    """Return the first of them."""
    with own_transaction(alias):
        found = _credentials(alias).filter(pk__in=ids[:MOST_NAMED]).order_by("account", "pk")
        return [_line(each) for each in found]


def _line(credential: Credential) -> Line:
    name = one_line(credential.account_name)
    return Line(
        title=f"{credential} ({name})" if name else str(credential),
        what=credential.get_reason_display() or credential.get_status_display(),
        url=_url("django_infusionsoft:authorize", credential=credential.pk),
    )


def _url(name: str, **parameters: int) -> str:
    """Return an absolute URL, or a path where nobody knows the site's address; empty for none."""
    try:
        path = reverse(name)
    except NoReverseMatch:
        return ""
    url = urljoin(conf.SITE_URL or conf.REDIRECT_URI, path)
    return f"{url}?{urlencode(parameters)}" if parameters else url


def _mark(alias: str, news: News) -> None:
    """Write down what has been told, whatever is so by now: the next look finds the difference."""
    for ids, is_alerted in ((news.lost, True), (news.mended, False)):
        for start in range(0, len(ids), MARKED_AT_ONCE):
            some = ids[start : start + MARKED_AT_ONCE]
            with own_transaction(alias):
                _credentials(alias).filter(pk__in=some).update(is_alerted=is_alerted)
    for told, is_alerted in ((news.refused, True), (news.accepted, False)):
        with own_transaction(alias):
            states(alias).filter(pk__in=[each.pk for each in told]).update(is_alerted=is_alerted)
    columns: dict[str, Any] = {}
    if news.is_overdue or news.is_up_to_date:
        columns["overdue_mailed_at"] = DatabaseNow() if news.is_overdue else None
    upkeep.end_mail(alias, **columns)


def _ids(credentials: QuerySet[Credential]) -> list[int]:
    return list(credentials.order_by("pk").values_list("pk", flat=True))


def _credentials(alias: str) -> QuerySet[Credential]:
    # By its name: the models are above this module.
    model: type[Credential] = apps.get_model("django_infusionsoft", "Credential")
    return model._base_manager.using(alias).defer("access_token", "refresh_token")
