"""The requests at the token endpoint and of the API, in order."""

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

KEPT_REQUESTS = 200_000
KEPT_API_REQUESTS = 10_000


def fingerprint(secret: str) -> str:
    """Return 12 hex digits that identify a secret without revealing it; '' for ''."""
    return sha256(secret.encode()).hexdigest()[:12] if secret else ""


@dataclass
class TokenRequest:
    """One request at the token endpoint.

    `at`: epoch seconds of its arrival by the sandbox's clock. `outcome`: `issued`,
    `rotated`, `rotated_in_grace`, an error such as `invalid_refresh_token`, or
    `not_processed` if a fault replaced the endpoint. `is_replay`: the refresh token had been
    used before. `status`: as sent; 0 if no reply was sent. `is_delivered`: the whole reply was
    written to the socket.
    """

    number: int
    at: float
    grant_type: str = ""
    client_id: str = ""
    account: str = ""
    refresh_token: str = field(default="", repr=False)
    outcome: str = "not_processed"
    is_replay: bool = False
    fault: str = ""
    status: int = 0
    is_delivered: bool = False

    @property
    def fingerprint(self) -> str:
        """Identifies the presented refresh token without revealing it."""
        return fingerprint(self.refresh_token)


@dataclass
class ApiRequest:
    """One request of the API, without its access token.

    `at`: epoch seconds of its arrival by the sandbox's clock. `account`: the app id that the
    access token belongs to; '' if it is unknown. `status`: as sent; 0 if no reply was sent.
    """

    at: float
    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    account: str
    fault: str = ""
    status: int = 0


class Journal:
    """The last requests, and counts of all token requests."""

    def __init__(self) -> None:
        self._requests: deque[TokenRequest] = deque(maxlen=KEPT_REQUESTS)
        self._api_requests: deque[ApiRequest] = deque(maxlen=KEPT_API_REQUESTS)
        self._presentations: Counter[str] = Counter()
        self._count = 0
        self._replays = 0
        self._lock = threading.Lock()

    def add(self, entry: TokenRequest) -> None:
        """Number the entry, and store it."""
        with self._lock:
            self._count += 1
            entry.number = self._count
            self._requests.append(entry)
            self._replays += entry.is_replay
            if entry.refresh_token:
                self._presentations[entry.refresh_token] += 1

    def add_api_request(self, entry: ApiRequest) -> None:
        with self._lock:
            self._api_requests.append(entry)

    def api_requests(self) -> list[ApiRequest]:
        with self._lock:
            return list(self._api_requests)

    def requests(self) -> list[TokenRequest]:
        with self._lock:
            return list(self._requests)

    def presentations(self, refresh_token: str) -> int:
        with self._lock:
            return self._presentations[refresh_token]

    def replays(self) -> int:
        with self._lock:
            return self._replays
