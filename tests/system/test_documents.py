"""README and docs: every snippet and every command works in a new project.

A block of Python that names a file in its first line is appended to that file of a new project;
the others run in its shell. Commands run in its folder.
"""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from django_infusionsoft.conf import SETTINGS
from django_infusionsoft.sandbox import Sandbox
from tests.processes import ROOT

# The tests share one project, so one test process runs all of them.
pytestmark = pytest.mark.xdist_group("documents")

DOCUMENTS = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]
KEY = "Nq7uN1nYc0sPZ3bX9hKfTz2LwAe5VdRjG8mQyIoC4tE="

CONNECT = """
from datetime import timedelta
from django.utils import timezone
from django_infusionsoft.models import Credential
Credential.objects.import_tokens(
    account="ab123", access_token={access_token!r}, refresh_token={refresh_token!r},
    expires_at=timezone.now() + timedelta(days=1),
)
"""


def blocks(document: Path, language: str) -> list[str]:
    pattern = rf"^\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)"
    found = re.findall(pattern, document.read_text(encoding="utf-8"), re.MULTILINE)
    texts = [textwrap.dedent(block).strip() + "\n" for block in found]
    return [text for text in texts if find_spec("celery") or not is_for_celery(text)]


def is_for_celery(block: str) -> bool:
    """Whether the block needs Celery."""
    return bool(re.search(r"^from \.?celery import", block, re.MULTILINE))


def file_of(block: str) -> str:
    """Return the file that a block of Python names, or an empty string."""
    first = block.splitlines()[0]
    return first.removeprefix("# ") if re.fullmatch(r"# [\w/]+\.py", first) else ""


DUE = """
from django.utils import timezone
from django_infusionsoft.models import Credential
Credential.objects.update(refresh_at=timezone.now())
"""
GENERATION = """
from django_infusionsoft.models import Credential
print(Credential.objects.get().generation)
"""


class Project:
    """A new Django project, as ``startproject`` creates it, which uses the sandbox."""

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "mysite.settings",
            "INFUSIONSOFT_CLIENT_ID": sandbox.settings["INFUSIONSOFT_CLIENT_ID"],
            "INFUSIONSOFT_CLIENT_SECRET": sandbox.settings["INFUSIONSOFT_CLIENT_SECRET"],
            "INFUSIONSOFT_ENCRYPTION_KEYS": KEY,
            "PYTHONPATH": str(ROOT),
        }
        self.run(sys.executable, "-m", "django", "startproject", "mysite", ".", settings=False)

    def run(self, *command: str, text: str = "", settings: bool = True) -> str:
        environment = dict(self.environment)
        if not settings:
            del environment["DJANGO_SETTINGS_MODULE"]
        process = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    @contextmanager
    def shells(self) -> Iterator[None]:
        """Let ``shell()`` run code; the project's files must not change in this block."""
        with subprocess.Popen(
            [sys.executable, "-m", "tests.system.shell_process"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as self.shell_process:
            yield

    def shell(self, code: str) -> str:
        assert self.shell_process.stdin
        assert self.shell_process.stdout
        output, errors = self.folder / "output", self.folder / "errors"
        self.shell_process.stdin.write(json.dumps([code, str(output), str(errors)]) + "\n")
        self.shell_process.stdin.flush()
        exit_code = self.shell_process.stdout.readline()
        assert exit_code == "0\n", output.read_text() + errors.read_text()
        return output.read_text()

    def append(self, file: str, code: str) -> None:
        path = self.folder / file
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write("\n" + code)


@pytest.fixture(scope="module")
def shared_sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def project(
    shared_sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """Create a project with everything that the documents add to files."""
    project = Project(tmp_path_factory.mktemp("project"), shared_sandbox)
    for document in DOCUMENTS:
        for block in blocks(document, "python"):
            if file := file_of(block):
                project.append(file, block)
    addresses = [f"{name} = {value!r}\n" for name, value in shared_sandbox.settings.items()]
    project.append("mysite/settings.py", "".join(addresses))
    project.run(sys.executable, "manage.py", "migrate", "-v", "0")
    with project.shells():
        project.shell(CONNECT.format_map(shared_sandbox.issue("ab123")))
        # As cron does every minute.
        project.run(sys.executable, "manage.py", "infusionsoft_refresh")
        yield project


def python_blocks() -> list[tuple[str, str]]:
    return [(path.name, block) for path in DOCUMENTS for block in blocks(path, "python")]


def commands() -> list[str]:
    lines = [
        line
        for path in DOCUMENTS
        for block in blocks(path, "console")
        for line in block.splitlines()
    ]
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ") for line in lines]


@pytest.mark.parametrize(
    "block",
    [block for _, block in python_blocks() if not file_of(block)],
    ids=[f"{name}-{n}" for n, (name, block) in enumerate(python_blocks()) if not file_of(block)],
)
def test_snippet_runs_in_the_shell_of_a_new_project(project: Project, block: str) -> None:
    project.shell(block)


@pytest.mark.parametrize(
    "file", sorted({file_of(block) for _, block in python_blocks() if file_of(block)})
)
def test_file_with_snippets_can_be_imported_in_a_new_project(project: Project, file: str) -> None:
    module = file.removesuffix(".py").replace("/", ".")
    project.shell(f"import importlib; importlib.import_module({module!r})")


def test_new_project_passes_the_checks(project: Project) -> None:
    project.run(sys.executable, "manage.py", "check", "--fail-level", "WARNING")


def test_first_call_shows_the_contacts_of_the_account(project: Project) -> None:
    (first_call,) = [block for _, block in python_blocks() if "contacts = credential." in block]
    output = project.shell(first_call + 'print([c["given_name"] for c in contacts])')
    assert "['Bea', 'Otto'" in output  # other snippets may have added contacts


def test_metrics_count_the_signals(project: Project) -> None:
    output = project.shell(
        "import mysite.metrics, prometheus_client\n"
        "from django_infusionsoft.models import Credential\n"
        "Credential.objects.get().refresh()\n"
        "print(prometheus_client.generate_latest().decode())"
    )
    assert 'keap_events_total{event="credential_refreshed"} 1.0' in output
    assert 'keap_events_total{event="reauthorization_required"} 0.0' in output


def test_tests_of_the_documents_pass(project: Project) -> None:
    project.run(sys.executable, "manage.py", "test", "mysite", "-v", "0")


@pytest.mark.parametrize("command", [each for each in commands() if "manage.py" in each])
def test_command_runs_in_a_new_project(project: Project, command: str) -> None:
    program, *arguments = command.split()
    assert program == "python"
    answer = "y\n" if "--all" in arguments else ""
    assert project.run(sys.executable, *arguments, text=answer)


def test_sandbox_starts_with_the_documented_command(project: Project) -> None:
    (command,) = [each for each in commands() if "sandbox" in each]
    arguments = command.split()[1:]
    arguments[arguments.index("--port") + 1] = "0"
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("broker", ["redis_url", "rabbitmq_url"])
def test_documented_worker_refreshes_what_is_due(
    project: Project, broker: str, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("celery", reason="Celery is not installed here")
    # Celery prefers this to the settings.
    environment = project.environment | {"CELERY_BROKER_URL": request.getfixturevalue(broker)}
    worker, beat, call = (each.split() for each in commands() if each.startswith("celery"))
    project.shell(DUE)
    before = project.shell(GENERATION)
    with ExitStack() as stack:
        for command in (worker, beat):
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=project.folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(os.killpg, process.pid, signal.SIGTERM)
        subprocess.run(
            [sys.executable, "-m", *call],
            cwd=project.folder,
            env=environment,
            check=True,
            capture_output=True,
            timeout=60,
        )
        ends_at = time.monotonic() + 60
        while project.shell(GENERATION) == before:
            assert time.monotonic() < ends_at, "Nothing was refreshed."


def test_every_command_has_a_test() -> None:
    words = ("manage.py", "sandbox", "celery -A")
    tested = [each for each in commands() if any(word in each for word in words)]
    assert [each for each in commands() if each not in tested] == [
        'python -m pip install "django-infusionsoft[celery]"'  # the tests of the wheel do
    ]


@pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="only in a checkout")
def test_ci_runs_the_two_lines_of_the_readme() -> None:
    readme = (ROOT / "README.rst").read_text(encoding="utf-8")
    lines = [
        line.strip() for line in readme.splitlines() if line.startswith("    python3 -m venv")
    ]
    assert [line.split(" && ")[-1] for line in lines] == ["tox run -e demo", "tox run"]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert '"$scratch/venv/bin/tox" run 2>&1' in ci
    assert '"$scratch/venv/bin/tox" run -m rest 2>&1' in ci
    assert '"$scratch/venv/bin/tox" run -e demo -- --check' in ci


def settings_table() -> str:
    """Return the README's table of settings."""
    lines = [".. list-table::", "   :header-rows: 1", "", "   * - setting"]
    lines += ["     - default", "     - meaning"]
    for name, setting in SETTINGS.items():
        default = f"``{setting.default!r}``" if setting.default not in ("", []) else "none"
        lines += [f"   * - ``{name}``", f"     - {default}", f"     - {setting.description}"]
    return "\n".join(lines) + "\n"


def test_readme_shows_every_setting() -> None:
    assert settings_table() in (ROOT / "README.rst").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_are_valid(document: Path) -> None:
    for target in re.findall(r"<([\w/.]+\.rst)>`_", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target
