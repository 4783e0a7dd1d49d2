"""`python -m django_infusionsoft.sandbox`, and what it keeps after a restart."""

import json
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from django_infusionsoft.sandbox import Sandbox, StateFileError

CLIENT = ("sandbox-client", "sandbox-secret")
COMMAND = (sys.executable, "-m", "django_infusionsoft.sandbox", "--port", "0")


class Process:
    """A running sandbox process; `introduction` is its output so far."""

    def __init__(self, *flags: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
        )
        self.introduction = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.introduction += line
            if line.startswith("Ctrl-C"):
                break
        found = re.search(r"http://\S+", self.introduction)
        self.url = found[0] if found else ""

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; return the exit code and the output on stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=10)
        return self.process.returncode, errors


@contextmanager
def running(*flags: str) -> Iterator[Process]:
    process = Process(*flags)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
        process.process.communicate(timeout=10)


def refresh(url: str, refresh_token: str) -> requests.Response:
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    return requests.post(f"{url}/token", data=form, auth=CLIENT, timeout=10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_process_ends_with_0_on_a_signal(number: int) -> None:
    with running("--quiet") as process:
        requests.get(process.url, timeout=10)
        assert process.end(number) == (0, "")


def test_process_prints_its_settings() -> None:
    with running() as process:
        for text in ("stand-in", "sandbox-client", "sandbox-secret", "ana@example.test", "ab123"):
            assert text in process.introduction


def test_process_logs_paths_and_no_secrets() -> None:
    with running() as process:
        refresh(process.url, "SECRETTOKEN")
        requests.get(f"{process.url}/app/oauth/authorize?state=SECRETSTATE", timeout=10)
        _, log = process.end()
    assert "POST /token 400" in log
    assert "GET /app/oauth/authorize 400" in log
    assert "SECRET" not in log


def test_quiet_process_logs_nothing() -> None:
    with running("--quiet") as process:
        refresh(process.url, "x")
        assert process.end()[1] == ""


def test_flags_set_switches_accounts_client_and_plan() -> None:
    with running(
        *("--refresh-error", "mashery"),
        *("--no-callback-scope", "--redirect-uri", "any"),
        *("--client-id", "mine", "--client-secret", "own"),
        *("--account", "zz999=Zoo", "--accounts", "2"),
        *("--plan", "api:error-502"),
    ) as process:
        assert "Zoo (zz999), Bench 0 (bn000000), Bench 1 (bn000001)" in process.introduction
        form = {"grant_type": "refresh_token", "refresh_token": "x"}
        reply = requests.post(f"{process.url}/token", data=form, auth=("mine", "own"), timeout=10)
        assert reply.json()["error"] == "invalid_grant"
        assert requests.get(f"{process.url}/crm/rest/", timeout=10).status_code == 502
        login = {
            "email": "ana@example.test",
            "password": "sandbox",
            "account": "zz999",
            "decision": "allow",
        }
        reply = requests.post(
            f"{process.url}/app/oauth/authorize?client_id=mine&redirect_uri=http://a.example/",
            data=login,
            allow_redirects=False,
            timeout=10,
        )
        assert re.fullmatch(r"http://a\.example/\?code=\w+", reply.headers["Location"])


@pytest.mark.parametrize(
    "flags", [("--refresh-error", "soap"), ("--plan", "api:explode"), ("--plan", "nowhere:html")]
)
def test_wrong_flag_is_rejected(flags: tuple[str, str]) -> None:
    result = subprocess.run(
        [*COMMAND, *flags], capture_output=True, encoding="utf-8", timeout=30, check=False
    )
    assert result.returncode == 2
    assert "error: argument" in result.stderr


def test_error_is_clear_when_the_port_is_in_use() -> None:
    with Sandbox() as sandbox:
        result = subprocess.run(
            [*COMMAND[:-1], str(sandbox.port)],
            capture_output=True,
            encoding="utf-8",
            timeout=30,
            check=False,
        )
    assert result.returncode == 2
    assert f"Port {sandbox.port} on 127.0.0.1 is in use" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("flags", [("--state-file", "/nowhere/state"), ("--port", "99999")])
def test_error_is_clear_when_the_sandbox_cannot_start(flags: tuple[str, str]) -> None:
    result = subprocess.run(
        [*COMMAND, *flags], capture_output=True, encoding="utf-8", timeout=30, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("The sandbox cannot start. ")
    assert "Traceback" not in result.stderr


def test_warning_is_printed_when_other_machines_can_connect() -> None:
    with running("--quiet", "--host", "0.0.0.0") as process:  # noqa: S104 - this is the test
        assert "http://127.0.0.1:" in process.introduction
        assert "Warning" in process.end()[1]


def test_tokens_are_restored_after_the_process_was_killed(tmp_path: Path) -> None:
    state_file = tmp_path / "state.json"
    with Sandbox(state_file=state_file) as sandbox:
        token = sandbox.issue("ab123")["refresh_token"]
    with running("--state-file", str(state_file)) as process:
        token = refresh(process.url, token).json()["refresh_token"]
        process.end(signal.SIGKILL)
    with running("--state-file", str(state_file)) as process:
        assert refresh(process.url, token).status_code == 200


def test_used_refresh_token_stays_used_after_a_restart(tmp_path: Path) -> None:
    state_file = tmp_path / "state.json"
    with Sandbox(state_file=state_file) as sandbox:
        token = sandbox.issue("ab123")["refresh_token"]
        refresh(sandbox.url, token)
    with Sandbox(state_file=state_file) as sandbox:
        assert refresh(sandbox.url, token).status_code == 400


def test_grant_stays_revoked_after_a_restart(tmp_path: Path) -> None:
    state_file = tmp_path / "state.json"
    with Sandbox(state_file=state_file) as sandbox:
        access_token = sandbox.issue("ab123")["access_token"]
        sandbox.revoke("ab123")
    with Sandbox(state_file=state_file) as sandbox:
        headers = {"Authorization": f"Bearer {access_token}"}
        reply = requests.get(f"{sandbox.api_url}v2/contacts", headers=headers, timeout=10)
        assert reply.json()["fault"]["faultstring"] == "Access Token not approved"


def test_contacts_and_access_tokens_are_kept_after_a_restart(tmp_path: Path) -> None:
    state_file = tmp_path / "state.json"
    contact = {"given_name": "Zoe", "email_addresses": [{"email": "zoe@ex.test"}]}
    with Sandbox(state_file=state_file) as sandbox:
        headers = {"Authorization": f"Bearer {sandbox.issue('ab123')['access_token']}"}
        requests.post(f"{sandbox.api_url}v2/contacts", json=contact, headers=headers, timeout=10)
    with Sandbox(state_file=state_file) as sandbox:
        reply = requests.get(f"{sandbox.api_url}v2/contacts", headers=headers, timeout=10)
        names = [each["given_name"] for each in reply.json()["contacts"]]
        assert names == ["Bea", "Otto", "Zoe"]


def test_state_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    state_file = tmp_path / "state.json"
    with Sandbox(state_file=state_file) as sandbox:
        sandbox.issue("ab123")
    assert stat.S_IMODE(state_file.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]


def test_state_file_has_no_expired_tokens(tmp_path: Path) -> None:
    state_file = tmp_path / "state.json"
    with Sandbox(state_file=state_file) as sandbox:
        sandbox.issue("ab123")
        sandbox.clock.advance(46 * 86400)
        sandbox.issue("cd456")
    grants = json.loads(state_file.read_text(encoding="utf-8"))["grants"]
    assert [each["account"] for each in grants] == ["cd456"]


def test_state_file_is_unchanged_when_a_second_process_uses_the_same_port(tmp_path: Path) -> None:
    state_file = tmp_path / "state.json"
    with Sandbox() as sandbox, pytest.raises(OSError, match="is in use"):
        Sandbox(port=sandbox.port, state_file=state_file)
    assert not state_file.exists()


def test_grants_of_removed_accounts_are_ignored(tmp_path: Path) -> None:
    state_file = tmp_path / "state.json"
    with Sandbox(state_file=state_file) as sandbox:
        sandbox.issue("ab123")
    with Sandbox(state_file=state_file, accounts=["zz999"]) as sandbox:
        assert sandbox.live_grants == []


@pytest.mark.parametrize(
    "content", ["", "[]", '{"version": 99}', "{}", '{"version": 1, "grants": [{}]}']
)
def test_error_is_clear_when_the_file_is_not_a_state_file(tmp_path: Path, content: str) -> None:
    state_file = tmp_path / "state.json"
    state_file.write_text(content, encoding="utf-8")
    with pytest.raises(StateFileError, match="is not a state file of this sandbox"):
        Sandbox(state_file=state_file)
    assert state_file.read_text(encoding="utf-8") == content
