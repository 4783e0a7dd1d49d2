"""The routes: the endpoint for each request, and its name in a plan."""

from collections.abc import Callable, Mapping

from . import api, authorize, home, token_endpoint
from .journal import ApiRequest, Journal, TokenRequest
from .messages import Reply, Request
from .render import error_page
from .state import State


class Routes:
    """All endpoints of one state. Takes requests and returns replies, without sockets."""

    def __init__(self, state: State, journal: Journal, addresses: Mapping[str, str]) -> None:
        self._state = state
        self._journal = journal
        self.token_endpoint = token_endpoint.TokenEndpoint(state, journal)
        self.api = api.Api(state)
        self._pages: dict[str, Callable[[Request], Reply]] = {
            authorize.PATH: authorize.AuthorizePage(state).answer,
            home.PATH: home.HomePage(state, addresses).answer,
        }

    def endpoint(self, request: Request) -> str:
        """Return `refresh`, `exchange`, `token` (neither), `api`, `authorize` or `page`."""
        if is_token_request(request):
            names = {"refresh_token": "refresh", "authorization_code": "exchange"}
            return names.get(request.form.get("grant_type", ""), "token")
        if request.path.startswith(api.PREFIX):
            return "api"
        return "authorize" if request.path == authorize.PATH else "page"

    def account(self, request: Request) -> str:
        """Return the app id of a token or API request; '' if it is unknown."""
        if is_token_request(request):
            form = request.form
            return self._state.account_behind(form.get("refresh_token") or form.get("code", ""))
        _, _, access_token = request.headers.get("authorization", "").partition(" ")
        return self._state.account_behind(access_token)

    def note_api_request(self, request: Request) -> ApiRequest | None:
        """Return the journal's new entry for a request of the API, and None for others."""
        if not request.path.startswith(api.PREFIX):
            return None
        query = {name: value for name, value in request.query.items() if name != "access_token"}
        entry = ApiRequest(
            self._state.clock.now(),
            request.method,
            request.path,
            query,
            request.body,
            self.account(request),
        )
        self._journal.add_api_request(entry)
        return entry

    def in_place(self, request: Request, reply: Reply) -> Reply:
        """Return what is sent instead of processing the request."""
        is_api = request.path.startswith(api.PREFIX)
        return self.api.in_place(request, reply) if is_api else reply

    def answer(self, request: Request, entry: TokenRequest | None) -> Reply:
        """Process a request. `entry`: the journal's entry for a token request."""
        if entry is not None:
            return self.token_endpoint.answer(request, entry)
        if request.path.startswith(api.PREFIX):
            return self.api.answer(request)
        if request.path == token_endpoint.PATH:
            return Reply(405, {"Allow": "POST"})
        view = self._pages.get(request.path)
        if view is None:
            message = "There is nothing at this address."
            return error_page("Not found", message, status=404)
        if request.method not in ("GET", "HEAD", "POST"):
            return Reply(405, {"Allow": "GET, HEAD, POST"})
        return view(request)


def is_token_request(request: Request) -> bool:
    return request.path == token_endpoint.PATH and request.method == "POST"
