"""The demo's steps, run automatically. A step that fails raises an exception."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import requests

from django_infusionsoft.sandbox.people import DEFAULT_USERS

from . import site
from .errors import DemoError
from .running import Demo
from .visitor import TIMEOUT_SECONDS, PageError, Visitor

if TYPE_CHECKING:
    from django_infusionsoft.models import Credential

KEAP_USER = DEFAULT_USERS[0]
ACCOUNT = KEAP_USER.accounts[0]
POLL_SECONDS = 0.2
MAX_WAIT_SECONDS = 60

Step = tuple[str, Callable[[], str]]


class Walk:
    """The steps from the admin's login page to a refreshed credential."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._plan = demo.plan
        self._visitor = Visitor()
        self._access_token = ""

    @property
    def steps(self) -> list[Step]:
        """Each step's title, and the function that runs it and returns its result."""
        return [
            ("log into the admin", self._log_in),
            ("press 'Connect a Keap account'", self._start),
            ("sign in at the sandbox", self._sign_in),
            ("choose an account there", self._choose_account),
            ("allow, and come back to the admin", self._allow),
            ("find the account connected there", self._find_account),
            ("call the API", self._call_api),
            ("watch the worker refresh it", self._watch_refresh),
            ("wait until the first access token expires", self._outlive_access_token),
            ("call the API again", self._call_api),
            ("read the history in the admin", self._read_history),
        ]

    def _log_in(self) -> str:
        self._visitor.open(self._plan.accounts_url)
        password = self._demo.admin_password
        self._visitor.submit("/admin/login/", username=site.ADMIN, password=password)
        return self._arrived_at(self._plan.accounts_url)

    def _start(self) -> str:
        self._visitor.follow("Connect a Keap account")
        self._visitor.submit("/infusionsoft/authorize/")
        self._visitor.follow("Continue to Keap")
        return self._arrived_at(self._plan.sandbox_url)

    def _sign_in(self) -> str:
        login = {"email": KEAP_USER.email, "password": KEAP_USER.password}
        self._visitor.submit(self._plan.sandbox_url, **login)
        return KEAP_USER.email

    def _choose_account(self) -> str:
        self._visitor.submit(self._plan.sandbox_url, account=ACCOUNT.app_id)
        return f"{ACCOUNT.title}, {ACCOUNT.app_id}"

    def _allow(self) -> str:
        self._visitor.submit(self._plan.sandbox_url, decision="allow")
        return self._arrived_at(self._plan.accounts_url)

    def _find_account(self) -> str:
        self._require_text(ACCOUNT.app_id, ACCOUNT.title)
        return f"expires at {self._credential.expires_at:%H:%M:%S} UTC"

    def _call_api(self) -> str:
        return f"{len(site.contacts(ACCOUNT.app_id))} contacts"

    def _watch_refresh(self) -> str:
        before = self._credential
        self._access_token = before.access_token
        self._wait_until(lambda: self._credential.generation > before.generation)
        now = self._credential
        return f"generation {now.generation}, issued at {now.issued_at:%H:%M:%S} UTC"

    def _outlive_access_token(self) -> str:
        self._wait_until(self._access_token_is_rejected)
        return "rejected"

    def _access_token_is_rejected(self) -> bool:
        self._demo.processes.raise_if_one_ended()
        url = f"{self._plan.sandbox_url}/crm/rest/v2/contacts"
        headers = {"Authorization": f"Bearer {self._access_token}"}
        return requests.get(url, headers=headers, timeout=TIMEOUT_SECONDS).status_code == 401

    def _read_history(self) -> str:
        self._visitor.open(self._plan.accounts_url)
        self._visitor.follow(ACCOUNT.app_id)
        self._require_text("refreshed")
        return "connected, refreshed"

    @property
    def _credential(self) -> "Credential":
        return site.credential(ACCOUNT.app_id)

    def _arrived_at(self, start_of_url: str) -> str:
        if not self._visitor.url.startswith(start_of_url):
            raise PageError(f"arrived at {self._visitor.url}, not at {start_of_url}")
        return self._visitor.url.partition("?")[0]  # the query may contain a code

    def _require_text(self, *words: str) -> None:
        for word in words:
            if word not in self._visitor.text:
                raise PageError(f"{self._visitor.url} does not contain {word}")

    def _wait_until(self, has_happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + MAX_WAIT_SECONDS
        while not has_happened():
            self._demo.processes.raise_if_one_ended()
            if time.monotonic() > deadline:
                raise DemoError(
                    f"nothing within {MAX_WAIT_SECONDS} s. {self._demo.worker.log_end()}"
                )
            time.sleep(POLL_SECONDS)
