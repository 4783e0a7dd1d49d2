"""The parts of the demo: its processes end with it, its data is kept, and errors are clear."""

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from example_project.demo import ports, tethered
from example_project.demo.__main__ import main
from example_project.demo.errors import DemoError
from example_project.demo.folder import Folder
from example_project.demo.processes import Processes
from example_project.demo.tail import Tail

PARENT_OF_A_SLEEPER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""

STARTS_A_TETHERED_SLEEPER = """
import os, subprocess, sys, time
sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
tether = [sys.executable, sys.argv[1], str(os.getpid())]
subprocess.Popen([*tether, sys.executable, "-c", sleeper])
time.sleep(600)
"""
TELLS_ITS_END = """
import signal, sys, time
def end(*_):
    with open(sys.argv[1], "a") as file:
        file.write(sys.argv[2] + " ")
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # a zombie is not alive
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_until(has_happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not has_happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def first_pid(log: Path) -> int:
    wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
    return int(log.read_text().split()[0])


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path, {"PATH": os.environ["PATH"]}) as processes:
        yield processes


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "demo")


def test_children_of_a_process_are_stopped_too(tmp_path: Path) -> None:
    with Processes(tmp_path, {}) as processes:
        processes.start("family", "-c", PARENT_OF_A_SLEEPER)
        child = first_pid(tmp_path / "family.log")
    wait_until(lambda: not is_alive(child))


def test_process_started_last_is_stopped_first(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    with Processes(tmp_path, {}) as processes:
        for name in ("first", "second"):
            processes.start(name, "-c", TELLS_ITS_END, str(ended), name)
            wait_until((tmp_path / f"{name}.log").read_text)
    assert ended.read_text() == "second first "


def test_error_has_the_name_and_the_last_output_when_a_process_exits(processes: Processes) -> None:
    processes.start("worker", "-c", "raise SystemExit('no broker')")
    with pytest.raises(DemoError, match=r"The worker has ended \(exit code 1\)") as caught:
        wait_until(processes.raise_if_one_ended)
    assert "    no broker" in str(caught.value)


def test_waiting_ends_when_any_process_exits(processes: Processes) -> None:
    processes.start("sandbox", "-c", "")
    site = processes.start("site", "-c", "import time; time.sleep(600)")
    with pytest.raises(DemoError, match="The sandbox has ended"):
        processes.wait_until(lambda: False, site)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux signals the end of the parent to a child"
)
def test_process_exits_when_the_demo_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "-c", STARTS_A_TETHERED_SLEEPER, tethered.__file__], stdout=output
        )
    child = first_pid(log)
    demo.kill()
    demo.wait()
    wait_until(lambda: not is_alive(child))


def test_free_port_is_used() -> None:
    port = ports.any_free()
    assert ports.choose(port, "site") == port


def test_used_port_is_reported_and_another_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.create_server((ports.LOOPBACK, 0))) as server:
        taken: int = server.getsockname()[1]
        chosen = ports.choose(taken, "site")
    assert chosen != taken
    assert capsys.readouterr().out == f"Port {taken} is in use, so the site uses port {chosen}.\n"


def test_second_start_uses_the_secrets_of_the_first(folder: Folder) -> None:
    assert folder.secrets() == Folder(folder.path).secrets()


def test_secrets_are_readable_by_their_owner_only(folder: Folder) -> None:
    folder.secrets()
    file = folder.path / "secrets.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


@pytest.mark.parametrize("content", ["{", "[]", '{"unknown": 1}'])
def test_secrets_are_not_replaced_when_they_cannot_be_read(folder: Folder, content: str) -> None:
    file = folder.path / "secrets.json"
    file.write_text(content)
    with pytest.raises(DemoError, match=r"Delete the folder .* to start again"):
        folder.secrets()
    assert file.read_text() == content


def test_error_names_the_address_of_the_first_demo_when_a_second_starts(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    with folder.only_user() as note:
        print("http://127.0.0.1:8000/admin/", file=note, flush=True)
        assert main(["--folder", str(folder.path)]) == 1
    assert "A demo is running already: http://127.0.0.1:8000/admin/." in capsys.readouterr().err


def test_folder_is_released_when_the_demo_ends(folder: Folder) -> None:
    for _ in range(2):
        with folder.only_user():
            pass


def test_tail_shows_only_what_the_app_logs(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("2026-01-01 10:00:00,1 INFO django_infusionsoft: refreshed account=old\n")
    with closing(Tail(log)) as tail:
        assert list(tail.new_lines()) == ["10:00:00 refreshed account=old"]
        with log.open("a") as file:
            file.write("[2026-01-01 10:00:01,1: INFO/Beat] Scheduler: Sending due task\n")
            file.write("2026-01-01 10:00:01,1 INFO django_infusionsoft: run_finished ok=1\n")
            file.write("[2026-01-01 10:00:01,5: ERROR/MainProcess] Task x raised unexpected: y\n")
            file.write("2026-01-01 10:00:02,1 WARNING django_infusionsoft: refresh")
        assert list(tail.new_lines()) == ["10:00:01 Task x raised unexpected: y"]
        with log.open("a") as file:
            file.write("_failed account=ab123\n")
        assert list(tail.new_lines()) == ["10:00:02 refresh_failed account=ab123"]
