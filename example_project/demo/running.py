"""A running demo: the sandbox, the site and its worker, each as a process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import requests

from . import ports, site
from .errors import DemoError
from .folder import Folder
from .processes import Process, Processes

ANSWER_SECONDS = 5


@dataclass(frozen=True)
class Plan:
    """The demo's ports and intervals. Keap's own access tokens are valid for a day."""

    site_port: int
    sandbox_port: int
    access_token_seconds: float
    beat_seconds: float

    @property
    def site_url(self) -> str:
        return f"http://{ports.LOOPBACK}:{self.site_port}"

    @property
    def sandbox_url(self) -> str:
        return f"http://{ports.LOOPBACK}:{self.sandbox_port}"

    @property
    def accounts_url(self) -> str:
        """The admin's page where Keap accounts are connected."""
        return f"{self.site_url}/admin/django_infusionsoft/credential/"


@dataclass(frozen=True)
class Demo:
    """A running demo."""

    plan: Plan
    admin_password: str
    processes: Processes
    site: Process
    worker: Process


@contextmanager
def running(folder: Folder, plan: Plan) -> Iterator[Demo]:
    """Start all processes; stop them all on exit, even after an error.

    :raises DemoError: a process does not start.
    """
    if not find_spec("celery"):
        raise DemoError("The demo needs Celery: python -m pip install celery")
    secrets = folder.secrets()
    folder.forget_schedule()
    environment = site.environment(
        folder, secrets, sandbox_url=plan.sandbox_url, beat_seconds=plan.beat_seconds
    )
    site.enter(environment)
    site.prepare(secrets.admin_password)
    with Processes(folder.logs, environment) as processes:
        sandbox = processes.start("sandbox", *_sandbox_command(folder, plan))
        processes.wait_until(lambda: _answers(plan.sandbox_url), sandbox)
        site_process = processes.start("site", *_site_command(plan))
        worker = processes.start("worker", *_worker_command(folder))
        processes.wait_until(lambda: _answers(f"{plan.site_url}/admin/login/"), site_process)
        processes.wait_until(lambda: " ready." in worker.log.read_text(), worker)
        yield Demo(plan, secrets.admin_password, processes, site_process, worker)


def _sandbox_command(folder: Folder, plan: Plan) -> list[str]:
    return [
        *("-m", "django_infusionsoft.sandbox"),
        *("--port", str(plan.sandbox_port)),
        *("--access-token-seconds", str(plan.access_token_seconds)),
        *("--state-file", str(folder.sandbox_state)),
    ]


def _site_command(plan: Plan) -> list[str]:
    return ["manage.py", "runserver", "--noreload", f"{ports.LOOPBACK}:{plan.site_port}"]


def _worker_command(folder: Folder) -> list[str]:
    return [
        *("-m", "celery", "--app", "example_project", "worker"),
        *("--beat", "--schedule", str(folder.schedule)),
        *("--pool", "solo"),  # enough: one task sends many refreshes concurrently
        *("--loglevel", "info"),
    ]


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=ANSWER_SECONDS).ok
    except requests.RequestException:
        return False
