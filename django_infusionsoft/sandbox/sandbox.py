"""The sandbox as one object: start it, plan faults, inspect it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlencode, urlsplit

from . import authorize, storage, token_endpoint
from .clock import Clock
from .exchange import Shared
from .faults import Endpoint, Fault, Gate, hold, named
from .journal import ApiRequest, Journal, TokenRequest
from .messages import FORM, Request
from .people import DEFAULT_USERS, Account, Client, KeapUser, one_user
from .plan import Plan
from .routes import Routes
from .server import AccessLog, Server
from .state import Grant, State
from .switches import Switches


class Sandbox:
    """A stand-in for Keap in a thread of this process.

        with Sandbox() as sandbox, override_settings(**sandbox.settings):
            ...

    `port` 0 chooses a free port. `accounts` (app ids or Account values) all belong to one Keap
    user; `users` defines the users with their accounts. By default, two invented users have
    three accounts. `settings` contains the first of `clients`. `state_file` keeps tokens and
    contacts across restarts, for demos. `access_log` is called with a line for each request,
    without secrets.

    The listening socket is bound immediately, so that `url` is known before `start`; OSError if
    the port is in use. All methods are thread-safe.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        accounts: Iterable[Account | str] | None = None,
        users: Iterable[KeapUser] | None = None,
        clients: Iterable[Client] = (Client(),),
        switches: Switches | None = None,
        clock: Clock | None = None,
        state_file: str | Path | None = None,
        access_log: AccessLog | None = None,
    ) -> None:
        if accounts is not None and users is not None:
            raise ValueError("Pass accounts or users, not both: users come with their accounts.")
        all_users = one_user(accounts) if accounts is not None else users or DEFAULT_USERS
        self.switches = switches or Switches()
        self.clock = clock or Clock()
        self._clients = tuple(clients)
        self._journal = Journal()
        self._plan = Plan()
        self._state = State(
            clients=self._clients, users=all_users, switches=self.switches, clock=self.clock
        )
        self._host = host
        self._addresses: dict[str, str] = {}
        self._routes = Routes(self._state, self._journal, self._addresses)
        self._server = Server(Shared(self._routes, self._plan), host, port, access_log)
        self._addresses |= {
            "Authorize": self.authorize_url,
            "Token": self.token_url,
            "API": self.api_url,
        }
        if state_file is not None:
            self._attach(Path(state_file))

    def _attach(self, state_file: Path) -> None:
        # After the port is bound: another sandbox on it may be writing to this file.
        try:
            storage.attach(self._state, state_file)
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Start to reply."""
        self._server.start()

    def stop(self) -> None:
        """Close all connections and end all threads, including held requests. Permanent."""
        self._server.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # URLs and settings

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def url(self) -> str:
        """`http://127.0.0.1:12345`, without a slash at the end."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - only translated
        host = everywhere.get(self._host, self._host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def authorize_url(self) -> str:
        return self.url + authorize.PATH

    @property
    def token_url(self) -> str:
        return self.url + token_endpoint.PATH

    @property
    def api_url(self) -> str:
        return f"{self.url}/crm/rest/"

    @property
    def settings(self) -> dict[str, Any]:
        """Django settings that point to this sandbox, for `override_settings(**…)`.

        They remove the limit of refreshes per second, which the sandbox does not have.
        """
        client = self._clients[0]
        return {
            "INFUSIONSOFT_CLIENT_ID": client.client_id,
            "INFUSIONSOFT_CLIENT_SECRET": client.client_secret,
            "INFUSIONSOFT_AUTHORIZE_URL": self.authorize_url,
            "INFUSIONSOFT_TOKEN_URL": self.token_url,
            "INFUSIONSOFT_API_URL": self.api_url,
            "INFUSIONSOFT_REFRESH_RATE": 0,
        }

    @property
    def users(self) -> list[KeapUser]:
        return list(self._state.users.values())

    @property
    def accounts(self) -> list[Account]:
        return list(self._state.accounts.values())

    # Faults

    def plan(
        self,
        fault: Fault | str,
        *,
        endpoint: Endpoint = "token",
        times: int | None = 1,
        account: str | None = None,
    ) -> None:
        """Apply `fault` to the next `times` matching requests (None: to all, until cleared).

        `fault` is a value of the faults module or text such as `"latency=2, drop-after"`.
        `endpoint` `token` means refreshes and exchanges. `account` limits it to one app id.
        Faults are applied in the order in which they were planned. A request that asks for a
        fault itself (`X-Sandbox-Fault`) does not use up a planned one.
        """
        value = named(fault) if isinstance(fault, str) else fault
        self._plan.add(value, endpoint=endpoint, times=times, account=account)

    def hold(
        self,
        where: Literal["before", "after"] = "after",
        *,
        endpoint: Endpoint = "token",
        times: int | None = 1,
        account: str | None = None,
    ) -> Gate:
        """Plan a gate: matching requests wait there, before or after they are processed."""
        gate = Gate(where)
        self.plan(hold(gate), endpoint=endpoint, times=times, account=account)
        return gate

    def clear_plan(self) -> None:
        """Remove all planned faults."""
        self._plan.clear()

    # The journal

    @property
    def token_requests(self) -> list[TokenRequest]:
        """The token endpoint's requests in the order of their processing."""
        return self._journal.requests()

    def presentations(self, refresh_token: str) -> int:
        """Return how often a refresh token has been presented, with any outcome."""
        return self._journal.presentations(refresh_token)

    @property
    def replays(self) -> int:
        """How many times a used refresh token was presented."""
        return self._journal.replays()

    @property
    def api_requests(self) -> list[ApiRequest]:
        """The API's requests in the order of their arrival."""
        return self._journal.api_requests()

    @property
    def refused(self) -> list[str]:
        """What API requests asked for and the sandbox does not play, in words."""
        return list(self._routes.api.refused)

    @property
    def live_grants(self) -> list[Grant]:
        """Grants that can still be refreshed, with their newest refresh token."""
        return self._state.live_grants()

    # Objects

    def add(self, kind: Literal["contacts", "tags"], fields: Mapping[str, Any]) -> dict[str, Any]:
        """Store an object of the first account, as by the API of v2, and return it.

        ValueError says what the API would.
        """
        return self._routes.api.add(self._first_account, kind, fields)

    @property
    def _first_account(self) -> Account:
        # Not through a list of all: benchmarks have 100,000, and add as many contacts.
        return next(iter(self._state.accounts.values()))

    @property
    def contacts(self) -> list[dict[str, Any]]:
        """The first account's contacts, as in v2."""
        with self._state.lock:
            return [
                each.as_v2() for each in self._state.records(self._first_account).contacts.all()
            ]

    # Actions of Keap's users

    def issue(self, account: str, *, client_id: str | None = None) -> dict[str, Any]:
        """Create a grant without a browser, and return the token endpoint's reply for it.

        `account` is an app id; ValueError if the sandbox has no such account.
        """
        user = self._state.owner_of(account)
        client = client_id or self._clients[0].client_id
        pair = self._state.grant(client, user.email, self._state.accounts[account])
        return self._routes.token_endpoint.success_body(pair)

    def issue_key(self, account: str) -> str:
        """Return a new personal access token of the account's user; it does not expire."""
        user = self._state.owner_of(account)
        return self._state.add_key(user.email, self._state.accounts[account])

    def revoke_key(self, key: str) -> None:
        """Revoke a key, as its user does at Keap."""
        self._state.revoke_key(key)

    def revoke(self, account: str) -> int:
        """Revoke the account's grants, as a user does in Keap's API Settings; return how many.

        Refreshes then fail, and the API replies that the access token is not approved.
        """
        self._state.owner_of(account)
        return self._state.revoke(account)

    def revoke_access_tokens(self, account: str) -> int:
        """Revoke the account's access tokens but not its grants; return how many."""
        self._state.owner_of(account)
        return self._state.revoke_access_tokens(account)

    def authorize(
        self,
        url: str,
        *,
        account: str | None = None,
        decision: Literal["allow", "deny"] = "allow",
    ) -> str:
        """Submit the sandbox's forms for an authorization URL, and return the callback URL.

        `account` is the app id to connect, by default the first. ValueError if the page would
        show an error instead of redirecting.
        """
        app_id = account or self._first_account.app_id
        user = self._state.owner_of(app_id)
        parts = urlsplit(url)
        if parts.path != authorize.PATH:
            raise ValueError(f"The sandbox's authorization URL is {self.authorize_url}.")
        form = {
            "email": user.email,
            "password": user.password,
            "account": app_id,
            "decision": decision,
        }
        headers = {"host": urlsplit(self.url).netloc, "content-type": FORM}
        target = f"{parts.path}?{parts.query}"
        request = Request("POST", target, headers, urlencode(form).encode())
        reply = self._routes.answer(request, None)
        if not reply.location:
            problem = reply.headers.get(
                "X-Sandbox-Error", "This page does not redirect back to the site."
            )
            raise ValueError(f"The sandbox's authorization page did not redirect: {problem}")
        return reply.location
