"""Querysets and managers of applications and credentials: lookups, requests and imports."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_infusionsoft.exceptions import ConfigurationError, ImportRejected
from django_infusionsoft.keap.oauth import TokenPair
from django_infusionsoft.models import Application, Credential, CredentialEvent
from django_infusionsoft.refresh import single
from django_infusionsoft.refresh.run_result import Run
from django_infusionsoft.sandbox import Sandbox
from tests.support import keap_with

Connect = Callable[..., Credential]
ACCOUNTS = ["ab123", *(f"acc{number:02}" for number in range(1, 24))]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with keap_with(ACCOUNTS) as running:
        yield running


def row(credential: Credential) -> Credential:
    return Credential.objects.get(pk=credential.pk)


def counts(run: Run) -> dict[str, int]:
    return {name: count for name, count in run.as_dict().items() if count}


# for_account


@pytest.mark.parametrize(
    "spelling",
    ["ab123", "AB123", " ab123\n", "ab123.infusionsoft.com", "Ab123.Infusionsoft.com"],
)
def test_account_is_found_by_every_spelling_of_its_name(
    credential: Credential, spelling: str
) -> None:
    assert Credential.objects.for_account(spelling) == credential


def test_account_is_found_by_one_query(
    credential: Credential, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(1):
        assert Credential.objects.for_account("ab123").client.client_id == "sandbox-client"


def test_error_names_the_account_when_it_was_never_connected(credential: Credential) -> None:
    with pytest.raises(Credential.DoesNotExist, match=r"cd456.*connect"):
        Credential.objects.for_account("cd456")


@pytest.mark.parametrize("name", ["", " ", "no such!", "ab123.example.com/", "*", "-"])
def test_unidentified_credential_is_not_found_by_an_empty_account(
    sandbox: Sandbox, db: None, name: str
) -> None:
    pair = TokenPair("access", "refresh", 3600, None)
    Credential.objects.connect(pair, application=None)
    with pytest.raises(Credential.DoesNotExist):
        Credential.objects.for_account(name)


def test_application_selects_the_credential_when_an_account_has_several(
    due: Callable[..., Credential], second: Application
) -> None:
    due("ab123")
    seconds = due("ab123", application=second)
    assert Credential.objects.for_account("ab123", second) == seconds
    with pytest.raises(Credential.MultipleObjectsReturned, match="application"):
        Credential.objects.for_account("ab123")


def test_error_is_raised_when_the_named_application_is_not_connected(
    credential: Credential, second: Application
) -> None:
    with pytest.raises(Credential.DoesNotExist):
        Credential.objects.for_account("ab123", second)


def test_account_is_found_among_the_credentials_of_an_application(
    due: Callable[..., Credential], second: Application
) -> None:
    due("ab123")
    seconds = due("ab123", application=second)
    assert second.credentials.for_account("ab123") == seconds


# get_default


def test_default_credential_is_the_only_credential(credential: Credential) -> None:
    assert Credential.objects.get_default() == credential


def test_default_credential_is_found_by_one_query(
    credential: Credential, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(1):
        assert Credential.objects.get_default().client.client_id == "sandbox-client"


def test_error_says_what_to_do_when_nothing_is_connected(db: None) -> None:
    with pytest.raises(Credential.DoesNotExist, match="connect it"):
        Credential.objects.get_default()


def test_error_says_what_to_do_when_there_are_several_credentials(
    connect: Connect, sandbox: Sandbox
) -> None:
    connect("ab123")
    connect("acc01")
    with pytest.raises(Credential.MultipleObjectsReturned, match="specify the account"):
        Credential.objects.get_default()


# Application.objects.get_default


def application(name: str, *, is_default: bool = False) -> Application:
    return Application.objects.create(
        name=name, client_id=name, client_secret="x", is_default=is_default
    )


def test_default_application_is_the_marked_row_when_the_settings_have_a_client(db: None) -> None:
    application("first")
    marked = application("marked", is_default=True)
    assert Application.objects.get_default() == marked


def test_default_application_is_the_settings_client_when_no_row_is_marked(db: None) -> None:
    application("only")
    assert Application.objects.get_default() is None


@override_settings(INFUSIONSOFT_CLIENT_ID="")
def test_default_application_is_the_only_row_when_the_settings_have_no_client(db: None) -> None:
    only = application("only")
    assert Application.objects.get_default() == only


@override_settings(INFUSIONSOFT_CLIENT_ID="")
def test_error_says_to_mark_an_application_when_there_are_several(db: None) -> None:
    application("first")
    application("other")
    with pytest.raises(ConfigurationError, match="mark one"):
        Application.objects.get_default()


@override_settings(INFUSIONSOFT_CLIENT_ID="")
def test_error_names_the_settings_when_there_is_no_application(db: None) -> None:
    with pytest.raises(ConfigurationError, match="INFUSIONSOFT_CLIENT_ID"):
        Application.objects.get_default()


def test_mark_moves_when_another_application_becomes_the_default(db: None) -> None:
    application("first", is_default=True)
    other = application("other", is_default=True)
    assert list(Application.objects.filter(is_default=True)) == [other]


# Application.objects.choices


def test_settings_client_is_the_first_choice_when_no_row_is_marked(db: None) -> None:
    rows = {name: application(name) for name in ("zoo", "alpha")}
    assert Application.objects.choices() == [None, rows["alpha"], rows["zoo"]]


def test_marked_application_is_the_first_choice(db: None) -> None:
    first, marked = application("first"), application("marked", is_default=True)
    assert Application.objects.choices() == [marked, first, None]


@override_settings(INFUSIONSOFT_CLIENT_ID="")
def test_settings_are_no_choice_when_they_have_no_client(db: None) -> None:
    assert Application.objects.choices() == []
    only = application("only")
    assert Application.objects.choices() == [only]


@pytest.mark.parametrize("marked", [True, False])
def test_first_choice_is_the_default_application(db: None, marked: bool) -> None:
    application("first")
    application("other", is_default=marked)
    assert Application.objects.choices()[0] == Application.objects.get_default()


# Querysets


def test_querysets_separate_connected_credentials_from_those_that_require_action(
    sandbox: Sandbox, connect: Connect
) -> None:
    alive, dead = connect("ab123"), connect("acc01")
    Credential.objects.filter(pk=dead.pk).update(status="reauthorization_required")
    assert list(Credential.objects.connected()) == [alive]
    assert list(Credential.objects.needs_reauthorization()) == [dead]


def test_querysets_can_be_chained(due: Callable[..., Credential], second: Application) -> None:
    due("ab123", application=second)
    dead = due("acc01")
    late = due("acc02")
    due("acc03", minutes=-60)
    Credential.objects.filter(pk=dead.pk).update(status="reauthorization_required")
    found = Credential.objects.due().connected().filter(application=None)
    assert list(found) == [late]
    assert list(Credential.objects.needs_reauthorization().due()) == [dead]
    assert [each.account for each in second.credentials.due()] == ["ab123"]


def test_due_uses_the_database_clock(
    due: Callable[..., Credential], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = due("ab123", minutes=5)
    due("acc01", minutes=-5)
    for hours in (-1, 1):
        wrong = datetime.now(UTC) + timedelta(hours=hours)
        monkeypatch.setattr(timezone, "now", lambda wrong=wrong: wrong)
        assert list(Credential.objects.due()) == [late]


def test_credential_is_never_due_when_it_requires_action(
    sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    due("ab123")
    sandbox.revoke("ab123")
    Credential.objects.refresh_due()
    assert not Credential.objects.due().exists()


# request_refresh


def make(account: str, **columns: Any) -> Credential:
    now = timezone.now()
    times = {"issued_at": now, "expires_at": now + timedelta(days=1), "connected_at": now}
    later = now + timedelta(hours=18)
    return Credential.objects.create(
        **{"account": account, "generation": 3, "refresh_at": later, **times, **columns}
    )


def request_all(user: User | None = None) -> int:
    return Credential.objects.get_queryset().request_refresh(user=user)


def test_next_run_refreshes_what_was_requested(sandbox: Sandbox, connect: Connect) -> None:
    credentials = [connect(account) for account in ACCOUNTS[:3]]
    assert counts(Credential.objects.refresh_due()) == {}
    assert request_all() == 3
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 3}
    assert [row(each).generation for each in credentials] == [2, 2, 2]


def test_requested_refresh_is_due_now_by_the_database_clock(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential = make("ab123")
    now = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: now + timedelta(hours=1))
    request_all()
    refresh_at = row(credential).refresh_at
    assert refresh_at is not None
    assert abs(refresh_at - now) < timedelta(seconds=10)


def test_event_has_the_user_who_requested_the_refresh(db: None) -> None:
    credential, user = make("ab123"), User.objects.create_user("ann")
    request_all(user)
    event = credential.events.get()
    assert (event.kind, event.user, event.generation) == ("refresh_requested", user, 3)


def test_event_has_no_user_when_a_program_requests_the_refresh(db: None) -> None:
    credential = make("ab123")
    request_all()
    assert credential.events.get().user is None


@pytest.mark.parametrize(
    "columns",
    [
        {"lease_until": timedelta(minutes=1), "refresh_at": timedelta(minutes=1)},
        {"status": "reauthorization_required", "refresh_at": None},
        {"status": "reauthorization_required", "reason": "unanswered", "refresh_at": None},
        {"status": "disconnected", "refresh_at": None},
        {"unanswered_attempts": 1},
    ],
    ids=["leased", "lost", "unanswered twice", "disconnected", "unanswered once"],
)
def test_credential_is_unchanged_when_no_run_can_refresh_it_now(
    db: None, columns: dict[str, Any]
) -> None:
    now = timezone.now()
    values = {
        name: now + value if isinstance(value, timedelta) else value
        for name, value in columns.items()
    }
    left, other = make("ab123", **values), make("acc01")
    assert request_all() == 1
    assert row(left).refresh_at == left.refresh_at
    assert not left.events.exists()
    assert list(Credential.objects.due()) == [other]


def test_refresh_can_be_requested_when_a_lease_has_expired(db: None) -> None:
    make("ab123", lease_until=timezone.now() - timedelta(seconds=1), lease_id="x")
    assert request_all() == 1
    assert Credential.objects.due().count() == 1


def test_refresh_is_requested_for_the_selected_credentials_only(db: None) -> None:
    chosen, other = make("ab123"), make("acc01")
    assert Credential.objects.get_queryset().filter(account="ab123").request_refresh() == 1
    assert list(Credential.objects.due()) == [chosen]
    assert not other.events.exists()


def test_nothing_is_written_when_nothing_is_selected(db: None) -> None:
    make("ab123")
    assert Credential.objects.get_queryset().none().request_refresh() == 0
    assert not Credential.objects.due().exists()


def test_requesting_a_refresh_decrypts_nothing(db: None) -> None:
    make("ab123")
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[]):
        assert request_all() == 1


def test_requesting_refreshes_costs_the_same_number_of_queries_for_many(
    db: None, django_assert_num_queries: Any
) -> None:
    for first, last in ((0, 2), (2, 24)):
        for account in ACCOUNTS[first:last]:
            make(account)
        with django_assert_num_queries(6), CaptureQueriesContext(connection) as queries:
            assert request_all() == last
        assert "access_token" not in " ".join(each["sql"] for each in queries.captured_queries)


def test_refreshes_of_many_are_requested_in_batches(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "REQUESTED_AT_ONCE", 2)
    monkeypatch.setattr(single, "KEYS_AT_ONCE", 4)
    for number in range(10):
        make(f"x{number}")
    statements = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        statements.append((sql, len(params or ())))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        assert request_all() == 10
    # Neither the memory nor the parameters of a statement, which databases limit, grow with them.
    reads = [sql for sql, _ in statements if sql.startswith("SELECT")]
    assert len([sql for sql in reads if "LIMIT 4" in sql]) == 3
    assert all("LIMIT 4" in sql or " IN (" in sql for sql in reads)
    columns = len(CredentialEvent._meta.concrete_fields)
    assert max(size for _, size in statements) <= 2 * columns


@pytest.mark.parametrize("count", [0, 3, 4, 6])
def test_each_credential_is_requested_once(
    db: None, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(single, "REQUESTED_AT_ONCE", 2)
    monkeypatch.setattr(single, "KEYS_AT_ONCE", 3)
    for number in range(count):
        credential = make(f"x{number}")
        for kind in ("imported", "refreshed"):  # the join repeats each row
            credential.events.create(kind=kind, generation=1)
    found = Credential.objects.get_queryset().filter(events__generation=1)
    assert found.request_refresh() == Credential.objects.due().count() == count
    assert CredentialEvent.objects.filter(kind="refresh_requested").count() == count


def test_request_and_its_event_are_committed_with_the_callers_transaction(deferred: None) -> None:
    credential = make("ab123")
    with transaction.atomic():
        assert request_all() == 1
    assert list(Credential.objects.due()) == [credential]
    assert credential.events.count() == 1


def test_request_is_rolled_back_with_the_callers_transaction(deferred: None) -> None:
    credential = make("ab123")
    with transaction.atomic():
        request_all()
        transaction.set_rollback(True)
    assert row(credential).refresh_at == credential.refresh_at
    assert not credential.events.exists()


# Imports


def pair(**changes: Any) -> dict[str, Any]:
    return {
        "account": "ab123",
        "access_token": "access",
        "refresh_token": "refresh",
        "expires_at": timezone.now() + timedelta(hours=1),
    } | changes


def test_imported_pair_is_stored_and_recorded(db: None) -> None:
    expires_at = timezone.now() + timedelta(hours=1)
    credential = Credential.objects.import_tokens(**pair(expires_at=expires_at))
    stored = row(credential)
    assert (stored.account, stored.access_token, stored.refresh_token, stored.generation) == (
        "ab123",
        "access",
        "refresh",
        1,
    )
    assert abs(stored.expires_at - expires_at) < timedelta(seconds=5)
    assert [event.kind for event in credential.events.all()] == ["imported"]


def test_imported_pair_is_stored_in_the_row_of_its_account(credential: Credential) -> None:
    again = Credential.objects.import_tokens(**pair(account="AB123.infusionsoft.com"))
    assert (again.pk, again.generation, again.access_token) == (credential.pk, 2, "access")


def test_imported_pair_belongs_to_the_given_application(
    credential: Credential, second: Application
) -> None:
    imported = Credential.objects.import_tokens(**pair(application=second))
    assert imported.pk != credential.pk
    assert imported.client.client_id == "second-client"


@pytest.mark.parametrize("years", [1, 30])
def test_imported_pair_is_due_at_once_when_its_access_token_has_expired(
    db: None, years: int
) -> None:
    ended = timezone.now() - timedelta(days=365 * years)
    credential = Credential.objects.import_tokens(**pair(expires_at=ended))
    assert list(Credential.objects.due()) == [credential]
    assert not row(credential).has_valid_access_token
    assert not row(credential).has_fresh_access_token
    assert abs(row(credential).expires_at - ended) < timedelta(seconds=5)


def test_imported_tokens_are_stripped(db: None) -> None:
    credential = Credential.objects.import_tokens(
        **pair(access_token=" access\n", refresh_token="refresh\r\n")
    )
    assert (credential.access_token, credential.refresh_token) == ("access", "refresh")


@pytest.mark.parametrize(
    "bad",
    [
        {"account": ""},
        {"account": "no such!"},
        {"account": None},
        {"account": "x" * 101},
        {"access_token": ""},
        {"access_token": " "},
        {"access_token": None},
        {"access_token": "two words"},
        {"refresh_token": ""},
        {"refresh_token": None},
        {"refresh_token": "a\nb"},
        {"refresh_token": b"refresh"},
        {"expires_at": datetime(2030, 1, 1)},  # noqa: DTZ001
        {"expires_at": None},
        {"expires_at": "2030-01-01T00:00:00Z"},
        {"expires_at": 1_900_000_000},
    ],
)
def test_nothing_is_stored_when_an_imported_value_is_invalid(
    db: None, bad: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        Credential.objects.import_tokens(**pair(**bad))
    assert not Credential.objects.exists()


def test_error_of_an_import_shows_no_token(db: None) -> None:
    with pytest.raises(ValueError, match="ab123") as caught:
        Credential.objects.import_tokens(**pair(access_token="very secret", refresh_token="too"))
    assert "secret" not in str(caught.value)
    assert "too" not in str(caught.value)


def test_same_pair_is_imported_once(db: None) -> None:
    first = Credential.objects.import_tokens(**pair())
    again = Credential.objects.import_tokens(**pair())
    assert (again, again.generation, again.events.count()) == (first, 1, 1)


def test_import_is_rejected_when_the_pair_has_been_rotated(sandbox: Sandbox, db: None) -> None:
    reply = sandbox.issue("ab123")
    exported = pair(access_token=reply["access_token"], refresh_token=reply["refresh_token"])
    credential = Credential.objects.import_tokens(**exported)
    credential.refresh()
    stored = row(credential).refresh_token
    with pytest.raises(
        ImportRejected, match="Account ab123: this refresh token is older"
    ) as caught:
        Credential.objects.import_tokens(**exported)
    assert reply["refresh_token"] not in str(caught.value)
    assert row(credential).refresh_token == stored
    credential.refresh()


@pytest.mark.parametrize("is_connected", [True, False])
@override_settings(INFUSIONSOFT_EVENT_RETENTION_REFRESHES=0)
def test_import_is_rejected_when_the_history_has_been_pruned(
    credential: Credential, is_connected: bool
) -> None:
    exported = pair(access_token=credential.access_token, refresh_token=credential.refresh_token)
    credential.refresh()
    if not is_connected:
        credential.disconnect()
    CredentialEvent.objects.update(created_at=timezone.now() - timedelta(days=100))
    Credential.objects.refresh_due()
    assert [event.kind for event in credential.events.all()] == ["imported"]
    with pytest.raises(ImportRejected):
        Credential.objects.import_tokens(**exported)


def test_import_is_rejected_when_the_pair_was_replaced(db: None) -> None:
    Credential.objects.import_tokens(**pair())
    Credential.objects.import_tokens(**pair(access_token="a-2", refresh_token="r-2"))
    with pytest.raises(ImportRejected):
        Credential.objects.import_tokens(**pair())
    assert Credential.objects.get().refresh_token == "r-2"


def test_rejected_pair_is_imported_with_force(db: None) -> None:
    Credential.objects.import_tokens(**pair())
    Credential.objects.import_tokens(**pair(access_token="a-2", refresh_token="r-2"))
    credential = Credential.objects.import_tokens(**pair(), force=True)
    assert (row(credential).refresh_token, credential.generation) == ("refresh", 3)


def test_rejected_import_does_not_break_the_callers_transaction(db: None) -> None:
    Credential.objects.import_tokens(**pair())
    Credential.objects.import_tokens(**pair(access_token="a-2", refresh_token="r-2"))
    with transaction.atomic():
        with pytest.raises(ImportRejected):
            Credential.objects.import_tokens(**pair())
        Credential.objects.import_tokens(**pair(account="cd456"))
    assert Credential.objects.count() == 2
