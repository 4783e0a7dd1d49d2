"""docs/importing.rst: the import accepts its blocks or what they print.

Blocks of PHP run with replacements of the libraries that they need (``tests/system/php``).
"""

import io
import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from django_infusionsoft.models import Credential
from tests.connect.test_importer import LINE, grant, grant_for, raw, report_of, stored
from tests.processes import ROOT

pytestmark = pytest.mark.django_db

DOCUMENT = ROOT / "docs" / "importing.rst"
PHP_FOLDER = ROOT / "tests" / "system" / "php"
GRANT = ("refresh-1-of-ab123", "connected")
NOON = 1_769_860_800  # of 2026-01-31

Import = Callable[[bytes], tuple[list[str], int]]
Php = Callable[[str, str], bytes]


def blocks_of_sections() -> dict[str, list[str]]:
    """Return the code blocks of each section that has any."""
    text = DOCUMENT.read_text(encoding="utf-8")
    _, *parts = re.split(r"^(.+)\n(?:=+|-+)\n", text, flags=re.MULTILINE)
    found = {
        title: re.findall(
            r"^\.\. code-block:: \w+\n\n((?:    .*\n|\n)+)", section, flags=re.MULTILINE
        )
        for title, section in zip(parts[::2], parts[1::2], strict=True)
    }
    return {
        title: [textwrap.dedent(block).strip() for block in blocks]
        for title, blocks in found.items()
        if blocks
    }


BLOCKS = blocks_of_sections()


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Import:
    """Pipe lines into the command; return the report without its last line, and the exit code."""

    def run(lines: bytes) -> tuple[list[str], int]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
        return report_of()

    return run


@pytest.fixture
def php(need: Callable[[str, str], None]) -> Php:
    """Return the output of a block of PHP, which runs after other statements."""
    need("php", "" if shutil.which("php") else "PHP is missing")

    def run(before: str, block: str) -> bytes:
        script = f"<?php\n{before}\n" + block.removeprefix("<?php\n")
        return output_of(["php", "-d", "display_errors=stderr"], script, PHP_FOLDER)

    return run


def printed(block: str, text: str = "", folder: Path = ROOT) -> bytes:
    """Return the output of a block of Python for an input, run in a folder with its modules."""
    return output_of([sys.executable, "-c", block], text, folder)


def output_of(command: list[str], text: str, folder: Path) -> bytes:
    """Return the output of a command, which must succeed without warnings."""
    done = subprocess.run(
        command, cwd=folder, input=text.encode(), capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def expires_at_noon() -> bool:
    """Whether the imported access token expires at the time of the tests, within 5 s."""
    return abs(Credential.objects.get().expires_at.timestamp() - NOON) < 5


def test_every_block_of_the_document_has_a_test() -> None:
    assert set(BLOCKS) == {
        "The file",
        "The command",
        "infusionsoft/php-sdk",
        "upwebdesign/laravel-infusionsoft",
        "keapgeek/laravel-keap",
        "keap-python",
        "keap-flask",
        "requests-oauthlib",
        "social-auth-app-django",
    }


def test_lines_of_the_document_are_imported(imported: Import) -> None:
    (lines,) = BLOCKS["The file"]
    report, code = imported(lines.encode())
    assert report[:2] == ["line 1: ab123: imported", "line 2: cd456: imported"]
    assert code == 0


def test_documented_commands_check_and_then_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = BLOCKS["The command"][0].splitlines()
    (tmp_path / "grants.jsonl").write_bytes(raw(LINE))
    monkeypatch.chdir(tmp_path)
    reports = []
    for command in commands:
        assert command.startswith("python manage.py infusionsoft_import ")
        report, code = report_of(*command.split()[3:])
        reports.append(report[0])
        assert code == 0
    assert reports == ["line 1: ab123: would be imported", "line 1: ab123: imported"]


def test_documented_errors_are_those_of_the_command(imported: Import) -> None:
    _, _, shown = BLOCKS["The command"]
    imported(raw(grant_for("cd456")))
    lines = (LINE, grant_for("cd456"), grant(refresh_token=None))
    report, _ = imported(b"\n".join(map(raw, lines)))
    assert report[:4] == shown.splitlines()


def php_sdk_token(extra_info: str) -> str:
    """Return a PHP statement that sets a token as the user of the SDK has stored it."""
    return (
        '$stored = \'O:18:"Infusionsoft\\Token":4:{s:11:"accessToken";s:17:"access-1-of-ab123";'
        's:12:"refreshToken";s:18:"refresh-1-of-ab123";s:9:"endOfLife";i:1769860800;'
        f's:9:"extraInfo";{extra_info}}}\';'
    )


def test_token_of_the_php_sdk_is_imported(php: Php, imported: Import) -> None:
    (script,) = BLOCKS["infusionsoft/php-sdk"]
    extra_info = (
        'a:2:{s:10:"token_type";s:6:"bearer";s:5:"scope";s:27:"full|ab123.infusionsoft.com";}'
    )
    assert imported(php(php_sdk_token(extra_info), script))[1] == 0
    assert stored() == GRANT
    assert expires_at_noon()


def test_token_of_the_php_sdk_is_imported_when_the_account_replaces_its_scope(
    php: Php, imported: Import
) -> None:
    (script,) = BLOCKS["infusionsoft/php-sdk"]
    given = script.replace("// 'account' => 'ab123',", "'account' => 'ab123', //")
    assert given != script
    assert imported(php(php_sdk_token("N;"), given))[1] == 0
    assert stored() == GRANT


def test_cache_of_laravel_infusionsoft_is_imported(php: Php, imported: Import) -> None:
    (script,) = BLOCKS["upwebdesign/laravel-infusionsoft"]
    assert imported(php("require 'laravel.php';", script))[1] == 0
    assert stored() == GRANT
    assert expires_at_noon()


def test_cache_of_laravel_keap_is_imported(php: Php, imported: Import) -> None:
    (script,) = BLOCKS["keapgeek/laravel-keap"]
    assert imported(php("require 'laravel.php';", script))[1] == 0
    assert stored() == GRANT


def test_store_of_keap_python_is_imported(imported: Import) -> None:
    (script,) = BLOCKS["keap-python"]
    kept = {
        "access_token": "access-1-of-ab123",
        "refresh_token": "refresh-1-of-ab123",
        "expires_in": 86400,
        "end_of_life": NOON,
        "scope": "full|ab123.infusionsoft.com",
    }
    assert imported(printed(script, json.dumps({"default": kept}, indent=4)))[1] == 0
    assert stored() == GRANT
    assert expires_at_noon()


def test_store_of_keap_flask_is_imported(imported: Import) -> None:
    (script,) = BLOCKS["keap-flask"]
    kept = {**LINE, "account": None, "scope": "full|ab123.infusionsoft.com", "updated_at": 1.5}
    assert imported(printed(script, json.dumps(kept, indent=4)))[1] == 0
    assert stored() == GRANT


def test_token_of_requests_oauthlib_is_imported(imported: Import) -> None:
    (script,) = BLOCKS["requests-oauthlib"]
    assert imported(printed(script))[0][0] == "line 1: ab123: imported"


SOCIAL_DJANGO_MODELS = """
class UserSocialAuth:
    def __init__(self, provider, **extra_data):
        self.provider = provider
        self.extra_data = extra_data

    class objects:
        def filter(provider):
            return [row for row in ROWS if row.provider == provider]


ROWS = [
    UserSocialAuth("github", access_token="of-github", auth_time=1769774400),
    UserSocialAuth(
        "keap",
        access_token="access-1-of-ab123",
        refresh_token="refresh-1-of-ab123",
        scope="full|ab123.infusionsoft.com",
        token_type="bearer",
        auth_time=1769774400,
        expires=86400,
    ),
]
"""


def test_rows_of_social_auth_are_imported(imported: Import, tmp_path: Path) -> None:
    (script,) = BLOCKS["social-auth-app-django"]
    package = tmp_path / "social_django"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(SOCIAL_DJANGO_MODELS, encoding="utf-8")
    report, code = imported(printed(script, folder=tmp_path))
    assert report[:2] == ["line 1: ab123: imported", "imported=1 unchanged=0 rejected=0"]
    assert code == 0
    assert stored() == GRANT
