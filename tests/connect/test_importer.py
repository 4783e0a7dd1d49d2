"""``infusionsoft_import``: grants of other clients, which never replace a newer grant."""

import io
import json
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.test import override_settings
from django.utils import timezone

from django_infusionsoft.connect import import_lines
from django_infusionsoft.models import Application, Credential, CredentialEvent
from django_infusionsoft.monitoring.history import fingerprint
from django_infusionsoft.sandbox import Sandbox
from django_infusionsoft.signals import credential_connected
from tests.support import received, row, threads

pytestmark = pytest.mark.django_db

CANARY = "Canary7xSecret9qQ"
LINE = {
    "account": "ab123",
    "access_token": "access-1-of-ab123",
    "refresh_token": "refresh-1-of-ab123",
    "expires_at": 0,
}

Import = Callable[..., tuple[list[str], int]]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Import lines with the command; return the lines of its report, and the exit code."""

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


def grant_for(account: str, number: int = 1) -> dict[str, Any]:
    """Return a complete line: the grant with this number for this account."""
    return grant(
        account=account,
        access_token=f"access-{number}-of-{account}",
        refresh_token=f"refresh-{number}-of-{account}",
    )


def stored(account: str = "ab123") -> tuple[str, str]:
    """Return the stored refresh token and the status of an account."""
    credential = Credential.objects.get(account=account)
    return credential.refresh_token, credential.status


def issued(sandbox: Sandbox, account: str = "ab123") -> dict[str, Any]:
    """Return a line with a grant that is valid at the sandbox."""
    reply = sandbox.issue(account)
    return grant(**{name: reply[name] for name in ("access_token", "refresh_token")})


# Valid lines


def test_line_is_imported_and_reported(imported: Import) -> None:
    report, code = imported(LINE)
    assert report[:2] == ["line 1: ab123: imported", "imported=1 unchanged=0 rejected=0"]
    assert code == 0
    assert stored() == ("refresh-1-of-ab123", "connected")


def test_report_ends_with_a_warning_that_only_this_site_may_refresh(imported: Import) -> None:
    assert "only this site may refresh" in imported(LINE)[0][-1]


def test_report_ends_with_the_counts_when_nothing_was_imported(imported: Import) -> None:
    assert imported() == (["imported=0 unchanged=0 rejected=0"], 0)


def test_account_is_read_from_the_scope(imported: Import) -> None:
    imported(grant(account=..., scope="full|CD456.infusionsoft.com"))
    assert stored("cd456") == ("refresh-1-of-ab123", "connected")


@pytest.mark.parametrize(
    "expires_at",
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
def test_expires_at_is_accepted_in_every_notation(imported: Import, expires_at: object) -> None:
    assert imported(grant(expires_at=expires_at))[1] == 0
    expires_at = Credential.objects.get().expires_at
    assert abs(expires_at - datetime(2020, 1, 31, 12, tzinfo=UTC)) < timedelta(seconds=5)


def test_account_is_due_at_once_when_the_expiry_is_unknown(
    imported: Import,
) -> None:
    imported(grant(expires_at=0))
    assert Credential.objects.due().count() == 1


def test_imported_grant_is_refreshed(imported: Import, sandbox: Sandbox) -> None:
    line = issued(sandbox)
    imported(line)
    assert Credential.objects.refresh_due().refreshed == 1
    assert stored()[0] != line["refresh_token"]


def test_byte_order_mark_and_blank_lines_are_ignored(imported: Import) -> None:
    report, code = imported(
        b"\xef\xbb\xbf" + raw(LINE) + b"\r", b"", b" \t\r", raw(grant_for("cd456")) + b"\r\n"
    )
    assert report[:2] == ["line 1: ab123: imported", "line 4: cd456: imported"]
    assert code == 0


def test_unknown_keys_are_ignored(imported: Import) -> None:
    assert imported(grant(token_type="bearer", extra={"a": [1]}))[1] == 0


def test_lines_are_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ((), ("-",)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw(LINE))))
        assert report_of(*arguments)[1] == 0
    assert Credential.objects.count() == 1


def test_import_writes_an_event_and_sends_a_signal(imported: Import) -> None:
    with received(credential_connected) as calls:
        imported(LINE)
    event = CredentialEvent.objects.get()
    assert (event.kind, event.fingerprint) == (
        "imported",
        fingerprint("refresh-1-of-ab123"),
    )
    assert [call["created"] for call in calls] == [True]


@pytest.mark.django_db(transaction=True)
def test_signal_is_sent_after_the_commit(imported: Import) -> None:
    in_transaction: list[bool] = []

    def receiver(**kwargs: Any) -> None:
        in_transaction.append(connection.in_atomic_block)

    credential_connected.connect(receiver)
    try:
        imported(LINE)
    finally:
        credential_connected.disconnect(receiver)
    assert in_transaction == [False]


# Invalid lines

INVALID = {
    "not JSON": b'{"access_token": "%s"' % CANARY.encode(),
    "truncated": raw(grant(refresh_token=CANARY))[:-3],
    "plain text": CANARY.encode(),
    "a string": raw(CANARY),
    "a list": raw([grant(refresh_token=CANARY)]),
    "null": b"null",
    "deeply nested": b"[" * 60_000,
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
    "columns swapped": grant(account=CANARY, access_token="ab123"),
    "two accounts": grant(scope="full|cd456.infusionsoft.com", access_token=CANARY),
    "no access token": grant(access_token=..., refresh_token=CANARY),
    "no refresh token": grant(refresh_token=None, access_token=CANARY),
    "two words": grant(refresh_token=f"{CANARY} {CANARY}"),
    "half a surrogate": raw(grant(refresh_token=CANARY)).replace(b"Canary", b"\\ud800Canary"),
    "no expiry": grant(expires_at=..., access_token=CANARY),
    "expiry is a token": grant(expires_at=CANARY),
    "expiry without time zone": grant(expires_at="2026-01-31T12:00:00", access_token=CANARY),
    "expiry is a date": grant(expires_at="2026-01-31", access_token=CANARY),
    "expiry is true": grant(expires_at=True, access_token=CANARY),
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


@pytest.mark.parametrize("line", INVALID.values(), ids=INVALID)
def test_invalid_line_is_rejected_alone_and_never_shown(
    imported: Import,
    line: object,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    report, code = imported(grant_for("cd456"), line, grant_for("ef789"))
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
        ("not JSON", "one complete object on each line"),
        ("a list", "not an object"),
        ("not UTF-8", "not UTF-8"),
        ("huge", "longer than 64 KiB"),
        ("a key twice", "twice"),
        ("NaN", "NaN"),
        ("no account", 'add "account"'),
        ("columns swapped", "not an account name"),
        ("two accounts", "different accounts"),
        ("no refresh token", 'access_token" and "refresh_token'),
        ("expiry without time zone", "with a time zone"),
        ("milliseconds", "in seconds"),
        ("unknown client", "no application has"),
    ],
)
def test_error_names_the_problem(imported: Import, line: str, words: str) -> None:
    assert words in imported(INVALID[line])[0][0]


def test_line_after_an_overlong_line_is_read() -> None:
    stream = io.BytesIO(b"x" * 300_000 + b"\n" + b"good\n" + b"y" * 70_000)
    assert list(import_lines.read(stream)) == [(1, None), (2, b"good"), (3, None)]


# Importing again


def test_same_file_changes_nothing_when_imported_again(imported: Import) -> None:
    imported(LINE, grant_for("cd456"))
    report, code = imported(LINE, grant_for("cd456"))
    assert report == [
        "line 1: ab123: unchanged",
        "line 2: cd456: unchanged",
        "imported=0 unchanged=2 rejected=0",
    ]
    assert code == 0
    assert set(Credential.objects.values_list("generation", flat=True)) == {1}


@pytest.mark.parametrize("options", ["", "--replace", "--replace --dry-run"])
def test_rotated_grant_is_kept_when_the_same_file_is_imported_again(
    imported: Import, sandbox: Sandbox, options: str
) -> None:
    line = issued(sandbox)
    imported(line)
    Credential.objects.get().refresh()
    now = stored()
    report, code = imported(line, options=options)
    assert "older than the stored one" in report[0]
    assert code == 1
    assert stored() == now


def test_grant_is_kept_when_the_grant_that_it_replaced_is_imported_again(imported: Import) -> None:
    imported(LINE)
    imported(grant_for("ab123", 2), options="--replace")
    report, _ = imported(LINE, options="--replace")
    assert "older than the stored one" in report[0]
    assert stored()[0] == "refresh-2-of-ab123"


def test_grant_is_kept_when_its_refresh_token_comes_with_another_access_token(
    imported: Import,
) -> None:
    imported(LINE)
    assert imported(grant(access_token="another-access-token"), options="--replace")[1] == 1
    assert Credential.objects.get().access_token == "access-1-of-ab123"


def test_other_grant_is_rejected_when_the_account_is_connected(imported: Import) -> None:
    imported(LINE)
    report, code = imported(grant_for("ab123", 2))
    assert report[0].startswith("line 1: ab123: already connected")
    assert "--replace" in report[0]
    assert code == 1
    assert stored()[0] == "refresh-1-of-ab123"


def test_other_grant_is_imported_with_replace(imported: Import) -> None:
    imported(LINE)
    assert imported(grant_for("ab123", 2), options="--replace")[1] == 0
    assert stored() == ("refresh-2-of-ab123", "connected")


def test_other_grant_is_imported_when_the_account_is_disconnected(imported: Import) -> None:
    imported(LINE)
    Credential.objects.get().disconnect()
    assert imported(grant_for("ab123", 2))[1] == 0
    assert stored() == ("refresh-2-of-ab123", "connected")


def test_same_grant_is_imported_when_it_was_disconnected_unused(imported: Import) -> None:
    imported(LINE)
    Credential.objects.get().disconnect()
    assert imported(LINE)[1] == 0
    assert stored() == ("refresh-1-of-ab123", "connected")


def test_used_grant_is_rejected_when_the_account_is_disconnected(
    imported: Import, sandbox: Sandbox
) -> None:
    line = issued(sandbox)
    imported(line)
    credential = Credential.objects.get()
    credential.refresh()
    credential.disconnect()
    report, code = imported(line, options="--replace")
    assert "already used this refresh token" in report[0]
    assert code == 1
    assert stored() == ("", "disconnected")


def test_grant_is_imported_when_the_account_must_be_reconnected(
    imported: Import, sandbox: Sandbox
) -> None:
    imported(issued(sandbox))
    sandbox.revoke("ab123")
    Credential.objects.refresh_due()
    assert stored()[1] == "reauthorization_required"
    line = issued(sandbox)
    assert imported(line)[1] == 0
    assert stored() == (line["refresh_token"], "connected")


def test_used_grant_is_rejected_when_its_history_was_deleted(
    imported: Import, sandbox: Sandbox
) -> None:
    line = issued(sandbox)
    imported(line)
    sandbox.revoke("ab123")
    Credential.objects.refresh_due()
    CredentialEvent.objects.all().delete()
    assert "already used this refresh token" in imported(line)[0][0]


def test_grant_that_no_key_decrypts_is_kept_without_replace(imported: Import) -> None:
    imported(LINE)
    with override_settings(
        INFUSIONSOFT_ENCRYPTION_KEYS=["b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItMTI="]
    ):
        assert imported(grant_for("ab123", 2))[1] == 1
        assert imported(grant_for("ab123", 2), options="--replace")[1] == 0
        assert stored()[0] == "refresh-2-of-ab123"


@pytest.mark.django_db(transaction=True)
def test_imported_grant_wins_over_a_late_reply(
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


def test_line_is_rejected_when_another_line_has_the_same_account(imported: Import) -> None:
    report, code = imported(LINE, grant_for("AB123.infusionsoft.com", 2), options="--replace")
    assert "already on line 1" in report[1]
    assert code == 1
    assert stored()[0] == "refresh-1-of-ab123"


def test_line_is_rejected_when_another_line_has_the_same_refresh_token(imported: Import) -> None:
    report, code = imported(LINE, grant(account="cd456"))
    assert "line 1 has the same refresh token" in report[1]
    assert code == 1
    assert Credential.objects.count() == 1


def test_grant_of_another_process_is_kept_when_stored_at_the_same_moment(imported: Import) -> None:
    done: list[str] = []

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("UPDATE") and "access_token" in sql and not done:
            done.append(sql)
            Credential.objects.import_tokens(
                account="ab123",
                access_token="other",
                refresh_token="other",
                expires_at=timezone.now(),
            )
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        report, code = imported(LINE)
    assert "at the same moment" in report[0]
    assert code == 1
    assert not Credential.objects.filter(generation__gt=1).exists()


@contextmanager
def insert_failing(*, after: int) -> Iterator[None]:
    """Let an ``INSERT`` of a credential fail after this many have succeeded."""
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
def test_lines_before_the_failure_stay_imported_when_the_database_fails(imported: Import) -> None:
    with (
        insert_failing(after=1),
        pytest.raises(CommandError, match=r"line 2: cd456: .* Run the same file again") as caught,
    ):
        imported(LINE, grant_for("cd456"), grant_for("ef789"))
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert list(Credential.objects.values_list("account", flat=True)) == ["ab123"]
    assert (
        imported(LINE, grant_for("cd456"), grant_for("ef789"))[0][-2]
        == "imported=2 unchanged=1 rejected=0"
    )


# --dry-run


def test_dry_run_stores_nothing(imported: Import) -> None:
    with received(credential_connected) as calls:
        report, code = imported(LINE, options="--dry-run")
    assert report[:2] == [
        "line 1: ab123: would be imported",
        "would_be_imported=1 unchanged=0 rejected=0",
    ]
    assert code == 0
    assert not Credential.objects.exists()
    assert not CredentialEvent.objects.exists()
    assert calls == []


@pytest.mark.parametrize("options", ["", "--replace"])
def test_dry_run_reports_the_same_as_the_import(imported: Import, options: str) -> None:
    imported(LINE, grant_for("cd456"))
    file = [
        grant_for("ab123", 2),
        grant_for("cd456"),
        grant_for("ef789"),
        b"nothing",
        grant_for("ef789", 2),
    ]
    before = list(Credential.objects.values("account", "generation", "status"))
    dry_report, dry_code = imported(*file, options=f"--dry-run {options}")
    assert list(Credential.objects.values("account", "generation", "status")) == before
    report, code = imported(*file, options=options)
    assert [line.replace("would be imported", "imported") for line in dry_report[:5]] == report[:5]
    assert dry_code == code == 1


# Applications


def test_grant_belongs_to_the_client_in_the_settings_by_default(
    imported: Import, second: Application
) -> None:
    imported(LINE, grant(account="cd456", refresh_token="another", client_id="sandbox-client"))
    assert set(Credential.objects.values_list("application", flat=True)) == {None}


@pytest.mark.parametrize("name", ["Second", "second-client"])
def test_grant_belongs_to_the_application_of_the_option(
    imported: Import, second: Application, name: str
) -> None:
    imported(LINE, options=f"--application {name}")
    assert Credential.objects.get().application == second


def test_grant_belongs_to_the_application_of_its_line(
    imported: Import, second: Application
) -> None:
    imported(grant(client_id="second-client"))
    assert Credential.objects.get().application == second


def test_line_is_rejected_when_its_application_differs_from_the_option(
    imported: Import, second: Application
) -> None:
    for name, client_id in (("Second", "sandbox-client"), ("sandbox-client", "second-client")):
        report, code = imported(grant(client_id=client_id), options=f"--application {name}")
        assert "does not belong to --application" in report[0]
        assert code == 1
    assert imported(grant(client_id="second-client"), options="--application Second")[1] == 0


def test_account_can_have_a_grant_for_each_application(
    imported: Import, second: Application
) -> None:
    report, code = imported(LINE, {**grant_for("ab123", 2), "client_id": "second-client"})
    assert report[2] == "imported=2 unchanged=0 rejected=0"
    assert code == 0
    assert Credential.objects.count() == 2


def test_line_is_rejected_when_the_settings_have_no_client(imported: Import) -> None:
    with override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET=""):
        report, code = imported(LINE)
    assert "--application" in report[0]
    assert code == 1


def test_command_rejects_an_unknown_application() -> None:
    with pytest.raises(CommandError, match="No application has this name") as caught:
        report_of("--application", CANARY)
    assert caught.value.returncode == 2
    assert CANARY not in str(caught.value)


def test_command_asks_for_the_client_id_when_the_name_is_ambiguous(second: Application) -> None:
    Application.objects.create(name="Second", client_id="third", client_secret="third")
    with pytest.raises(CommandError, match="use the client id") as caught:
        report_of("--application", "Second")
    assert caught.value.returncode == 2


# Wrong usage


def test_command_reports_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for file in (str(tmp_path / CANARY), str(tmp_path), json.dumps(grant(refresh_token=CANARY))):
        with pytest.raises(CommandError, match=r"FILE cannot be read: .*\.") as caught:
            report_of(file)
        assert caught.value.returncode == 2
        assert CANARY not in str(caught.value)


def test_command_reports_a_missing_encryption_key(imported: Import) -> None:
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
def test_error_does_not_repeat_invalid_arguments(arguments: list[str]) -> None:
    with pytest.raises(CommandError, match="see --help") as caught:
        report_of(*arguments)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
