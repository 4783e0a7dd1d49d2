"""Mails to ``INFUSIONSOFT_ALERT_RECIPIENTS``: what requires action, and what is resolved.

The rows record what has been reported, so nothing is reported twice, and a mail that cannot be
sent is tried again. Alerts are collected in one mail, at most every ``PAUSE_SECONDS``.
"""

import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urljoin

from django.conf import settings
from django.core.mail import EmailMessage
from django.db import connections
from django.db.models import Q, QuerySet
from django.template.loader import render_to_string
from django.urls import NoReverseMatch, reverse
from django.utils import timezone, translation
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_infusionsoft.choices import ACTION_REQUIRED, BlockReason, Condition, Status
from django_infusionsoft.conf import conf
from django_infusionsoft.monitoring import heartbeat
from django_infusionsoft.monitoring.health import Health, HealthStatus, health_of
from django_infusionsoft.storage.applications import (
    ApplicationState,
    from_now,
    states,
    was_notified,
)
from django_infusionsoft.storage.credentials import (
    CredentialRow,
    credential_model,
    in_condition,
    is_refreshable,
)
from django_infusionsoft.storage.database import (
    DatabaseNow,
    is_in_testcase,
    own_connection,
    own_transaction,
    tenant_selector,
)
from django_infusionsoft.text import one_line

logger = logging.getLogger("django_infusionsoft")

PAUSE_SECONDS: Final = 600.0
# How long one process may take to send a mail before another process tries.
SENDING_SECONDS: Final = 120.0
# While refreshes are overdue, this is reported once a day.
OVERDUE_PAUSE: Final = timedelta(days=1)
# The number of accounts listed in a mail; further accounts are only counted.
MAX_NAMED: Final = 20
# Rows per statement.
MARK_BATCH_SIZE: Final = 500


@dataclass(frozen=True, slots=True)
class PendingAlerts:
    """What no mail has reported yet."""

    lost: Sequence[int]
    """Credentials that must be reconnected."""
    failing: Sequence[int]
    """Credentials whose refreshes fail, and no retry may help."""
    resolved: Sequence[int]
    """Credentials that no longer need it."""
    rejected: Sequence[ApplicationState]
    """Of applications that a site administrator must fix."""
    accepted: Sequence[ApplicationState]
    """Of applications that are fixed."""
    is_overdue: bool
    """Whether to report that refreshes are overdue."""
    is_up_to_date: bool
    """Whether to report that they are no longer overdue."""

    def __str__(self) -> str:
        """Return the fields of the log line."""
        return (
            f"lost={len(self.lost)} failing={len(self.failing)} resolved={len(self.resolved)} "
            f"rejected={len(self.rejected)} accepted={len(self.accepted)} "
            f"overdue={self.is_overdue:d} up_to_date={self.is_up_to_date:d}"
        )

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) for each in fields(self))


def send_pending(alias: str) -> bool:
    """Send a mail if alerts are pending and one may be sent now; return whether one was sent.

    Never raises, since a failed mail must not break a refresh. The next call tries again.
    """
    try:
        # In the caller's transaction, this keeps one connection open while the mail is sent.
        # Otherwise recording that it was sent would open another one.
        with own_connection(alias):
            return bool(conf.ALERT_RECIPIENTS) and _send_pending(alias)
    except Exception:  # such as a database, a mail server or a site's own template
        logger.exception("alert_not_sent")
        return False


def send_soon(alias: str) -> None:
    """Send pending alerts in a thread: the caller needs an access token, not a mail server."""
    if not conf.ALERT_RECIPIENTS:
        return
    if is_in_testcase(alias):  # no other connection sees its data
        send_pending(alias)
        return
    try:
        threading.Thread(
            target=_send_and_close,
            args=(alias, tenant_selector(alias)),
            name="infusionsoft-mail",
            daemon=True,
        ).start()
    except RuntimeError:  # no more threads; the next run sends the mail
        logger.exception("alert_not_sent")


def _send_and_close(alias: str, select_tenant: Callable[[], None]) -> None:
    try:
        select_tenant()
        send_pending(alias)
    finally:
        connections.close_all()


def _send_pending(alias: str) -> bool:
    health = health_of(alias)
    pending = _pending(alias, health)
    if not pending or not heartbeat.lock_mail(
        alias, seconds=SENDING_SECONDS, pause_seconds=PAUSE_SECONDS
    ):
        return False
    # Not in the language and time zone of the current request.
    with translation.override(settings.LANGUAGE_CODE), timezone.override(None):
        _mail(alias, pending, health).send()
    _mark(alias, pending)
    logger.info("alert_sent %s", pending)
    return True


def _pending(alias: str, health: Health) -> PendingAlerts:
    with own_transaction(alias):
        lost = _credentials(alias).filter(status=Status.REAUTHORIZATION_REQUIRED, is_alerted=False)
        # Others than those are overdue, which is reported for all of them.
        has_failed = Q(status=Status.CONNECTED) & ~Q(failed_outcome="")
        fails = in_condition(Condition.FAILING) | in_condition(Condition.NEEDS_ATTENTION)
        failing = _credentials(alias).filter(has_failed, fails, is_alerted=False)
        # Not during a last attempt requested by a user, which may fail.
        is_resolved = in_condition(Condition.CONNECTED) | in_condition(Condition.DISCONNECTED)
        resolved = _credentials(alias).filter(is_resolved, is_alerted=True)
        # As for the signal: not if it alternates, because machines have different clients.
        rejected = states(alias).filter(
            was_notified(), block_reason__in=ACTION_REQUIRED, is_alerted=False
        )
        accepted = states(alias).filter(is_alerted=True).exclude(block_reason__in=ACTION_REQUIRED)
        return PendingAlerts(
            lost=_ids(lost),
            failing=_ids(failing),
            resolved=_ids(resolved),
            rejected=list(rejected),
            accepted=list(accepted),
            **_overdue(alias, health),
        )


def _overdue(alias: str, health: Health) -> dict[str, bool]:
    notified_at = health.worker_state.overdue_mailed_at if health.worker_state else None
    is_pending = notified_at is None or not health.now - OVERDUE_PAUSE <= notified_at <= health.now
    return {
        "is_overdue": health.is_behind and is_pending and _has_had_time(alias, health),
        "is_up_to_date": notified_at is not None and not health.is_behind,
    }


def _has_had_time(alias: str, health: Health) -> bool:
    """Whether a worker should have run by now: it may be started after the first connection."""
    if health.last_run_at:
        return True
    since = from_now(-conf.OVERDUE_SECONDS)
    return _credentials(alias).filter(is_refreshable(), connected_at__lte=since).exists()


def _mail(alias: str, pending: PendingAlerts, health: Health) -> EmailMessage:
    context = {
        "pending": pending,
        "health": health,
        "lost": _named(alias, pending.lost),
        "lost_more": max(0, len(pending.lost) - MAX_NAMED),
        "failing": _named(alias, pending.failing),
        "failing_more": max(0, len(pending.failing) - MAX_NAMED),
        "resolved": _named(alias, pending.resolved),
        "resolved_more": max(0, len(pending.resolved) - MAX_NAMED),
        "list_url": _url("admin:django_infusionsoft_credential_changelist"),
    }
    text = render_to_string("django_infusionsoft/mail/alert.txt", context)
    return EmailMessage(
        f"[Keap] {_subject(pending, health)}",
        re.sub(r"\n{3,}", "\n\n", text.strip()) + "\n",
        to=conf.ALERT_RECIPIENTS,
        headers={"Auto-Submitted": "auto-generated"},  # prevents out-of-office replies
    )


def _subject(pending: PendingAlerts, health: Health) -> str:
    """Return the most severe problem as the subject."""
    if pending.is_overdue:
        return _("Refreshes are overdue")
    reasons = {state.block_reason for state in pending.rejected}
    if BlockReason.REJECTED in reasons:
        return _("Keap rejects the client")
    if BlockReason.DISTRUSTED in reasons:
        return _("Keap rejects one account after the other")
    if reasons:
        return _("No request to Keap can be made")
    if count := len(pending.lost) + len(pending.failing):
        text = ngettext(
            "%(count)d account needs attention", "%(count)d accounts need attention", count
        )
        return text % {"count": count}
    return (
        _("All problems are resolved")
        if health.status == HealthStatus.OK
        else _("Some problems are resolved")
    )


def _named(alias: str, ids: Sequence[int]) -> list[dict[str, str]]:
    """Return what the mail says about each of the first ``MAX_NAMED`` accounts."""
    with own_transaction(alias):
        found = _credentials(alias).filter(pk__in=ids[:MAX_NAMED]).order_by("account", "pk")
        return [_line(each) for each in found]


def _line(credential: CredentialRow) -> dict[str, str]:
    name = one_line(credential.account_name)  # comes from Keap and is not trusted
    url = _url("admin:django_infusionsoft_credential_change", credential.pk)
    if credential.failed_outcome and credential.status == Status.CONNECTED:
        what = one_line(credential.last_error)
    else:
        what = credential.get_reason_display() or credential.get_status_display()
        if not credential.is_key:  # its page leads to the form for another key
            url = _url("django_infusionsoft:authorize", credential=credential.pk)
    title = f"{credential} ({name})" if name else str(credential)
    return {"title": title, "what": what, "url": url}


def _url(name: str, *arguments: int, **parameters: int) -> str:
    """Return an absolute URL, or a path if the site's URL is unknown; empty if no page exists."""
    try:
        path = reverse(name, args=arguments, query=parameters)
    except NoReverseMatch:
        return ""
    return urljoin(conf.SITE_URL or conf.REDIRECT_URI, path)


def _mark(alias: str, pending: PendingAlerts) -> None:
    """Record what was reported. Changes since then are pending for the next mail."""
    reported = [*pending.lost, *pending.failing]
    for ids, is_alerted in ((reported, True), (pending.resolved, False)):
        for start in range(0, len(ids), MARK_BATCH_SIZE):
            some = ids[start : start + MARK_BATCH_SIZE]
            with own_transaction(alias):
                _credentials(alias).filter(pk__in=some).update(is_alerted=is_alerted)
    for notified, is_alerted in ((pending.rejected, True), (pending.accepted, False)):
        with own_transaction(alias):
            states(alias).filter(pk__in=[each.pk for each in notified]).update(
                is_alerted=is_alerted
            )
    columns: dict[str, Any] = {}
    if pending.is_overdue or pending.is_up_to_date:
        columns["overdue_mailed_at"] = DatabaseNow() if pending.is_overdue else None
    heartbeat.unlock_mail(alias, **columns)


def _ids(credentials: QuerySet[CredentialRow]) -> list[int]:
    return list(credentials.order_by("pk").values_list("pk", flat=True))


def _credentials(alias: str) -> QuerySet[CredentialRow]:
    return credential_model()._base_manager.using(alias).defer("access_token", "refresh_token")
