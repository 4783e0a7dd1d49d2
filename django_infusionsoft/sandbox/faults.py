"""Faults: what can go wrong between a client and Keap.

Faults are values; `a | b` combines two. Tests plan them (`sandbox.plan(drop_after())`), and a
request can ask for them (`X-Sandbox-Fault: latency=2, drop-after`).
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from .gateway import fault_reply, not_approved, quota_exceeded, spike_arrest
from .messages import NO_STORE, Reply, html_reply, json_reply

HEADER = "x-sandbox-fault"

Endpoint = Literal["any", "token", "refresh", "exchange", "api", "authorize"]
Drop = Literal["", "before", "after", "midway"]
JsonEdit = Callable[[dict[str, Any]], object]


class Gate:
    """Holds requests until a test releases it.

    A gate at `before` holds a request that has arrived but not been processed. A gate at `after`
    holds a request that has been processed (the refresh token is used) before its reply is sent.
    Once released, a gate stays open.
    """

    def __init__(self, where: Literal["before", "after"] = "after") -> None:
        self.where = where
        self._arrived = 0
        self._processed = 0
        self._is_open = False
        self._condition = threading.Condition()

    def release(self) -> None:
        """Let held and later requests pass."""
        with self._condition:
            self._is_open = True
            self._condition.notify_all()

    def wait_until_arrived(self, count: int = 1, *, timeout: float = 10) -> None:
        """Wait until `count` requests have arrived; TimeoutError after `timeout` seconds."""
        self._wait(lambda: self._arrived >= count, f"{count} to arrive", timeout)

    def wait_until_processed(self, count: int = 1, *, timeout: float = 10) -> None:
        """Wait until `count` requests are processed; TimeoutError after `timeout` seconds."""
        self._wait(lambda: self._processed >= count, f"{count} to be processed", timeout)

    def pass_before(self) -> None:
        """Count an arrived request, and hold it if the gate is at `before`."""
        with self._condition:
            self._arrived += 1
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._is_open or self.where != "before")

    def pass_after(self) -> None:
        """Count a processed request, and hold it if the gate is at `after`."""
        with self._condition:
            self._processed += 1
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._is_open or self.where != "after")

    def _wait(self, is_reached: Callable[[], bool], what: str, timeout: float) -> None:
        with self._condition:
            if not self._condition.wait_for(is_reached, timeout):
                counts = f"{self._arrived} arrived, {self._processed} were processed"
                raise TimeoutError(f"Waited {timeout} s for {what}; {counts}.")


@dataclass(frozen=True)
class Fault:
    """A fault of a request; create it with the functions of this module.

    Times are in seconds. A `reply` replaces the normal reply; the request is then only processed
    with `is_processed`.
    """

    names: tuple[str, ...] = ()
    latency_before: float = 0.0
    latency_after: float = 0.0
    gate: Gate | None = None
    reply: Reply | None = None
    is_processed: bool = False
    edit: JsonEdit | None = field(default=None, repr=False)
    drop: Drop = ""
    is_reset: bool = False
    drip_interval: float = 0.0
    drip_bytes: int = 1

    def __or__(self, other: "Fault") -> "Fault":
        """Return both faults combined; `other` wins where both set the same field."""
        changes = {
            each.name: getattr(other, each.name)
            for each in fields(Fault)
            if getattr(other, each.name) != each.default
        }
        return replace(self, **{**changes, "names": self.names + other.names})

    def __str__(self) -> str:
        return ", ".join(self.names)


NO_FAULT = Fault()


def latency(seconds: float) -> Fault:
    """Wait, then process."""
    return Fault(("latency",), latency_before=seconds)


def latency_after(seconds: float) -> Fault:
    """Process (use up the refresh token), then wait before the reply."""
    return Fault(("latency-after",), latency_after=seconds)


def hold(gate: Gate) -> Fault:
    """Hold the request at a gate."""
    return Fault((f"hold-{gate.where}",), gate=gate)


def drop_before(*, is_reset: bool = False) -> Fault:
    """Close the connection without processing; `is_reset` closes it with a TCP reset."""
    return Fault(("drop-before",), drop="before", is_reset=is_reset)


def drop_after(*, is_reset: bool = False) -> Fault:
    """Process (use up the refresh token), then close the connection without a reply."""
    return Fault(("drop-after",), drop="after", is_reset=is_reset)


def drop_midway(*, is_reset: bool = False) -> Fault:
    """Process (use up the refresh token), then close in the middle of the reply's body."""
    return Fault(("drop-midway",), drop="midway", is_reset=is_reset)


def drip(interval: float, *, size: int = 1) -> Fault:
    """Send the body `size` bytes at a time, `interval` seconds apart."""
    return Fault(("drip",), drip_interval=interval, drip_bytes=size)


def answer(
    status: int = 200,
    body: bytes | str | dict[str, Any] = b"",
    *,
    headers: Mapping[str, str] | None = None,
    is_processed: bool = False,
    name: str = "answer",
) -> Fault:
    """Send this reply instead of the normal one; a dict is sent as JSON.

    `is_processed`: the request is processed all the same (the refresh token or code is used).
    """
    if isinstance(body, dict):
        reply = json_reply(body, status=status, headers=headers)
    else:
        content = body.encode() if isinstance(body, str) else body
        reply = Reply(status, dict(headers or {}), content)
    return Fault((name,), reply=reply, is_processed=is_processed)


def edited(edit: JsonEdit) -> Fault:
    """Change the normal JSON reply: `edit` gets its dict, and changes it or returns another."""
    return Fault(("edited",), edit=edit)


def throttled(retry_after: float | None = None) -> Fault:
    """429 of the quota (keap-facts section 6)."""
    return Fault(("throttled",), reply=_later(quota_exceeded(), retry_after))


def spike(retry_after: float | None = None) -> Fault:
    """429 of the spike arrest (keap-facts section 6)."""
    return Fault(("spike",), reply=_later(spike_arrest(), retry_after))


def access_token_revoked() -> Fault:
    """401 of a revoked access token (keap-facts section 7)."""
    return Fault(("access-token-revoked",), reply=not_approved())


def error_500() -> Fault:
    """500 with a gateway fault."""
    text = "Execution of the request failed"
    reply = fault_reply(text, "steps.servicecallout.ExecutionFailed", status=500)
    return Fault(("error-500",), reply=reply)


def error_502() -> Fault:
    """502 as an HTML page."""
    return Fault(("error-502",), reply=_error_page(502, "Bad Gateway"))


def error_503(retry_after: float | None = None) -> Fault:
    """503 with a gateway fault."""
    text = "The Service is temporarily unavailable"
    reply = fault_reply(text, "messaging.adaptors.http.flow.ServiceUnavailable", status=503)
    return Fault(("error-503",), reply=_later(reply, retry_after))


def error_596() -> Fault:
    """596, Mashery's "service not found"."""
    headers = {
        "Content-Type": "text/xml",
        "Server": "Mashery Proxy",
        "X-Mashery-Error-Code": "ERR_596_SERVICE_NOT_FOUND",
    }
    return Fault(("error-596",), reply=Reply(596, headers, b"<h1>596 Service Not Found</h1>"))


def empty(status: int = 200) -> Fault:
    """A reply without a body (keap-facts 2.3 saw a 400)."""
    return Fault(("empty",), reply=Reply(int(status)))


def html() -> Fault:
    """200 with an HTML page instead of JSON."""
    return Fault(("html",), reply=_error_page(200, "Scheduled maintenance"))


def error_200() -> Fault:
    """200 with an error in JSON."""
    content = {"error": "server_error", "error_description": "Something went wrong"}
    return Fault(("error-200",), reply=json_reply(content, headers=NO_STORE))


# Names for the header and the command line; each takes at most one number after "=".
NAMED: dict[str, Callable[..., Fault]] = {
    "access-token-revoked": access_token_revoked,
    "drip": drip,
    "drop-after": drop_after,
    "drop-before": drop_before,
    "drop-midway": drop_midway,
    "empty": empty,
    "error-200": error_200,
    "error-500": error_500,
    "error-502": error_502,
    "error-503": error_503,
    "error-596": error_596,
    "html": html,
    "latency": latency,
    "latency-after": latency_after,
    "spike": spike,
    "throttled": throttled,
}
_NEEDS_NUMBER = {"drip", "latency", "latency-after"}
_TAKES_NUMBER = _NEEDS_NUMBER | {"empty", "error-503", "spike", "throttled"}


def named(text: str) -> Fault:
    """Return faults by name, such as `latency=0.05, drop-after`.

    :raises ValueError: a name is unknown, or its number is missing or invalid.
    """
    fault = NO_FAULT
    for each in text.split(","):
        name, has_number, number = each.strip().partition("=")
        if name not in NAMED:
            raise ValueError(f"Unknown fault {name!r}. Known: {', '.join(NAMED)}.")
        if bool(has_number) and name not in _TAKES_NUMBER:
            raise ValueError(f"Fault {name} takes no number.")
        if not has_number and name in _NEEDS_NUMBER:
            raise ValueError(f"Fault {name} needs a number of seconds: {name}=0.5.")
        fault |= NAMED[name](*([_seconds(name, number)] if has_number else []))
    return fault


def _seconds(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1e6:
        raise ValueError(f"Fault {name} needs a number of 0 or more, not {text!r}.")
    return int(number) if number == int(number) else number


def _later(reply: Reply, seconds: float | None) -> Reply:
    if seconds is None:
        return reply
    return replace(reply, headers={**reply.headers, "Retry-After": f"{seconds:g}"})


def _error_page(status: int, text: str) -> Reply:
    page = f"<html><head><title>{text}</title></head><body><h1>{text}</h1></body></html>"
    return html_reply(page, status=status)
