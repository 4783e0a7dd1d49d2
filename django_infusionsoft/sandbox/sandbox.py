"""The sandbox as one object: start it, script it, look inside."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlencode, urlsplit

from . import authorize, storage, token_endpoint
from .clock import Clock
from .faults import Endpoint, Fault, Gate, hold, named
from .journal import Journal, TokenRequest
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

    `port` 0 takes a free one. `accounts` gives one Keap user all of these accounts (app ids
    or Account values), `users` says everything; without either, two invented users have
    three accounts. `clients`: the first one is in `settings`. `state_file` keeps tokens and
    contacts over restarts, for demos. `access_log` gets a line per request, without secrets.

    The listening socket is bound at once, so that `url` is known before `start`; OSError
    when the port is taken. Every method is safe from any thread.
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
            raise ValueError("Give accounts or users, not both: users bring their accounts.")
        everybody = one_user(accounts) if accounts is not None else users or DEFAULT_USERS
        self.switches = switches or Switches()
        self.clock = clock or Clock()
        self._clients = tuple(clients)
        self._journal = Journal()
        self._plan = Plan()
        self._state = State(
            clients=self._clients, users=everybody, switches=self.switches, clock=self.clock
        )
        self._host = host
        self._addresses: dict[str, str] = {}
        self._routes = Routes(self._state, self._journal, self._addresses)
        self._server = Server(self._routes, self._plan, host, port, access_log)
        self._addresses |= {
            "Authorize": self.authorize_url,
            "Token": self.token_url,
            "API": self.api_url,
        }
        if state_file is not None:
            self._attach(Path(state_file))

    def _attach(self, state_file: Path) -> None:
        # After the port is ours: whoever has it may be writing to this file.
        try:
            storage.attach(self._state, state_file)
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self) -> None:
        """Close all connections and end all threads, held replies too. For good."""
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

    # Where it is

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
        """Django settings that point at this sandbox, for `override_settings(**…)`.

        They lift the ceiling of refreshes per second: here nobody cuts off who asks quickly.
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
        """Let the next `times` fitting requests meet `fault` (None: all, until cleared).

        `fault` is a value of the faults module or text such as `"latency=2, drop-after"`.
        `endpoint` `token` means refreshes and exchanges. `account` narrows it to one app id.
        Lines are taken in the order in which they were planned. A request that asks for a
        fault itself (`X-Sandbox-Fault`) leaves the plan alone.
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
        """Plan a gate: fitting requests wait there, before or after their processing."""
        gate = Gate(where)
        self.plan(hold(gate), endpoint=endpoint, times=times, account=account)
        return gate

    def clear_plan(self) -> None:
        """Forget what is planned and not yet met."""
        self._plan.clear()

    # What happened

    @property
    def token_requests(self) -> list[TokenRequest]:
        """The token endpoint's requests in the order of their processing."""
        return self._journal.requests()

    def presentations(self, refresh_token: str) -> int:
        """Return how often a refresh token has arrived here, whatever came of it."""
        return self._journal.presentations(refresh_token)

    @property
    def replays(self) -> int:
        """How many times a refresh token was presented that had already been spent."""
        return self._journal.replays()

    @property
    def live_grants(self) -> list[Grant]:
        """Grants that can still be refreshed, with their newest refresh token."""
        return self._state.live_grants()

    # What a person does

    def issue(self, account: str, *, client_id: str | None = None) -> dict[str, Any]:
        """Make a grant without the browser and return the token endpoint's reply for it.

        `account` is an app id; ValueError when the sandbox has no such account.
        """
        user = self._state.owner_of(account)
        client = client_id or self._clients[0].client_id
        pair = self._state.grant(client, user.email, self._state.accounts[account])
        return self._routes.token_endpoint.success_body(pair)

    def revoke(self, account: str) -> int:
        """End the account's grants, as a person does in Keap's API Settings; return how many.

        Refreshes then fail, and the API says that the access token is not approved.
        """
        self._state.owner_of(account)
        return self._state.revoke(account)

    def revoke_access_tokens(self, account: str) -> int:
        """End the account's access tokens but not its grants; return how many."""
        self._state.owner_of(account)
        return self._state.revoke_access_tokens(account)

    def authorize(
        self,
        url: str,
        *,
        account: str | None = None,
        decision: Literal["allow", "deny"] = "allow",
    ) -> str:
        """Walk the sandbox's pages for an authorization URL; return the callback URL.

        `account` is the app id to connect, the first one by default. ValueError when the
        page would show an error in place of leading back.
        """
        app_id = account or self.accounts[0].app_id
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
            problem = reply.headers.get("X-Sandbox-Error", "Nothing leads back from here.")
            raise ValueError(f"The sandbox's authorize page stays: {problem}")
        return reply.location
