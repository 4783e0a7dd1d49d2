"""``infusionsoft_import``: grants of other clients come in, and an old one never over a newer."""

import io
import json
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.history import fingerprint
from django_infusionsoft.management import grant_lines
from django_infusionsoft.models import Application, Credential, CredentialEvent
from django_infusionsoft.sandbox import Sandbox
from django_infusionsoft.signals import credential_connected
from tests.processes import ROOT, environment, started
from tests.support import received, row, threads

pytestmark = pytest.mark.django_db

CANARY = "Canary7xSecret9qQ"
MANAGE = ("manage.py", "infusionsoft_import")
LINE = {
    "account": "ab123",
    "access_token": "access-1-of-ab123",
    "refresh_token": "refresh-1-of-ab123",
    "expires_at": 0,
}

Import = Callable[..., tuple[list[str], int]]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Import lines by the command; return the report without its last line, and the exit code."""

    def run(*lines: object, options: str = "") -> tuple[list[str], int]:
        file = tmp_path / "grants.jsonl"
        file.write_bytes(b"\n".join(map(raw, lines)))
        return report_of(str(file), *options.split())

    return run


def raw(line: object) -> bytes:
    return line if isinstance(line, bytes) else json.dumps(line).encode()


def report_of(*arguments: str) -> tuple[list[str], int]:
    output, code = io.StringIO(), 0
    try:
        call_command("infusionsoft_import", *arguments, stdout=output, stderr=output)
    except SystemExit as end:
        code = int(end.code or 0)
    return output.getvalue().splitlines(), code


def grant(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**LINE, **changes}.items() if value is not ...}


def of(account: str, number: int = 1) -> dict[str, Any]:
    """Return a line of a whole grant, the number-th of this account."""
    return grant(
        account=account,
        access_token=f"access-{number}-of-{account}",
        refresh_token=f"refresh-{number}-of-{account}",
    )


def stored(account: str = "ab123") -> tuple[str, str]:
    """Return what an account has now: its refresh token, and how it stands."""
    credential = Credential.objects.get(account=account)
    return credential.refresh_token, credential.status


def issued(sandbox: Sandbox, account: str = "ab123") -> dict[str, Any]:
    """Return a line with a grant that is alive at the sandbox."""
    reply = sandbox.issue(account)
    return grant(**{name: reply[name] for name in ("access_token", "refresh_token")})


# Lines that are good


def test_line_is_imported_and_told(imported: Import) -> None:
    report, code = imported(LINE)
    assert report[:2] == ["line 1: ab123: imported", "imported=1 unchanged=0 refused=0"]
    assert code == 0
    assert stored() == ("refresh-1-of-ab123", "connected")


def test_report_ends_with_who_may_refresh_from_now_on(imported: Import) -> None:
    assert "only this site may refresh" in imported(LINE)[0][-1]


def test_report_ends_with_the_counts_when_nothing_is_new(imported: Import) -> None:
    assert imported() == (["imported=0 unchanged=0 refused=0"], 0)


def test_account_is_read_from_the_scope(imported: Import) -> None:
    imported(grant(account=..., scope="full|CD456.infusionsoft.com"))
    assert stored("cd456") == ("refresh-1-of-ab123", "connected")


@pytest.mark.parametrize(
    "moment",
    [
        "2020-01-31T12:00:00Z",
        "2020-01-31T13:00:00+01:00",
        "2020-01-31 12:00:00+00:00",
        1_580_472_000,
        1_580_472_000.25,
        "1580472000",
        " 1580472000.25 ",
    ],
)
def test_moment_is_taken_in_every_notation(imported: Import, moment: object) -> None:
    assert imported(grant(expires_at=moment))[1] == 0
    ended = Credential.objects.get().expires_at
    assert abs(ended - datetime(2020, 1, 31, 12, tzinfo=UTC)) < timedelta(seconds=5)


def test_account_is_due_at_once_when_nobody_knows_when_its_access_token_ends(
    imported: Import,
) -> None:
    imported(grant(expires_at=0))
    assert Credential.objects.due().count() == 1


def test_imported_grant_is_refreshed(imported: Import, sandbox: Sandbox) -> None:
    line = issued(sandbox)
    imported(line)
    assert Credential.objects.refresh_due().refreshed == 1
    assert stored()[0] != line["refresh_token"]


def test_what_editors_and_windows_add_is_overlooked(imported: Import) -> None:
    report, code = imported(
        b"\xef\xbb\xbf" + raw(LINE) + b"\r", b"", b" \t\r", raw(of("cd456")) + b"\r\n"
    )
    assert report[:2] == ["line 1: ab123: imported", "line 4: cd456: imported"]
    assert code == 0


def test_keys_that_nobody_knows_are_overlooked(imported: Import) -> None:
    assert imported(grant(token_type="bearer", extra={"a": [1]}))[1] == 0


def test_lines_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ((), ("-",)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw(LINE))))
        assert report_of(*arguments)[1] == 0
    assert Credential.objects.count() == 1


def test_import_is_told_by_its_event_and_its_signal(imported: Import) -> None:
    with received(credential_connected) as calls:
        imported(LINE)
    event = CredentialEvent.objects.get()
    assert (event.kind, event.fingerprint) == ("imported", fingerprint("refresh-1-of-ab123"))
    assert [call["created"] for call in calls] == [True]


@pytest.mark.django_db(transaction=True)
def test_signal_is_sent_after_the_commit(imported: Import) -> None:
    inside: list[bool] = []

    def receiver(**kwargs: Any) -> None:
        inside.append(connection.in_atomic_block)

    credential_connected.connect(receiver)
    try:
        imported(LINE)
    finally:
        credential_connected.disconnect(receiver)
    assert inside == [False]


# Lines that are bad

BAD = {
    "not JSON": b'{"access_token": "%s"' % CANARY.encode(),
    "cut": raw(grant(refresh_token=CANARY))[:-3],
    "words": CANARY.encode(),
    "a text": raw(CANARY),
    "a list": raw([grant(refresh_token=CANARY)]),
    "null": b"null",
    "deep": b"[" * 60_000,
    "not UTF-8": raw(grant(refresh_token=CANARY)).replace(b"-", b"\xff"),
    "UTF-16": json.dumps(grant(refresh_token=CANARY)).encode("utf-16"),
    "huge": raw(grant(refresh_token=CANARY * 10_000)),
    "a key twice": raw(LINE)[:-1] + b', "access_token": "%s"}' % CANARY.encode(),
    "NaN": raw(grant(expires_at=float("nan"), access_token=CANARY)),
    "Infinity": raw(grant(expires_at=float("inf"), access_token=CANARY)),
    "long number": b'{"access_token": "%s", "expires_at": %s}' % (CANARY.encode(), b"9" * 5000),
    "no account": grant(account=..., refresh_token=CANARY),
    "odd scope": grant(account=..., scope=CANARY),
    "odd account": grant(account=f"{CANARY}!"),
    "account is a number": grant(account=123, access_token=CANARY),
    "access token for account": grant(account=CANARY, access_token=CANARY),
    "columns mixed up": grant(account=CANARY, access_token="ab123"),
    "two accounts": grant(scope="full|cd456.infusionsoft.com", access_token=CANARY),
    "no access token": grant(access_token=..., refresh_token=CANARY),
    "no refresh token": grant(refresh_token=None, access_token=CANARY),
    "two words": grant(refresh_token=f"{CANARY} {CANARY}"),
    "half a surrogate": raw(grant(refresh_token=CANARY)).replace(b"Canary", b"\\ud800Canary"),
    "no moment": grant(expires_at=..., access_token=CANARY),
    "moment is a token": grant(expires_at=CANARY),
    "moment without zone": grant(expires_at="2026-01-31T12:00:00", access_token=CANARY),
    "moment is a date": grant(expires_at="2026-01-31", access_token=CANARY),
    "moment is true": grant(expires_at=True, access_token=CANARY),
    "milliseconds": grant(expires_at=1_769_860_800_000, access_token=CANARY),
    "larger than a float": raw(grant(access_token=CANARY))[:-2] + b"1e999}",
    "larger than a datetime": grant(expires_at=10**400, access_token=CANARY),
    "before 1970": grant(expires_at=-1, access_token=CANARY),
    "year 1": grant(expires_at="0001-01-01T00:00:00+14:00", access_token=CANARY),
    "year 9999": grant(expires_at="9999-12-31T23:59:59-14:00", access_token=CANARY),
    "odd client": grant(client_id=f"a\0{CANARY}"),
    "client is a list": grant(client_id=[CANARY]),
    "unknown client": grant(client_id=CANARY),
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_bad_line_costs_only_itself_and_shows_nothing(
    imported: Import,
    line: object,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    report, code = imported(of("cd456"), line, of("ef789"))
    assert code == 1
    assert report[0] == "line 1: cd456: imported"
    assert re.match(r"line 2: .*[^.]\.$", report[1])
    assert report[-3].endswith(": ef789: imported")
    assert set(Credential.objects.values_list("account", flat=True)) == {"cd456", "ef789"}
    shown = "\n".join([*report, *capfd.readouterr(), caplog.text]).lower()
    assert CANARY.lower() not in shown


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not JSON", "one whole object on each line"),
        ("a list", "not an object"),
        ("not UTF-8", "not UTF-8"),
        ("huge", "longer than 64 KiB"),
        ("a key twice", "twice"),
        ("NaN", "NaN"),
        ("no account", 'add "account"'),
        ("columns mixed up", "not the name of an account"),
        ("two accounts", "different accounts"),
        ("no refresh token", 'access_token" and "refresh_token'),
        ("moment without zone", "with a time zone"),
        ("milliseconds", "in seconds"),
        ("unknown client", "no application has"),
    ],
)
def test_error_says_what_is_wrong(imported: Import, line: str, words: str) -> None:
    assert words in imported(BAD[line])[0][0]


def test_line_after_one_without_end_is_read_in_its_place() -> None:
    stream = io.BytesIO(b"x" * 300_000 + b"\n" + b"good\n" + b"y" * 70_000)
    assert list(grant_lines.read(stream)) == [(1, None), (2, b"good"), (3, None)]


# The same file again


def test_same_file_changes_nothing_when_it_is_imported_again(imported: Import) -> None:
    imported(LINE, of("cd456"))
    report, code = imported(LINE, of("cd456"))
    assert report == [
        "line 1: ab123: unchanged",
        "line 2: cd456: unchanged",
        "imported=0 unchanged=2 refused=0",
    ]
    assert code == 0
    assert set(Credential.objects.values_list("generation", flat=True)) == {1}


@pytest.mark.parametrize("options", ["", "--replace", "--replace --dry-run"])
def test_rotated_grant_stays_when_the_same_file_is_imported_again(
    imported: Import, sandbox: Sandbox, options: str
) -> None:
    line = issued(sandbox)
    imported(line)
    Credential.objects.get().refresh()
    now = stored()
    report, code = imported(line, options=options)
    assert "older than what is stored" in report[0]
    assert code == 1
    assert stored() == now


def test_grant_stays_when_one_that_it_has_replaced_comes_again(imported: Import) -> None:
    imported(LINE)
    imported(of("ab123", 2), options="--replace")
    report, _ = imported(LINE, options="--replace")
    assert "older than what is stored" in report[0]
    assert stored()[0] == "refresh-2-of-ab123"


def test_grant_stays_when_its_own_refresh_token_comes_with_another_access_token(
    imported: Import,
) -> None:
    imported(LINE)
    assert imported(grant(access_token="another-access-token"), options="--replace")[1] == 1
    assert Credential.objects.get().access_token == "access-1-of-ab123"


def test_other_grant_is_refused_when_the_account_is_connected(imported: Import) -> None:
    imported(LINE)
    report, code = imported(of("ab123", 2))
    assert report[0].startswith("line 1: ab123: connected already")
    assert "--replace" in report[0]
    assert code == 1
    assert stored()[0] == "refresh-1-of-ab123"


def test_other_grant_is_taken_when_it_is_to_replace(imported: Import) -> None:
    imported(LINE)
    assert imported(of("ab123", 2), options="--replace")[1] == 0
    assert stored() == ("refresh-2-of-ab123", "connected")


def test_other_grant_is_taken_when_the_account_was_disconnected(imported: Import) -> None:
    imported(LINE)
    Credential.objects.get().disconnect()
    assert imported(of("ab123", 2))[1] == 0
    assert stored() == ("refresh-2-of-ab123", "connected")


def test_same_grant_is_taken_when_it_was_disconnected_unused(imported: Import) -> None:
    imported(LINE)
    Credential.objects.get().disconnect()
    assert imported(LINE)[1] == 0
    assert stored() == ("refresh-1-of-ab123", "connected")


def test_used_grant_is_refused_when_the_account_was_disconnected(
    imported: Import, sandbox: Sandbox
) -> None:
    line = issued(sandbox)
    imported(line)
    credential = Credential.objects.get()
    credential.refresh()
    credential.disconnect()
    report, code = imported(line, options="--replace")
    assert "used this refresh token already" in report[0]
    assert code == 1
    assert stored() == ("", "disconnected")


def test_grant_is_taken_when_the_account_needs_a_person(
    imported: Import, sandbox: Sandbox
) -> None:
    imported(issued(sandbox))
    sandbox.revoke("ab123")
    Credential.objects.refresh_due()
    assert stored()[1] == "reauthorization_required"
    line = issued(sandbox)
    assert imported(line)[1] == 0
    assert stored() == (line["refresh_token"], "connected")


def test_rejected_grant_is_refused_when_its_history_has_been_deleted(
    imported: Import, sandbox: Sandbox
) -> None:
    line = issued(sandbox)
    imported(line)
    sandbox.revoke("ab123")
    Credential.objects.refresh_due()
    CredentialEvent.objects.all().delete()
    assert "used this refresh token already" in imported(line)[0][0]


def test_grant_that_no_key_opens_is_kept_unless_it_is_to_be_replaced(imported: Import) -> None:
    imported(LINE)
    with override_settings(
        INFUSIONSOFT_ENCRYPTION_KEYS=["b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItMTI="]
    ):
        assert imported(of("ab123", 2))[1] == 1
        assert imported(of("ab123", 2), options="--replace")[1] == 0
        assert stored()[0] == "refresh-2-of-ab123"


@pytest.mark.django_db(transaction=True)
def test_imported_grant_wins_over_a_reply_that_comes_later(
    imported: Import, sandbox: Sandbox, expired: Credential
) -> None:
    line = issued(sandbox)
    gate = sandbox.hold("after", account="ab123")
    with threads(1) as start:
        slow = start(row(expired).get_access_token)
        try:
            gate.wait_until_processed()
            assert imported(line, options="--replace")[1] == 0
        finally:
            gate.release()
        assert slow.result(timeout=20) == line["access_token"]
    assert stored() == (line["refresh_token"], "connected")


def test_line_is_refused_when_another_has_the_same_account(imported: Import) -> None:
    report, code = imported(LINE, of("AB123.infusionsoft.com", 2), options="--replace")
    assert "in line 1 already" in report[1]
    assert code == 1
    assert stored()[0] == "refresh-1-of-ab123"


def test_line_is_refused_when_another_has_the_same_refresh_token(imported: Import) -> None:
    report, code = imported(LINE, grant(account="cd456"))
    assert "line 1 has the same refresh token" in report[1]
    assert code == 1
    assert Credential.objects.count() == 1


def test_grant_of_somebody_else_stays_when_it_came_in_the_same_moment(imported: Import) -> None:
    done: list[str] = []

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("UPDATE") and not done:
            done.append(sql)
            Credential.objects.import_tokens(
                account="ab123",
                access_token="theirs",
                refresh_token="theirs",
                expires_at=timezone.now(),
            )
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        report, code = imported(LINE)
    assert "in the same moment" in report[0]
    assert code == 1
    assert not Credential.objects.filter(generation__gt=1).exists()


@contextmanager
def insert_failing(*, after: int) -> Iterator[None]:
    """Let an ``INSERT`` of a credential fail when so many have gone well."""
    done: list[str] = []

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if re.match(r"INSERT INTO .django_infusionsoft_credential.\W", sql):
            if len(done) == after:
                raise OperationalError(f"gone {CANARY}")
            done.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        yield


@pytest.mark.django_db(transaction=True)
def test_lines_before_stay_when_the_database_fails(imported: Import) -> None:
    with (
        insert_failing(after=1),
        pytest.raises(CommandError, match=r"line 2: cd456: .* Run the same file again") as caught,
    ):
        imported(LINE, of("cd456"), of("ef789"))
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert list(Credential.objects.values_list("account", flat=True)) == ["ab123"]
    assert imported(LINE, of("cd456"), of("ef789"))[0][-2] == "imported=2 unchanged=1 refused=0"


def test_what_was_told_is_stored_when_the_process_is_killed(
    sandbox: Sandbox, database_url: str
) -> None:
    with started(
        *MANAGE, database_url=database_url, settings=sandbox.settings, stdin=PIPE, stdout=PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(LINE) + "\n")
        process.stdin.flush()  # and not closed: more is to come
        assert process.stdout.readline() == "line 1: ab123: imported\n"
    # It is gone
    assert stored() == ("refresh-1-of-ab123", "connected")


# --dry-run


def test_nothing_is_stored_when_it_is_only_looked_at(imported: Import) -> None:
    with received(credential_connected) as calls:
        report, code = imported(LINE, options="--dry-run")
    assert report[:2] == [
        "line 1: ab123: would be imported",
        "would_be_imported=1 unchanged=0 refused=0",
    ]
    assert code == 0
    assert not Credential.objects.exists()
    assert not CredentialEvent.objects.exists()
    assert calls == []


@pytest.mark.parametrize("options", ["", "--replace"])
def test_look_tells_what_the_import_would(imported: Import, options: str) -> None:
    imported(LINE, of("cd456"))
    file = [of("ab123", 2), of("cd456"), of("ef789"), b"nothing", of("ef789", 2)]
    before = list(Credential.objects.values("account", "generation", "status"))
    looked, looked_code = imported(*file, options=f"--dry-run {options}")
    assert list(Credential.objects.values("account", "generation", "status")) == before
    report, code = imported(*file, options=options)
    assert [line.replace("would be imported", "imported") for line in looked[:5]] == report[:5]
    assert looked_code == code == 1


# Applications


def test_grant_belongs_to_the_client_in_the_settings_where_nobody_names_one(
    imported: Import, second: Application
) -> None:
    imported(LINE, grant(account="cd456", refresh_token="another", client_id="sandbox-client"))
    assert set(Credential.objects.values_list("application", flat=True)) == {None}


@pytest.mark.parametrize("name", ["Second", "second-client"])
def test_grant_belongs_to_the_application_that_is_named(
    imported: Import, second: Application, name: str
) -> None:
    imported(LINE, options=f"--application {name}")
    assert Credential.objects.get().application == second


def test_grant_belongs_to_the_application_that_its_line_names(
    imported: Import, second: Application
) -> None:
    imported(grant(client_id="second-client"))
    assert Credential.objects.get().application == second


def test_line_is_refused_when_it_names_another_application_than_the_command(
    imported: Import, second: Application
) -> None:
    for name, client_id in (("Second", "sandbox-client"), ("sandbox-client", "second-client")):
        report, code = imported(grant(client_id=client_id), options=f"--application {name}")
        assert "not the one of --application" in report[0]
        assert code == 1
    assert imported(grant(client_id="second-client"), options="--application Second")[1] == 0


def test_account_has_a_grant_for_each_application(imported: Import, second: Application) -> None:
    report, code = imported(LINE, {**of("ab123", 2), "client_id": "second-client"})
    assert report[2] == "imported=2 unchanged=0 refused=0"
    assert code == 0
    assert Credential.objects.count() == 2


def test_line_is_refused_when_the_settings_have_no_client(imported: Import) -> None:
    with override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET=""):
        report, code = imported(LINE)
    assert "--application" in report[0]
    assert code == 1


def test_command_says_what_is_wrong_when_nobody_knows_the_application() -> None:
    with pytest.raises(CommandError, match="No application has this name") as caught:
        report_of("--application", CANARY)
    assert caught.value.returncode == 2
    assert CANARY not in str(caught.value)


def test_command_asks_for_the_client_id_when_several_have_the_name(second: Application) -> None:
    Application.objects.create(name="Second", client_id="third", client_secret="third")
    with pytest.raises(CommandError, match="give the client id") as caught:
        report_of("--application", "Second")
    assert caught.value.returncode == 2


# Wrong usage


def test_command_says_what_is_wrong_when_the_file_is_not_there(tmp_path: Path) -> None:
    for file in (str(tmp_path / CANARY), str(tmp_path), json.dumps(grant(refresh_token=CANARY))):
        with pytest.raises(CommandError, match=r"FILE cannot be read: .*\.") as caught:
            report_of(file)
        assert caught.value.returncode == 2
        assert CANARY not in str(caught.value)


def test_command_says_what_is_wrong_when_there_is_no_key(imported: Import) -> None:
    with (
        override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[]),
        pytest.raises(CommandError, match="ENCRYPTION_KEYS is empty") as caught,
    ):
        imported(LINE)
    assert caught.value.returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [["--access-token", CANARY], ["-", CANARY], [f"--dry-run={CANARY}"], [f"--re{CANARY}"]],
)
def test_wrong_arguments_are_not_repeated(arguments: list[str]) -> None:
    with pytest.raises(CommandError, match="see --help") as caught:
        report_of(*arguments)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (["--access-token", CANARY], "", 2),
        ([CANARY], "", 2),
        (["--application", CANARY], "", 2),
        (["--traceback", "--application", CANARY], "", 1),
        (["--traceback"], raw(grant(expires_at=CANARY)).decode(), 1),
        (["--traceback"], f"[{CANARY}", 1),
        ([], "", 0),
    ],
)
def test_exit_code_tells_cron_and_no_stream_a_secret(
    database_url: str, sandbox: Sandbox, arguments: list[str], text: str, code: int
) -> None:
    process = subprocess.run(
        [sys.executable, *MANAGE, *arguments],
        env=environment(database_url, sandbox.settings),
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == code, process.stderr
    assert CANARY not in process.stdout + process.stderr
