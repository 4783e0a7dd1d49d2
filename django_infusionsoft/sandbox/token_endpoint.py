"""POST /token (keap-facts section 2; RFC 6749 sections 4.1.3, 5 and 6)."""

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable
from hmac import compare_digest
from typing import Any

from .gateway import fault_reply
from .journal import Journal, TokenRequest
from .messages import NO_STORE, Reply, Request, html_reply, json_reply
from .state import RefusedError, State, TokenPair

PATH = "/token"

# outcome: (status, error, error_description), from keap-facts section 2.3. Two are assumed:
# unsupported_grant_type and repeated_parameter (RFC 6749 sections 5.2 and 3.2).
ERRORS = {
    "grant_type_missing": (400, "invalid_request", "response_type or grant_type is required"),
    "unsupported_grant_type": (400, "unsupported_grant_type", "Unsupported grant type"),
    "repeated_parameter": (400, "invalid_request", "A parameter is repeated"),
    "invalid_client": (401, "invalid_client", "ClientId is Invalid"),
    "code_missing": (400, "invalid_request", "Required param : code"),
    "redirect_uri_missing": (400, "invalid_request", "Required param : redirect_uri"),
    "refresh_token_missing": (400, "invalid_request", "Required param : refresh_token"),
    "invalid_code": (400, "invalid_request", "Invalid Authorization Code"),
    "invalid_redirect_uri": (400, "invalid_request", "Invalid redirect_uri"),
    "invalid_refresh_token": (400, "invalid_request", "Invalid Refresh Token"),
    "refresh_token_expired": (400, "invalid_request", "Refresh Token expired"),
}
DEAD_REFRESH_TOKEN = ("invalid_refresh_token", "refresh_token_expired")


class TokenEndpoint:
    """Exchanges codes and refresh tokens for token pairs, and records the requests."""

    def __init__(self, state: State, journal: Journal) -> None:
        self._state = state
        self._journal = journal
        self._grants: dict[str, Callable[[Request], TokenPair]] = {
            "authorization_code": self._exchange,
            "refresh_token": self._refresh,
        }

    def answer(self, request: Request, entry: TokenRequest) -> Reply:
        """Process a request, and add its entry with the outcome to the journal."""
        # With the state's lock, so that the journal has the order of processing.
        with self._state.lock:
            try:
                pair = self._pair(request)
            except RefusedError as error:
                entry.outcome, entry.is_replay = error.outcome, error.is_replay
                entry.account = error.account or entry.account
                self._journal.add(entry)
                return self._error_reply(request, error.outcome)
            entry.account = pair.account.app_id
            entry.is_replay = pair.is_in_grace
            rotated = "rotated_in_grace" if pair.is_in_grace else "rotated"
            entry.outcome = rotated if entry.grant_type == "refresh_token" else "issued"
            self._journal.add(entry)
        return json_reply(self.success_body(pair), headers=NO_STORE)

    def note_unprocessed(self, entry: TokenRequest) -> None:
        """Record a request that was not processed because of a fault."""
        self._journal.add(entry)

    def success_body(self, pair: TokenPair) -> dict[str, Any]:
        """Return the five fields of keap-facts 2.2."""
        lifetime = pair.expires_in
        body = {
            "access_token": pair.access_token,
            "token_type": "bearer",
            "expires_in": int(lifetime) if lifetime == int(lifetime) else lifetime,
            "refresh_token": pair.refresh_token,
        }
        scopes = {"account": f"full|{pair.account.host}", "full": "full"}
        if scope := scopes.get(self._state.switches.token_scope):
            body["scope"] = scope
        return body

    def entry(self, request: Request) -> TokenRequest:
        """Return the entry for a request that has just arrived."""
        form = request.form
        basic = _basic(request)
        refresh_token = form.get("refresh_token", "")
        return TokenRequest(
            number=0,
            at=self._state.clock.now(),
            grant_type=form.get("grant_type", ""),
            client_id=basic[0] if basic else form.get("client_id", ""),
            account=self._state.account_behind(refresh_token or form.get("code", "")),
            refresh_token=refresh_token,
        )

    def _pair(self, request: Request) -> TokenPair:
        if request.form.repeated:
            raise RefusedError("repeated_parameter")
        grant_type = request.form.get("grant_type", "")
        if not grant_type:
            raise RefusedError("grant_type_missing")
        if grant_type not in self._grants:
            raise RefusedError("unsupported_grant_type")
        return self._grants[grant_type](request)

    def _exchange(self, request: Request) -> TokenPair:
        client_id = self._client_id(request, "either")
        for name in ("code", "redirect_uri"):
            if not request.form.get(name):
                raise RefusedError(f"{name}_missing")
        return self._state.exchange(
            request.form["code"],
            client_id=client_id,
            redirect_uri=request.form["redirect_uri"],
        )

    def _refresh(self, request: Request) -> TokenPair:
        client_id = self._client_id(request, self._state.switches.refresh_client_auth)
        if not request.form.get("refresh_token"):
            raise RefusedError("refresh_token_missing")
        return self._state.rotate(request.form["refresh_token"], client_id=client_id)

    def _client_id(self, request: Request, where: str) -> str:
        """Return the authenticated client's id (keap-facts 2.1).

        `where` says whether HTTP Basic or the body must contain the credentials. A second copy in
        the other place is accepted if it is correct, too.
        """
        form = request.form
        has_body = "client_secret" in form
        has_basic = "authorization" in request.headers
        if (where == "basic" and not has_basic) or (where == "body" and not has_body):
            raise RefusedError("invalid_client")
        claims = [_basic(request)] if has_basic else []
        if has_body:
            claims.append((form.get("client_id", ""), form["client_secret"]))
        if not claims or any(claim != claims[0] for claim in claims):
            raise RefusedError("invalid_client")
        claim = claims[0]
        client = self._state.clients.get(claim[0]) if claim else None
        if claim is None or client is None:
            raise RefusedError("invalid_client")
        if not compare_digest(client.client_secret.encode(), claim[1].encode()):
            raise RefusedError("invalid_client")
        return client.client_id

    def _error_reply(self, request: Request, outcome: str) -> Reply:
        shape = self._state.switches.refresh_error
        if outcome in DEAD_REFRESH_TOKEN and shape != "apigee":
            return _other_error_reply(shape)
        status, error, description = ERRORS[outcome]
        headers = dict(NO_STORE)
        if status == 401 and "authorization" in request.headers:
            headers["WWW-Authenticate"] = 'Basic realm="Keap sandbox"'  # RFC 6749 5.2
        return json_reply(
            {"error": error, "error_description": description},
            status=status,
            headers=headers,
            is_pretty=self._state.switches.error_layout == "pretty",
        )


def _basic(request: Request) -> tuple[str, str] | None:
    """Return id and secret from HTTP Basic: standard base64, without form encoding."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = b64decode(encoded.strip(), validate=True)
    except (Base64Error, ValueError):
        return None
    client_id, _, client_secret = decoded.decode("utf-8", "replace").partition(":")
    return client_id, client_secret


def _other_error_reply(shape: str) -> Reply:
    """Return the error for an invalid refresh token in another format (keap-facts 2.3)."""
    if shape == "mashery":
        content = {"error": "invalid_grant", "error_description": "Invalid refresh token"}
        return json_reply(content, status=400, headers=NO_STORE)
    if shape == "fault":
        code = "keymanagement.service.invalid_refresh_token"
        return fault_reply("Invalid Refresh Token", code, status=400)
    if shape == "html":
        return html_reply("<html><body><h1>Bad Request</h1></body></html>", status=400)
    return Reply(400)
