"""``python -m example_project.demo``: run the sandbox, the example site and a worker."""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from . import ports, site
from .errors import DemoError
from .folder import Folder
from .processes import ROOT
from .running import Demo, Plan, running
from .tail import Tail
from .tethered import tether
from .walk import KEAP_USER, Walk

SITE_PORT: Final = 8000
SANDBOX_PORT: Final = 8765
STOP_SIGNALS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
CHECK_SECONDS: Final = 0.3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit code."""
    options = _parser().parse_args(arguments)
    os.umask(0o077)  # the data contains secrets
    if "TOX_ENV_NAME" in os.environ:  # if tox is killed, its commands keep running
        tether(os.getppid())
    try:
        with _interrupted_by_signals():
            return _check() if options.check else _show(Folder(options.folder))
    except DemoError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped, with everything that was started.")
        return 1 if options.check else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m example_project.demo",
        description="Runs the example site, a stand-in for Keap and a Celery worker. "
        "Needs no account at Keap, no network and no server.",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="run all steps automatically on separate data, and exit",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / ".demo",
        help="folder for the data, which the next start uses again (default %(default)s)",
    )
    return parser


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on the first of the stop signals, and ignore the others."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(folder: Folder) -> int:
    with folder.only_user() as note:
        print("Starting; the first time takes some seconds.")
        plan = Plan(
            site_port=ports.choose(SITE_PORT, "site"),
            sandbox_port=ports.choose(SANDBOX_PORT, "sandbox"),
            access_token_seconds=90,
            beat_seconds=5,
        )
        with running(folder, plan) as demo:
            print(plan.accounts_url, file=note, flush=True)
            _introduce(demo, folder)
            try:
                _report(demo)
            except KeyboardInterrupt:
                print("\nStopping. The worker takes some seconds.")
                raise
    return 0


def _introduce(demo: Demo, folder: Folder) -> None:
    print(f"""
1. Open     {demo.plan.accounts_url}
   Log in   {site.ADMIN} / {demo.admin_password}
2. Press    Connect a Keap account, and on the next page: Continue to Keap
   Sign in  {KEAP_USER.email} / {KEAP_USER.password}
   This is the sandbox, which simulates Keap: {demo.plan.sandbox_url}
3. Choose an account and allow access. Back in the admin, it is connected.

Its access tokens are valid for {demo.plan.access_token_seconds:.0f} seconds. Wait, and watch the \
worker refresh
them below, and the expiry and the history change in the admin. Revoke the grant on the
sandbox's page, and see what the admin shows after the next refresh.

Data and logs are in {folder.path}. Delete it to start again.
Ctrl-C stops everything. If tox then reports an error, it is only the Ctrl-C.
""")


def _report(demo: Demo) -> None:
    """Print the app's log lines, until a signal arrives or a process ends."""
    with closing(Tail(demo.site.log)) as site_log, closing(Tail(demo.worker.log)) as worker_log:
        while True:
            for line in site_log.new_lines():
                print(f"site    {line}")
            for line in worker_log.new_lines():
                print(f"worker  {line}")
            demo.processes.raise_if_one_ended()
            time.sleep(CHECK_SECONDS)


def _check() -> int:
    with tempfile.TemporaryDirectory(prefix="django-infusionsoft-") as name:
        plan = Plan(
            site_port=ports.any_free(),
            sandbox_port=ports.any_free(),
            access_token_seconds=10,
            beat_seconds=1,
        )
        print("Starting the sandbox, the site and its worker.")
        with running(Folder(Path(name)), plan) as demo:
            _walk(demo)
    print("All steps succeeded, and everything is stopped.")
    return 0


def _walk(demo: Demo) -> None:
    steps = Walk(demo).steps
    for number, (title, step) in enumerate(steps, start=1):
        try:
            result = step()
        except Exception as error:
            raise DemoError(f"Step {number} of {len(steps)} failed, {title}: {error}") from error
        print(f"{number:2}. {title}: {result}")


if __name__ == "__main__":
    sys.exit(main())
