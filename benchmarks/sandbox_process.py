"""The sandbox in a separate process, so that its work is not measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from django_infusionsoft.sandbox import Sandbox, Switches, faults
from django_infusionsoft.sandbox.faults import Endpoint

STOP_SECONDS: Final = 30.0


class Grant(NamedTuple):
    """The first token pair of an account."""

    account: str
    access_token: str
    refresh_token: str


class SandboxProcess:
    """Starts the process and sends it commands; it ends with its parent process."""

    def __init__(self, accounts: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sandbox_process", str(accounts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.settings: dict[str, str] = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None  # noqa: S101  # it is a pipe
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def issue(self, number: int) -> list[Grant]:
        """Return new grants of the first ``number`` accounts."""
        return [Grant(*each) for each in self._call("issue", number)]

    def set_latency(self, seconds: float) -> None:
        """Delay the reply to each refresh from now on."""
        self._call("set_latency", seconds)

    def set_api_latency(self, seconds: float) -> None:
        """Delay the answer to each call of the API from now on."""
        self._call("set_api_latency", seconds)

    def add_contacts(self, number: int) -> None:
        """Add contacts to the first account until it has this number."""
        self._call("add_contacts", number)

    @property
    def cpu_seconds(self) -> float:
        """User and system time of the process since its start."""
        return float(self._call("cpu_seconds", None))

    def _call(self, command: str, value: object) -> Any:
        assert self._process.stdin is not None  # noqa: S101  # it is a pipe
        print(json.dumps([command, value]), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("The sandbox's process has ended: see its output above.")
        return json.loads(line)


class _CommandHandler:
    """Handles the commands in the sandbox's process; results are JSON values."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def handle(self, command: str, value: Any) -> Any:
        if command == "issue":
            return self._issue(value)
        if command == "set_latency":
            return self._set_latency(value, "refresh")
        if command == "set_api_latency":
            return self._set_latency(value, "api")
        if command == "add_contacts":
            return self._add_contacts(value)
        return sum(os.times()[:2])

    def _issue(self, number: int) -> list[Grant]:
        names = [account.app_id for account in self._sandbox.accounts[:number]]
        replies = ((name, self._sandbox.issue(name)) for name in names)
        return [
            Grant(name, reply["access_token"], reply["refresh_token"]) for name, reply in replies
        ]

    def _add_contacts(self, number: int) -> None:
        for each in range(len(self._sandbox.contacts), number):
            email = {"field": "EMAIL1", "email": f"contact{each}@ex.test"}
            self._sandbox.add("contacts", {"given_name": "Bea", "email_addresses": [email]})

    def _set_latency(self, seconds: float, endpoint: Endpoint) -> None:
        self._sandbox.clear_plan()
        if seconds:
            self._sandbox.plan(faults.latency(seconds), endpoint=endpoint, times=None)


def main(accounts: int) -> None:
    names = [f"bn{number:07}" for number in range(accounts)]
    with Sandbox(accounts=names, switches=Switches(quota_enforced=False)) as sandbox:
        print(json.dumps(sandbox.settings), flush=True)
        handler = _CommandHandler(sandbox)
        for line in sys.stdin:
            print(json.dumps(handler.handle(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
