"""A small part of Keap's REST API, v1 and v2 (keap-facts sections 3, 4, 6 and 7)."""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode
from zlib import crc32

from .contacts import Contact
from .messages import Reply, Request, json_reply
from .people import Account, KeapUser
from .quota import Quota
from .state import AccessToken, State

PREFIX = "/crm/"
MAX_PAGE = 1000  # keap-facts section 4


class BadRequestError(Exception):
    """The request's parameters or body are invalid; the text is sent in the reply."""


@dataclass(frozen=True)
class Call:
    """An authenticated API request: its user, its account, and the id in its path."""

    request: Request
    user: KeapUser
    account: Account
    number: int = 0


View = Callable[[Call], Reply]


class Api:
    """Replies to requests under PREFIX. The gateway authenticates before it routes."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._quota = Quota(state.switches)
        views: dict[str, dict[str, View]] = {
            r"v1/oauth/connect/userinfo": {"GET": self._userinfo_v1},
            r"v2/oauth/connect/userinfo": {"GET": self._userinfo_v2},
            r"v1/account/profile": {"GET": self._profile},
            r"v1/contacts": {"GET": self._contacts_v1, "POST": self._add_contact_v1},
            r"v1/contacts/(\d{1,18})": {"GET": self._contact_v1},
            r"v2/contacts": {"GET": self._contacts_v2, "POST": self._add_contact_v2},
            r"v2/contacts/(\d{1,18})": {"GET": self._contact_v2},
        }
        self._routes = [
            (re.compile(f"/crm/rest/{path}/?", re.ASCII), methods)
            for path, methods in views.items()
        ]

    def answer(self, request: Request) -> Reply:
        now = self._state.clock.now()
        access_token = self._access_token(request)
        access = self._state.access(access_token)
        if not access_token:
            reply = fault_reply("Invalid access token", "oauth.v2.InvalidAccessToken")
        elif access is None:
            reply = _key_fault("Invalid Access Token", "invalid_access_token")
        else:
            reply = _rejection(access, now) or self._route(request, access)
        grant = access.grant if access and reply.status != 401 else None
        return replace(reply, headers={**reply.headers, **self._quota.headers(now, grant)})

    def _access_token(self, request: Request) -> str:
        scheme, _, access_token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return access_token.strip()
        if self._state.switches.query_access_token:
            return request.query.get("access_token", "")
        return ""

    def _route(self, request: Request, access: AccessToken) -> Reply:
        user = self._state.users.get(access.grant.email)
        if user is None:  # the sandbox was restarted with other users
            return _key_fault("Access Token not approved", "access_token_not_approved")
        for pattern, methods in self._routes:
            if match := pattern.fullmatch(request.path):
                number = int(match[1]) if match.groups() else 0
                if view := methods.get(request.method):
                    call = Call(request, user, access.grant.account, number)
                    return self._view(view, call)
                allowed = {"Allow": ", ".join(methods)}
                return _problem(request, 405, "Method Not Allowed", headers=allowed)
        return _problem(request, 404, f"No such resource: {request.path}")

    def _view(self, view: View, call: Call) -> Reply:
        try:
            return view(call)
        except BadRequestError as error:
            return _problem(call.request, 400, str(error))

    # User and account

    def _userinfo_v1(self, call: Call) -> Reply:
        return json_reply(
            {
                **_person(call.user),
                "global_user_id": _user_number(call.user),
                "infusionsoft_id": call.user.email,
            }
        )

    def _userinfo_v2(self, call: Call) -> Reply:
        tenants = {"bare": call.account.app_id, "host": call.account.host}
        tenant_id = tenants.get(self._state.switches.tenant_id)
        return json_reply(
            {
                **_person(call.user),
                "id": str(_user_number(call.user)),
                "keap_id": call.user.email,
                **({"tenant_id": tenant_id} if tenant_id else {}),
            }
        )

    def _profile(self, call: Call) -> Reply:
        address = {
            "field": "BILLING",
            "line1": "1 Sandbox Street",
            "line2": "",
            "locality": "Chandler",
            "region": "AZ",
            "postal_code": "85224",
            "zip_code": "85224",
            "zip_four": "",
            "country_code": "USA",
        }
        return json_reply(
            {
                "name": call.account.title,
                "email": call.user.email,
                "phone": "(480) 555-0100",
                "phone_ext": "",
                "website": f"https://{call.account.app_id}.example",
                "logo_url": "",
                "time_zone": "America/Phoenix",
                "language_tag": "en-US",
                "currency_code": "USD",
                "business_type": "",
                "business_goals": [],
                "business_primary_color": "",
                "business_secondary_color": "",
                "address": address,
            }
        )

    # Contacts

    def _contacts_v1(self, call: Call) -> Reply:
        query = call.request.query
        limit = _number(query, "limit", default=MAX_PAGE, least=1, most=MAX_PAGE)
        offset = _number(query, "offset", default=0)
        contacts = self._state.contacts(call.account)

        def page(at: int) -> str:
            # Keap sends both URLs on every page, including the last: a client stops at an
            # empty page (captures in public code; not in keap-facts).
            fields = {name: value for name, value in query.items() if name != "access_token"}
            encoded = urlencode(fields | {"limit": limit, "offset": at})
            return f"http://{call.request.host}{call.request.path}?{encoded}"

        return json_reply(
            {
                "contacts": [each.as_v1() for each in contacts[offset : offset + limit]],
                "count": len(contacts),
                "next": page(offset + limit),
                "previous": page(max(0, offset - limit)),
            }
        )

    def _contacts_v2(self, call: Call) -> Reply:
        query = call.request.query
        # 0 is allowed (keap-facts section 4), and means the default here.
        size = _number(query, "page_size", default=0, most=MAX_PAGE) or MAX_PAGE
        offset = _offset(query.get("page_token", ""))
        contacts = self._state.contacts(call.account)
        end = offset + size
        return json_reply(
            {
                "contacts": [each.as_v2() for each in contacts[offset:end]],
                "next_page_token": _page_token(end) if end < len(contacts) else "",
            }
        )

    def _contact_v1(self, call: Call) -> Reply:
        for contact in self._state.contacts(call.account):
            if contact.number == call.number:
                return json_reply(contact.as_v1())
        return _problem(call.request, 404, f"Contact with id {call.number} not found")

    def _contact_v2(self, call: Call) -> Reply:
        for contact in self._state.contacts(call.account):
            if contact.number == call.number:
                return json_reply(contact.as_v2())
        details = [{"domain": "Contact", "resource": str(call.number)}]
        message = f"Contact with id {call.number} not found"
        return _problem(call.request, 404, message, details=details)

    def _add_contact_v1(self, call: Call) -> Reply:
        contact = self._add(call)
        return json_reply(contact.as_v1(), status=201)

    def _add_contact_v2(self, call: Call) -> Reply:
        contact = self._add(call)
        return json_reply(contact.as_v2(), status=201)

    def _add(self, call: Call) -> Contact:
        try:
            fields = json.loads(call.request.body)
        except ValueError:
            raise BadRequestError("The body is not JSON.") from None
        if not isinstance(fields, dict):
            raise BadRequestError("The body is not a JSON object.")
        try:
            return self._state.add_contact(call.account, fields)
        except ValueError as error:
            raise BadRequestError(str(error)) from None


def fault_reply(text: str, code: str, *, status: int = 401) -> Reply:
    """Return a gateway fault (keap-facts section 7)."""
    fault = {"faultstring": text, "detail": {"errorcode": code}}
    return json_reply(
        {"fault": fault}, status=status, headers={"Content-Type": "application/json"}
    )


def _rejection(access: AccessToken, now: float) -> Reply | None:
    if access.is_revoked or access.grant.is_revoked:
        return _key_fault("Access Token not approved", "access_token_not_approved")
    if now >= access.expires_at:
        return _key_fault("Access Token expired", "access_token_expired")
    return None


def _key_fault(text: str, code: str) -> Reply:
    return fault_reply(text, f"keymanagement.service.{code}")


def _problem(
    request: Request,
    status: int,
    message: str,
    *,
    details: list[dict[str, str]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Return an application error: v2's format is documented, v1's has `message`."""
    if not request.path.startswith("/crm/rest/v2/"):
        return json_reply({"message": message}, status=status, headers=headers)
    names = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}
    content = {
        "code": status,
        "message": message,
        "status": names[status],
        "details": details or [],
    }
    return json_reply(content, status=status, headers=headers)


def _person(user: KeapUser) -> dict[str, Any]:
    return {
        "sub": str(70_000 + _user_number(user)),
        "email": user.email,
        "given_name": user.given_name,
        "family_name": user.family_name,
        "middle_name": "",
        "preferred_name": user.given_name,
        "is_admin": user.is_admin,
    }


def _user_number(user: KeapUser) -> int:
    """Return a number derived from the email address, so that it is the same after a restart."""
    return 10_000 + crc32(user.email.encode()) % 90_000


def _number(
    query: Mapping[str, str], name: str, *, default: int, least: int = 0, most: int = 10**9
) -> int:
    text = query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not least <= int(text[:12]) <= most:
        raise BadRequestError(f"{name} is a number from {least} to {most}.")
    return int(text)


def _page_token(offset: int) -> str:
    return urlsafe_b64encode(f"offset:{offset}".encode()).decode()


def _offset(page_token: str) -> int:
    if not page_token:
        return 0
    try:
        _, _, offset = urlsafe_b64decode(page_token).decode("ascii").partition("offset:")
        return int(offset)
    except (Base64Error, UnicodeDecodeError, ValueError):
        raise BadRequestError("page_token does not belong to this list.") from None
