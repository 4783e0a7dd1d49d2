"""A part of Keap's REST API, v1 and v2, behind its gateway (keap-facts sections 3 to 7).

``OPERATIONS`` is all that it plays. It refuses everything else loudly.
"""

import json
import logging
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import contacts_api, people_api, tags_api
from .calls import Call, Operation, RefusedError, problem
from .gateway import fault_reply, key_fault, not_approved
from .messages import Reply, Request
from .people import Account, KeapUser
from .quota import Quota
from .state import AccessToken, State

logger = logging.getLogger("django_infusionsoft.sandbox")

PREFIX = "/crm/"
KEPT_REFUSALS = 1000
OPERATIONS: tuple[Operation, ...] = (
    *people_api.OPERATIONS,
    *contacts_api.OPERATIONS,
    *tags_api.OPERATIONS,
)
NUMBER = r"(\d{1,18})"


class Api:
    """Replies to requests under PREFIX. The gateway authenticates before it routes."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._quota = Quota(state.switches)
        self.refused: deque[str] = deque(maxlen=KEPT_REFUSALS)
        self._routes = [(_pattern(each.path), each) for each in OPERATIONS]

    def answer(self, request: Request) -> Reply:
        return self._behind_gateway(request, lambda access: self._route(request, access))

    def in_place(self, request: Request, reply: Reply) -> Reply:
        """Return a fault's reply with the headers of the gateway, and count the request."""
        access = self._state.access(self._access_token(request))
        if access is None or reply.status == 401:
            return self._quota.unauthorized(reply)
        now = self._state.clock.now()
        return self._quota.apply(now, access.grant, lambda: reply, is_enforced=False)

    def _behind_gateway(self, request: Request, view: Callable[[AccessToken], Reply]) -> Reply:
        """Let a request with a valid access token and within the limits through."""
        access_token, now = self._access_token(request), self._state.clock.now()
        access = self._state.access(access_token)
        if not access_token:
            reply = fault_reply("Invalid access token", "oauth.v2.InvalidAccessToken")
        elif access is None:
            reply = key_fault("Invalid Access Token", "invalid_access_token")
        elif rejection := _rejection(access, now):
            reply = rejection
        else:
            return self._quota.apply(now, access.grant, lambda: view(access))
        return self._quota.unauthorized(reply)

    def _access_token(self, request: Request) -> str:
        scheme, _, access_token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return access_token.strip()
        if key := request.headers.get("x-keap-api-key", ""):
            return key.strip()
        if self._state.switches.query_access_token:
            return request.query.get("access_token", "")
        return ""

    def _route(self, request: Request, access: AccessToken) -> Reply:
        user = self._state.users.get(access.grant.email)
        if user is None:  # the sandbox was restarted with other users
            return not_approved()
        for pattern, operation in self._routes:
            match = pattern.fullmatch(request.path)
            if match and operation.method == request.method:
                unknown = request.query.keys() - operation.parameters - {"access_token"}
                if unknown:
                    names = ", ".join(sorted(unknown))
                    return self._refuse(request, 400, f"the parameter {names} is not played")
                with self._state.lock:
                    account = access.grant.account
                    call = self._call(request, user, account, match.groups())
                    return self._view(operation, call)
        return self._refuse(request, 501, "this is not played")

    def _view(self, operation: Operation, call: Call) -> Reply:
        try:
            reply = operation.view(call)
        except RefusedError as error:
            return problem(call.request, error.status, str(error), details=error.details)
        if operation.method != "GET":
            self._state.on_change()
        return reply

    def add(self, account: Account, kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Store an object as by a request for it, without its authentication.

        :raises ValueError: the request would be refused; the message is that of the reply.
        """
        operation = next(each for each in OPERATIONS if each.creates(kind))
        target = f"/crm/rest/{operation.path}"
        request = Request("POST", target, {}, json.dumps(dict(fields)).encode())
        with self._state.lock:
            reply = self._view(operation, self._call(request, self._owner(account), account))
        content: dict[str, Any] = reply.json()
        if reply.status >= 400:
            raise ValueError(content["message"])
        return content

    def _owner(self, account: Account) -> KeapUser:
        return self._state.owner_of(account.app_id)

    def _call(
        self, request: Request, user: KeapUser, account: Account, numbers: Sequence[str] = ()
    ) -> Call:
        return Call(
            request,
            user,
            account,
            self._state.records(account),
            self._state.switches,
            self._state.clock.now(),
            tuple(map(int, numbers)),
        )

    def _refuse(self, request: Request, status: int, why: str) -> Reply:
        """Say what the sandbox does not play: in the reply, in the log and in `refused`."""
        message = f"The sandbox does not play {request.method} {request.path}: {why}."
        self.refused.append(message)
        logger.warning("not_played %s", message)
        return problem(request, status, message)


def _pattern(path: str) -> re.Pattern[str]:
    numbers = re.sub(r"\{\w+\}", lambda _: NUMBER, path)
    return re.compile(f"/crm/rest/{numbers}/?", re.ASCII)


def _rejection(access: AccessToken, now: float) -> Reply | None:
    if access.is_revoked or access.grant.is_revoked:
        return not_approved()
    if now >= access.expires_at:
        return key_fault("Access Token expired", "access_token_expired")
    return None
