"""What a monitor asks: one look at all credentials, as JSON and as a status code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from django.db import Error, router
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.generic import View

from django_infusionsoft import alarms
from django_infusionsoft.database import outside_atomic_requests
from django_infusionsoft.exceptions import DatabaseBusy
from django_infusionsoft.health import Verdict, health_of
from django_infusionsoft.models import Credential
from django_infusionsoft.plain import one_line

# Of accounts in one answer; the counts tell of all.
MOST_NAMED: Final = 100


@method_decorator(never_cache, name="dispatch")
class HealthView(View):
    """200 where all is well; 503 where something needs a person, or no worker keeps up.

    Whoever asks is told numbers; names only who may view credentials. Where refreshes are overdue
    this also sends the mail: no worker will.
    """

    http_method_names = ["get", "head", "options"]

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., HttpResponseBase]:
        """Return the view, outside ATOMIC_REQUESTS.

        A database that is gone is to be met in here, where it is an answer.
        """
        return outside_atomic_requests(super().as_view(**initkwargs))

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> JsonResponse:
        alias = router.db_for_write(Credential)
        try:
            health = health_of(alias)
            names = _names(alias) if self.may_see_names() else {}
        except (Error, DatabaseBusy):
            return JsonResponse({"status": "no_database"}, status=503)
        if health.is_behind:
            alarms.tell(alias)
        is_ok = health.verdict == Verdict.OK
        return JsonResponse({**health.as_dict(), **names}, status=200 if is_ok else 503)

    def may_see_names(self) -> bool:
        """Tell whether this person may read which accounts there are."""
        user = getattr(self.request, "user", None)  # a site may do without users
        return user is not None and user.has_perm("django_infusionsoft.view_credential")


def _names(alias: str) -> dict[str, Any]:
    """Return the accounts that need a person, the first of them by name."""
    lost = Credential.objects.needs_reauthorization().using(alias).order_by("account", "pk")
    return {
        "needs_attention": [
            {"account": account, "name": one_line(name), "reason": reason}
            for account, name, reason in lost.values_list("account", "account_name", "reason")[
                :MOST_NAMED
            ]
        ]
    }
