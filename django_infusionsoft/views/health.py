"""The health check for monitors: the state of all credentials as JSON and status code."""

from collections.abc import Callable
from typing import Any, Final

from django.db import Error, router
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.generic import View

from django_infusionsoft.choices import Condition
from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.models import Credential
from django_infusionsoft.monitoring import alerts
from django_infusionsoft.monitoring.health import HealthStatus, health_of
from django_infusionsoft.storage.credentials import in_condition
from django_infusionsoft.storage.database import outside_atomic_requests
from django_infusionsoft.storage.usability import check_usable, problem_of
from django_infusionsoft.text import one_line

# How many accounts a response names; its counts include all.
MAX_NAMED: Final = 100


@method_decorator(never_cache, name="dispatch")
class HealthView(View):
    """Responds with 200 if all is well, and 503 if action is required or refreshes are overdue.

    Every client gets counts. Only users who may view credentials get account names. If refreshes
    are overdue, this also sends the alerts, because the worker may not be running.
    """

    http_method_names = ["get", "head", "options"]

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., HttpResponseBase]:
        """Return the view, outside ATOMIC_REQUESTS, so that it can report a database failure."""
        return outside_atomic_requests(super().as_view(**initkwargs))

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> JsonResponse:
        alias = router.db_for_write(Credential)
        try:
            check_usable(alias)
            health = health_of(alias)
            names = _names(alias) if self.may_see_names() else {}
        except (Error, DatabaseBusy) as error:
            return JsonResponse({"status": problem_of(error)}, status=503)
        if health.is_behind:
            alerts.send_pending(alias)
        is_ok = health.status == HealthStatus.OK
        return JsonResponse({**health.as_dict(), **names}, status=200 if is_ok else 503)

    def may_see_names(self) -> bool:
        """Whether the user of the request may see the names of accounts."""
        user = getattr(self.request, "user", None)  # a site may have no users
        return user is not None and user.has_perm("django_infusionsoft.view_credential")


def _names(alias: str) -> dict[str, Any]:
    """Return the accounts in bad conditions, ``MAX_NAMED`` of each at most."""
    return {
        condition.value: [
            {"account": account, "name": one_line(name), "reason": reason or outcome}
            for account, name, reason, outcome in Credential.objects.using(alias)
            .filter(in_condition(condition))
            .order_by("account", "pk")
            .values_list("account", "account_name", "reason", "failed_outcome")[:MAX_NAMED]
        ]
        for condition in (Condition.NEEDS_ATTENTION, Condition.FAILING)
    }
