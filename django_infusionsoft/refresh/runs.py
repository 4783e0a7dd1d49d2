"""A run over the due credentials: many at the same time, however many are stored.

Several runs, on several machines, share the work without any other communication: each claims a
few rows at a time.
"""

import logging
from collections.abc import Callable

from django.db import Error
from django.db.models import QuerySet

from django_infusionsoft import elapsed
from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.monitoring import alerts, heartbeat, retention
from django_infusionsoft.refresh import clock, receivers
from django_infusionsoft.refresh.attempt_pool import AttemptPool
from django_infusionsoft.refresh.recovery import recover_all
from django_infusionsoft.refresh.reporting import report_missing
from django_infusionsoft.refresh.run_result import Ended, Run
from django_infusionsoft.refresh.sweep import Sweep
from django_infusionsoft.storage.credentials import CredentialRow
from django_infusionsoft.storage.database import close_lost_connections

logger = logging.getLogger("django_infusionsoft")

# A run that Celery beat or cron starts every minute ends before the next one.
RUN_TIME_LIMIT_SECONDS = 55.0


def refresh_due(
    due: QuerySet[CredentialRow],
    *,
    time_limit_seconds: float,
    pause_seconds: float,
    should_stop: Callable[[], bool],
    on_progress: Callable[[Run], None],
) -> Run:
    """See ``Credential.objects.refresh_due()``; then prune the history.

    The run leaves no lease behind, and waits for all answers. The signals are sent whenever it
    holds no lease.
    """
    close_lost_connections()
    run, ends_at = Run(), elapsed.monotonic() + time_limit_seconds
    with receivers.deferred():
        may_begin = clock.begin_run(due.model, due.db, pause_seconds=pause_seconds)
        # In any case: the other run may be on another machine, with another spool.
        for result in recover_all(due.model, due.db):
            run.count(result)
        if may_begin:
            _refresh_due(due, run, ends_at, should_stop, on_progress)
        else:
            run.ended = Ended.RECENT
    return run


def _refresh_due(
    due: QuerySet[CredentialRow],
    run: Run,
    ends_at: float,
    should_stop: Callable[[], bool],
    on_progress: Callable[[Run], None],
) -> None:
    report_missing(due.model, due.db)
    with AttemptPool(conf.REFRESH_CONCURRENCY) as pool:
        Sweep(due, run, pool, ends_at, should_stop, on_progress).run_until_done()
    on_progress(run)
    if run.ended != Ended.STOP:
        run.pruned = retention.prune(
            due.db, is_over=lambda: should_stop() or elapsed.monotonic() >= ends_at
        )
    counts = " ".join(f"{name}={count}" for name, count in run.as_dict().items())
    logger.info("run_finished %s pruned=%s ended=%s", counts, run.pruned, run.ended)
    _report(due.db, run)


def _report(alias: str, run: Run) -> None:
    """Record that the run has ended, and send pending alerts."""
    try:
        heartbeat.end_run(
            alias, ended=run.ended, refreshed=run.refreshed, failed=run.tried - run.refreshed
        )
    except (Error, DatabaseBusy):  # no reason to fail a finished run
        logger.exception("run_not_reported")
    if run.ended != Ended.STOP:
        alerts.send_pending(alias)
