"""The sandbox's home page: its URLs, its logins, and the live grants.

Its "Revoke" button does what Keap does under API Settings, Third-Party Authorizations
(keap-facts 2.5).
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from .authorize import LOGINS_SHOWN
from .messages import Reply, Request
from .render import error_page, is_from_elsewhere, page
from .state import State

PATH = "/"
GRANTS_SHOWN = 100


class HomePage:
    """Replies to browsers at PATH."""

    def __init__(self, state: State, addresses: Mapping[str, str]) -> None:
        self._state = state
        self._addresses = addresses

    def answer(self, request: Request) -> Reply:
        if request.method == "POST":
            return self._revoke(request)
        users = list(self._state.users.values())
        grants = self._state.live_grants()
        return page(
            "home.html",
            {
                "addresses": self._addresses,
                "client_ids": list(self._state.clients),
                "users": users[:LOGINS_SHOWN],
                "has_more": len(users) > LOGINS_SHOWN,
                "grants": [
                    {
                        "app_id": grant.account.app_id,
                        "title": grant.account.title,
                        "client_id": grant.client_id,
                        "email": grant.email,
                        "since": _moment(grant.created_at),
                    }
                    for grant in grants[-GRANTS_SHOWN:]
                ],
                "grant_count": str(len(grants)),
            },
        )

    def _revoke(self, request: Request) -> Reply:
        if is_from_elsewhere(request):
            message = "The form was submitted from another site."
            return error_page("Not accepted", message, status=403)
        self._state.revoke(request.form.get("revoke", ""))
        return Reply(303, {"Location": PATH, "Cache-Control": "no-store"})


def _moment(epoch_seconds: float) -> str:
    return f"{datetime.fromtimestamp(epoch_seconds, UTC):%Y-%m-%d %H:%M} UTC"
