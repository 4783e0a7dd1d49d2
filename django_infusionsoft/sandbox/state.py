"""The sandbox's state: codes, grants, token pairs, objects. One lock protects it."""

import math
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from .clock import Clock
from .people import Account, Client, KeapUser
from .records import Records
from .switches import Switches

ACCESS_TOKEN_LENGTH = 28  # keap-facts, "two gateway eras": Apigee's lengths
REFRESH_TOKEN_LENGTH = 32
CODE_LENGTH = 24

# Apigee deletes expired access tokens after some time, and then calls them invalid
# (keap-facts section 7). The time is not published; a day is a guess.
EXPIRED_ACCESS_TOKEN_KEPT_SECONDS = 86_400


def random_text(length: int) -> str:
    """Return `length` random letters and digits, safe for secrets."""
    text = ""
    while len(text) < length:  # repeats once in 5,000,000 calls; far cheaper than choice()
        text = secrets.token_urlsafe(length).replace("-", "").replace("_", "")
    return text[:length]


class RefusedError(Exception):
    """The token endpoint rejects the request; `outcome` is that of TokenRequest."""

    def __init__(self, outcome: str, *, account: str = "", is_replay: bool = False) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.account = account
        self.is_replay = is_replay


@dataclass(slots=True)
class Grant:
    """A user's consent that a client may use an account. Times are epoch seconds.

    `refresh_token` is the newest, and the only valid one (except in a grace period).
    """

    client_id: str
    email: str
    account: Account
    created_at: float
    refresh_token: str = field(default="", repr=False)
    refresh_expires_at: float = 0.0
    is_revoked: bool = False
    access_tokens: set[str] = field(default_factory=set, repr=False)

    @property
    def is_key(self) -> bool:
        """Whether this stands for a key, which nobody has consented to."""
        return self.client_id == KEY_CLIENT

    def is_live(self, now: float) -> bool:
        return not self.is_revoked and now < self.refresh_expires_at


# A key is like an access token of this client (keap-facts section 5).
KEY_CLIENT = "key"
KEY_PREFIX = "KeapAK-"


@dataclass(slots=True)
class RefreshToken:
    grant: Grant
    expires_at: float
    spent_at: float | None = None


@dataclass(slots=True)
class AccessToken:
    grant: Grant
    expires_at: float
    is_revoked: bool = False


@dataclass(slots=True)
class Code:
    client_id: str
    email: str
    account: Account
    redirect_uri: str
    expires_at: float


@dataclass(frozen=True)
class TokenPair:
    """The result of a successful request at the token endpoint; `expires_in` is in seconds."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: float
    account: Account
    is_in_grace: bool = False


class State:
    """The state in memory. Public methods are thread-safe.

    `on_change` is called after each change, with the lock held, before any reply is sent.
    """

    def __init__(
        self,
        *,
        clients: Iterable[Client],
        users: Iterable[KeapUser],
        switches: Switches,
        clock: Clock,
    ) -> None:
        self.clients = {client.client_id: client for client in clients}
        self.users = {user.email: user for user in users}
        self.accounts: dict[str, Account] = {}
        self._owners: dict[str, str] = {}
        for user in self.users.values():
            for account in user.accounts:
                self.accounts.setdefault(account.app_id, account)
                self._owners.setdefault(account.app_id, user.email)
        self.switches = switches
        self.clock = clock
        self.lock = threading.RLock()
        self.on_change: Callable[[], None] = lambda: None
        self._logins: dict[str, str] = {}
        self._codes: dict[str, Code] = {}
        self._grants: dict[str, list[Grant]] = {}
        self._refresh_tokens: dict[str, RefreshToken] = {}
        self._access_tokens: dict[str, AccessToken] = {}
        self._records: dict[str, Records] = {}

    # Users

    def log_in(self, user: KeapUser) -> str:
        """Return the value of a new login cookie for `user`."""
        with self.lock:
            cookie = random_text(REFRESH_TOKEN_LENGTH)
            self._logins[cookie] = user.email
            return cookie

    def log_out(self, cookie: str) -> None:
        with self.lock:
            self._logins.pop(cookie, None)

    def logged_in(self, cookie: str) -> KeapUser | None:
        return self.users.get(self._logins.get(cookie, ""))

    def owner_of(self, app_id: str) -> KeapUser:
        """Return the first user with the account; ValueError if there is none."""
        try:
            return self.users[self._owners[app_id]]
        except KeyError:
            known = ", ".join(list(self.accounts)[:20])
            message = f"Unknown account {app_id!r}. Known: {known}."
            raise ValueError(message) from None

    # Codes and grants

    def issue_code(
        self, client_id: str, user: KeapUser, account: Account, redirect_uri: str
    ) -> str:
        with self.lock:
            now = self.clock.now()
            self._delete_expired_codes(now)
            code = random_text(CODE_LENGTH)
            expires_at = now + self.switches.code_seconds
            self._codes[code] = Code(client_id, user.email, account, redirect_uri, expires_at)
            return code

    def exchange(self, code: str, *, client_id: str, redirect_uri: str) -> TokenPair:
        """Exchange a code. Only a successful exchange uses it up (assumed)."""
        with self.lock:
            known = self._codes.get(code)
            if known is None or known.client_id != client_id:
                raise RefusedError("invalid_code")
            if self.clock.now() >= known.expires_at:
                raise RefusedError("invalid_code", account=known.account.app_id)
            if known.redirect_uri != redirect_uri:
                raise RefusedError("invalid_redirect_uri", account=known.account.app_id)
            del self._codes[code]
            return self.grant(client_id, known.email, known.account)

    def grant(self, client_id: str, email: str, account: Account) -> TokenPair:
        """Create a grant, and return its first token pair."""
        with self.lock:
            now = self.clock.now()
            if self.switches.new_grant_revokes_older:
                self._revoke(
                    each
                    for each in self._grants.get(account.app_id, ())
                    if (each.client_id, each.email) == (client_id, email)
                )
            grant = Grant(client_id, email, account, now)
            self._grants.setdefault(account.app_id, []).append(grant)
            return self._new_pair(grant, now)

    def add_key(self, email: str, account: Account) -> str:
        """Return a new personal access token or service account key, which does not expire."""
        with self.lock:
            key = KEY_PREFIX + random_text(REFRESH_TOKEN_LENGTH)
            grant = Grant(KEY_CLIENT, email, account, self.clock.now())
            self._access_tokens[key] = AccessToken(grant, math.inf)
            return key

    def revoke_key(self, key: str) -> None:
        with self.lock:
            self._access_tokens[key].is_revoked = True

    def rotate(self, refresh_token: str, *, client_id: str) -> TokenPair:
        """Use up a refresh token, and return the next token pair (keap-facts 2.5).

        A second request with the same refresh token is rejected, even a simultaneous one.
        """
        with self.lock:
            now = self.clock.now()
            known = self._refresh_tokens.get(refresh_token)
            if known is None or known.grant.client_id != client_id:
                raise RefusedError("invalid_refresh_token")
            app_id = known.grant.account.app_id
            is_spent = known.spent_at is not None
            if known.grant.is_revoked:
                raise RefusedError("invalid_refresh_token", account=app_id, is_replay=is_spent)
            if known.spent_at is None and now >= known.expires_at:
                raise RefusedError("refresh_token_expired", account=app_id)
            if known.spent_at is not None:
                if now >= known.spent_at + self.switches.refresh_grace_seconds:
                    raise RefusedError("invalid_refresh_token", account=app_id, is_replay=True)
            else:
                known.spent_at = now
            if self.switches.refresh_revokes_access_tokens:
                self._revoke_access_tokens(known.grant)
            return self._new_pair(known.grant, now, is_in_grace=is_spent)

    def access(self, access_token: str) -> AccessToken | None:
        return self._access_tokens.get(access_token)

    def account_behind(self, secret: str) -> str:
        """Return the app id of a code, refresh token or access token; '' if unknown."""
        if found := self._refresh_tokens.get(secret) or self._access_tokens.get(secret):
            return found.grant.account.app_id
        code = self._codes.get(secret)
        return code.account.app_id if code else ""

    def live_grants(self) -> list[Grant]:
        with self.lock:
            now = self.clock.now()
            return [grant for grant in self._all_grants() if grant.is_live(now)]

    def revoke(self, app_id: str) -> int:
        """Revoke every live grant of an account; return how many there were."""
        with self.lock:
            now = self.clock.now()
            grants = self._grants.get(app_id, ())
            return self._revoke(grant for grant in grants if grant.is_live(now))

    def revoke_access_tokens(self, app_id: str) -> int:
        """Revoke the account's unexpired access tokens, not its grants; return how many."""
        with self.lock:
            count = sum(map(self._revoke_access_tokens, self._grants.get(app_id, ())))
            self.on_change()
            return count

    def _all_grants(self) -> Iterable[Grant]:
        return chain.from_iterable(self._grants.values())

    def _revoke(self, grants: Iterable[Grant]) -> int:
        revoked = [grant for grant in grants if not grant.is_revoked]
        for grant in revoked:
            grant.is_revoked = True
        self.on_change()
        return len(revoked)

    def _revoke_access_tokens(self, grant: Grant) -> int:
        now = self.clock.now()
        count = 0
        for access_token in grant.access_tokens:
            known = self._access_tokens[access_token]
            count += now < known.expires_at and not known.is_revoked
            known.is_revoked = True
        return count

    def _new_pair(self, grant: Grant, now: float, *, is_in_grace: bool = False) -> TokenPair:
        self._delete_expired_access_tokens(now)
        access_token = random_text(ACCESS_TOKEN_LENGTH)
        refresh_token = random_text(REFRESH_TOKEN_LENGTH)
        lifetime = self.switches.access_token_seconds
        self._access_tokens[access_token] = AccessToken(grant, now + lifetime)
        grant.access_tokens.add(access_token)
        grant.refresh_token = refresh_token
        grant.refresh_expires_at = now + self.switches.refresh_token_seconds
        self._refresh_tokens[refresh_token] = RefreshToken(grant, grant.refresh_expires_at)
        self.on_change()
        return TokenPair(access_token, refresh_token, lifetime, grant.account, is_in_grace)

    def _delete_expired_access_tokens(self, now: float) -> None:
        # Oldest first, so that each new token pair removes one or two old ones.
        while self._access_tokens:
            oldest, known = next(iter(self._access_tokens.items()))
            if now < known.expires_at + EXPIRED_ACCESS_TOKEN_KEPT_SECONDS:
                return
            del self._access_tokens[oldest]
            known.grant.access_tokens.discard(oldest)

    def _delete_expired_codes(self, now: float) -> None:
        for code in [each for each, known in self._codes.items() if now >= known.expires_at]:
            del self._codes[code]

    # Objects

    def records(self, account: Account) -> Records:
        """Return the account's objects; hold the lock while you use them."""
        with self.lock:
            if account.app_id not in self._records:
                self._records[account.app_id] = Records(account, self.clock.now())
            return self._records[account.app_id]

    # Restarts

    def snapshot(self) -> dict[str, Any]:
        """Return the state for a restart, as JSON values.

        Without logins, pending codes, and tokens that are no longer valid.
        """
        with self.lock:
            now = self.clock.now()
            grants = []
            for grant in self._all_grants():
                access_tokens = {
                    each: [known.expires_at, known.is_revoked]
                    for each in grant.access_tokens
                    if now < (known := self._access_tokens[each]).expires_at
                }
                if grant.is_live(now) or access_tokens:
                    grants.append(
                        {
                            "client_id": grant.client_id,
                            "email": grant.email,
                            "account": grant.account.app_id,
                            "created_at": grant.created_at,
                            "refresh_token": grant.refresh_token,
                            "refresh_expires_at": grant.refresh_expires_at,
                            "is_revoked": grant.is_revoked,
                            "access_tokens": access_tokens,
                        }
                    )
            records = {app_id: each.as_json() for app_id, each in self._records.items()}
            return {"grants": grants, "records": records}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Restore a snapshot; accounts that no longer exist are skipped."""
        with self.lock:
            for saved in snapshot["grants"]:
                account = self.accounts.get(saved["account"])
                if account is not None:
                    self._restore_grant(saved, account)
            for app_id, saved in snapshot["records"].items():
                if account := self.accounts.get(app_id):
                    self.records(account).restore(saved)

    def _restore_grant(self, saved: Mapping[str, Any], account: Account) -> None:
        grant = Grant(
            saved["client_id"],
            saved["email"],
            account,
            saved["created_at"],
            saved["refresh_token"],
            saved["refresh_expires_at"],
            saved["is_revoked"],
            set(saved["access_tokens"]),
        )
        self._grants.setdefault(account.app_id, []).append(grant)
        self._refresh_tokens[grant.refresh_token] = RefreshToken(grant, grant.refresh_expires_at)
        for access_token, (expires_at, is_revoked) in saved["access_tokens"].items():
            self._access_tokens[access_token] = AccessToken(grant, expires_at, is_revoked)
