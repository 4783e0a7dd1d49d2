"""``infusionsoft_refresh --all``, as after restoring a backup."""

import json
from collections.abc import Callable, Iterator
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from django_infusionsoft.models import Credential
from django_infusionsoft.refresh.trust import MAX_BELIEVED
from django_infusionsoft.sandbox import Sandbox
from tests.support import keap_with

pytestmark = pytest.mark.django_db

ACCOUNTS = [f"acc{number:02}" for number in range(10)]
BACKED_UP = ("access_token", "refresh_token", "generation")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with keap_with(ACCOUNTS) as running:
        yield running


@pytest.fixture
def accounts(sandbox: Sandbox, connect: Callable[..., Credential]) -> list[Credential]:
    """Accounts that are not due."""
    return [connect(account) for account in ACCOUNTS]


def restore_backup(accounts: list[Credential]) -> None:
    """Refresh some accounts, and store the token pairs from before."""
    rows = Credential.objects.filter(pk__in=[each.pk for each in accounts])
    before = {row.pop("pk"): row for row in rows.values("pk", *BACKED_UP)}
    for each in accounts:
        each.refresh()
        each.events.all().delete()
    for pk, columns in before.items():
        rows.filter(pk=pk).update(**columns)


def refresh_all(*options: str) -> tuple[str, int]:
    """Return what the command prints, and its exit code."""
    output = StringIO()
    try:
        call_command("infusionsoft_refresh", "--all", *options, stdout=output, stderr=StringIO())
    except SystemExit as end:
        return output.getvalue(), int(end.code or 0)
    return output.getvalue(), 0


def test_account_whose_refresh_token_was_used_after_the_backup_is_found(
    accounts: list[Credential],
) -> None:
    restore_backup(accounts[3:4])
    output, code = refresh_all("--no-input")
    counts, lost = output.splitlines()
    assert counts.startswith("refreshed=9 rejected=1 ")
    assert lost.startswith("acc03 must be reconnected: ")
    assert code == 1
    assert Credential.objects.filter(generation=2).count() == 9


def test_all_accounts_are_refreshed_when_none_was_used_after_the_backup(
    accounts: list[Credential],
) -> None:
    output, code = refresh_all("--no-input")
    assert output.startswith("refreshed=10 ")
    assert len(output.splitlines()) == 1
    assert code == 0
    assert Credential.objects.filter(generation=2).count() == 10


def test_it_stops_when_keap_rejects_many_accounts_in_a_row(accounts: list[Credential]) -> None:
    restore_backup(accounts)
    output, code = refresh_all("--no-input")
    counts, *lines = output.splitlines()
    assert " ended=keap" in counts
    assert [" must be reconnected: " in line for line in lines].count(True) == MAX_BELIEVED
    assert f"Not refreshed: {len(ACCOUNTS) - MAX_BELIEVED} accounts, which stay due." in lines
    assert "--believe-rejections" in lines[-1]
    assert code == 1
    assert Credential.objects.connected().count() == len(ACCOUNTS) - MAX_BELIEVED


def test_it_prints_one_json_object(accounts: list[Credential]) -> None:
    restore_backup(accounts[:1])
    Credential.objects.filter(account="acc01").update(is_doubted=True)
    output, code = refresh_all("--no-input", "--json", "--time-limit", "1e-9")
    facts = json.loads(output)
    assert (facts["lost"], facts["doubted"], facts["left"]) == ([], ["acc01"], len(ACCOUNTS))
    assert facts["ended"] == "time_limit"
    assert code == 1


# Confirmation


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], list[str]]:
    """Answer the question, or close the input; return what was asked."""

    def install(answer: str | None) -> list[str]:
        def ask(question: str) -> str:
            asked.append(question)
            if answer is None:
                raise EOFError
            return answer

        asked: list[str] = []
        monkeypatch.setattr("builtins.input", ask)
        return asked

    return install


Answer = Callable[[str | None], list[str]]


def test_it_says_what_it_does_and_asks_first(accounts: list[Credential], answer: Answer) -> None:
    asked = answer("y")
    with override_settings(INFUSIONSOFT_REFRESH_RATE=100):
        Credential.objects.filter(account="acc09").update(status="disconnected")
        _, code = refresh_all()
    assert "refresh tokens of all 9 connected accounts" in asked[0]
    assert "must be reconnected" in asked[0]
    assert code == 0
    assert Credential.objects.filter(generation=2).count() == 9


@pytest.mark.parametrize("reply", ["", "n", None])
def test_nothing_is_done_without_confirmation(
    accounts: list[Credential], sandbox: Sandbox, answer: Answer, reply: str | None
) -> None:
    answer(reply)
    with pytest.raises(CommandError, match="--no-input") as error:
        refresh_all("--believe-rejections")
    assert error.value.returncode == 2
    assert sandbox.token_requests == []
    assert not Credential.objects.due().exists()


@pytest.mark.parametrize("options", [["--dry-run"], ["--account=acc01"], ["--json"]])
def test_it_rejects_options_that_do_not_fit(options: list[str], answer: Answer) -> None:
    asked = answer("y")
    with pytest.raises(CommandError) as error:
        refresh_all(*options)
    assert error.value.returncode == 2
    assert asked == []
