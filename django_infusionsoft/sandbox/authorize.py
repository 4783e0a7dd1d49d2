"""GET and POST /app/oauth/authorize: login, choice of account, consent, redirect.

keap-facts section 1; RFC 6749 section 4.1.1 to 4.1.2.1. Each form posts to its own URL, so only
the login is stored. A script may post all fields at once.
"""

import re
from collections.abc import Mapping
from hmac import compare_digest
from ipaddress import ip_address
from urllib.parse import urlencode, urlsplit

from .messages import Reply, Request
from .people import Account, KeapUser
from .render import error_page, is_from_elsewhere, page
from .state import State

PATH = "/app/oauth/authorize"
LOGINS_SHOWN = 12
ACCOUNTS_AS_BUTTONS = 12

# The host name of Django's test client, whose requests never leave the process.
DJANGO_TEST_HOST = "testserver"


class AuthorizePage:
    """Replies to browsers at PATH."""

    def __init__(self, state: State) -> None:
        self._state = state

    def answer(self, request: Request) -> Reply:
        if problem := self._client_problem(request):
            return error_page("Unable to create access token.", problem)
        if error := _request_error(request):
            return self._back(request, error)
        if request.method == "POST":
            if is_from_elsewhere(request):
                message = "The form was submitted from another site."
                return error_page("Not accepted", message, status=403)
            return self._post(request)
        user = self._state.logged_in(self._login_cookie(request))
        return self._account_page(request, user) if user else self._login_page(request)

    def _client_problem(self, request: Request) -> str:
        """Return why the browser must not be redirected (RFC 6749 section 4.1.2.1), or ''."""
        query = request.query
        client_id, redirect_uri = query.get("client_id", ""), query.get("redirect_uri", "")
        if query.repeated:
            return f"Repeated parameters: {', '.join(sorted(query.repeated))}."
        if client_id not in self._state.clients:
            known = ", ".join(self._state.clients)
            return f"Unknown client {client_id!r}. Known: {known}."
        if not redirect_uri:
            return "redirect_uri is missing."
        return redirect_uri_problem(redirect_uri, self._state.switches.redirect_uri)

    def _post(self, request: Request) -> Reply:
        form = request.form
        cookie = self._login_cookie(request)
        if "sign_out" in form:
            self._state.log_out(cookie)
            return self._login_page(request)
        if "email" not in form:
            user = self._state.logged_in(cookie)
            return self._decide(request, user) if user else self._login_page(request)
        user = self._state.users.get(form["email"].strip())
        given = form.get("password", "").encode()
        if user is None or not compare_digest(user.password.encode(), given):
            return self._login_page(request, "The email and password do not match.")
        headers = self._login_header(request, self._state.log_in(user))
        if form.keys() & {"account", "decision"}:
            return self._decide(request, user, headers)
        return Reply(303, {"Location": request.target, "Cache-Control": "no-store", **headers})

    def _decide(
        self, request: Request, user: KeapUser, headers: Mapping[str, str] | None = None
    ) -> Reply:
        only = user.accounts[0].app_id if len(user.accounts) == 1 else ""
        chosen = request.form.get("account", only)
        account = next((each for each in user.accounts if each.app_id == chosen), None)
        if account is None:
            return self._account_page(request, user, headers=headers)
        decision = request.form.get("decision")
        if decision == "deny" or (decision == "allow" and self._callback == "deny"):
            return self._back(request, ("access_denied", "The user denied the request"))
        if decision != "allow":
            return self._consent_page(request, user, account, headers=headers)
        if self._callback == "never":
            return page("account_central.html", {"account": account})
        return self._allow(request, user, account)

    @property
    def _callback(self) -> str:
        return self._state.switches.callback

    def _allow(self, request: Request, user: KeapUser, account: Account) -> Reply:
        query = request.query
        redirect_uri = query["redirect_uri"]
        code = self._state.issue_code(query["client_id"], user, account, redirect_uri)
        fields = {"code": code}
        if "state" in query:
            fields["state"] = query["state"]
        if self._state.switches.callback_scope:
            fields["scope"] = f"full|{account.host}"
        return _redirect(redirect_uri, fields)

    def _back(self, request: Request, error: tuple[str, str]) -> Reply:
        """Redirect with an error, as in RFC 6749 section 4.1.2.1: Keap's behaviour is unknown."""
        fields = {"error": error[0], "error_description": error[1]}
        if "state" in request.query:
            fields["state"] = request.query["state"]
        return _redirect(request.query["redirect_uri"], fields)

    # Pages

    def _login_page(self, request: Request, problem: str = "") -> Reply:
        users = list(self._state.users.values())
        context = {
            "action": request.target,
            "problem": problem,
            "email": request.form.get("email", ""),
            "users": users[:LOGINS_SHOWN],
            "has_more": len(users) > LOGINS_SHOWN,
        }
        return page("login.html", context)

    def _account_page(
        self,
        request: Request,
        user: KeapUser,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        if len(user.accounts) == 1:
            return self._consent_page(request, user, user.accounts[0], headers=headers)
        context = {
            "action": request.target,
            "user": user,
            "is_long": len(user.accounts) > ACCOUNTS_AS_BUTTONS,
        }
        return page("account.html", context, headers=headers)

    def _consent_page(
        self,
        request: Request,
        user: KeapUser,
        account: Account,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        context = {
            "action": request.target,
            "user": user,
            "account": account,
            "client_id": request.query["client_id"],
            "destination": urlsplit(request.query["redirect_uri"]).netloc,
            "has_choice": len(user.accounts) > 1,
        }
        return page("consent.html", context, headers=headers)

    # The login cookie

    def _login_cookie(self, request: Request) -> str:
        return request.cookie(cookie_name(request))

    def _login_header(self, request: Request, value: str) -> dict[str, str]:
        # Lax: the client's site links to the first page. A form posted by another site is sent
        # without the cookie.
        attributes = "Path=/; HttpOnly; SameSite=Lax"
        return {"Set-Cookie": f"{cookie_name(request)}={value}; {attributes}"}


def cookie_name(request: Request) -> str:
    """Return a name with the port: browsers share cookies between the ports of a host."""
    port = re.sub(r"\D", "", request.host.rpartition(":")[2])
    return f"keap_sandbox_login_{port or '80'}"


def redirect_uri_problem(redirect_uri: str, rule: str) -> str:
    """Return why a value of the redirect_uri switch forbids the redirect URI, or ''."""
    if not redirect_uri.isascii() or re.search(r"[\x00-\x20\x7f\\]", redirect_uri):
        return "redirect_uri contains characters that must be percent-encoded."
    try:
        parts = urlsplit(redirect_uri)
        host = parts.hostname or ""
    except ValueError:
        return "redirect_uri is not a URI."
    if parts.scheme not in ("http", "https") or not host:
        return "redirect_uri is not an absolute http or https URL."
    if parts.fragment or "#" in redirect_uri:
        return "redirect_uri has a fragment (RFC 6749 section 3.1.2)."
    if parts.scheme == "http" and rule == "https":
        return "redirect_uri is not https."
    if parts.scheme == "http" and rule == "loopback" and not _is_loopback(host):
        return "redirect_uri is neither https nor on this machine."
    return ""


def _is_loopback(host: str) -> bool:
    if host in ("localhost", DJANGO_TEST_HOST) or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _request_error(request: Request) -> tuple[str, str] | None:
    """Return an error for the callback (RFC 6749 section 4.1.2.1), as code and description.

    Both parameters have Keap's defaults.
    """
    if request.query.get("response_type", "code") != "code":
        return "unsupported_response_type", "response_type must be code"
    if request.query.get("scope", "full") != "full":
        return "invalid_scope", "scope must be full"
    return None


def _redirect(redirect_uri: str, fields: Mapping[str, str]) -> Reply:
    separator = "&" if "?" in redirect_uri else "?"
    location = f"{redirect_uri}{separator}{urlencode(fields)}"
    return Reply(302, {"Location": location, "Cache-Control": "no-store"})
