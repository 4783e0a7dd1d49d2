"""Words and verbs of applications and credentials: look-ups, imports, and the run over the due."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import DataError, connection, transaction
from django.db.models import F
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_infusionsoft import leases
from django_infusionsoft.calls import FAILURES_THAT_HALT
from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.models import Application, ApplicationState, Credential
from django_infusionsoft.oauth import TokenPair
from django_infusionsoft.runs import Run
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import end_leases, keap_with, threads

Connect = Callable[..., Credential]
ACCOUNTS = ["ab123", *(f"acc{number:02}" for number in range(1, 24))]
OTHER_KEY = "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q="
ONE_BY_ONE = override_settings(INFUSIONSOFT_REFRESH_CONCURRENCY=1)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with keap_with(ACCOUNTS) as running:
        yield running


def row(credential: Credential) -> Credential:
    return Credential.objects.get(pk=credential.pk)


def counts(run: Run) -> dict[str, int]:
    return {name: count for name, count in run.as_dict().items() if count}


def asked(sandbox: Sandbox) -> list[str]:
    """Return the accounts that the token endpoint was asked for, in order."""
    return [request.account for request in sandbox.token_requests]


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
def test_credential_without_a_name_is_not_found_by_what_is_none(
    sandbox: Sandbox, db: None, name: str
) -> None:
    pair = TokenPair("access", "refresh", 3600, None)
    Credential.objects.connect(pair, application=None)
    with pytest.raises(Credential.DoesNotExist):
        Credential.objects.for_account(name)


def test_application_tells_apart_when_several_are_connected_to_the_account(
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


def test_account_is_found_among_an_applications_own(
    due: Callable[..., Credential], second: Application
) -> None:
    due("ab123")
    seconds = due("ab123", application=second)
    assert second.credentials.for_account("ab123") == seconds


# get_default


def test_default_is_the_only_credential(credential: Credential) -> None:
    assert Credential.objects.get_default() == credential


def test_default_is_found_by_one_query(
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
    with pytest.raises(Credential.MultipleObjectsReturned, match="name the account"):
        Credential.objects.get_default()


# Application.objects.get_default


def application(name: str, *, is_default: bool = False) -> Application:
    return Application.objects.create(
        name=name, client_id=name, client_secret="x", is_default=is_default
    )


def test_default_application_is_the_marked_one_before_the_settings_client(db: None) -> None:
    application("first")
    marked = application("marked", is_default=True)
    assert Application.objects.get_default() == marked


def test_default_application_is_the_settings_client_before_the_only_row(db: None) -> None:
    application("only")
    assert Application.objects.get_default() is None


@override_settings(INFUSIONSOFT_CLIENT_ID="")
def test_default_application_is_the_only_row_without_a_settings_client(db: None) -> None:
    only = application("only")
    assert Application.objects.get_default() == only


@override_settings(INFUSIONSOFT_CLIENT_ID="")
def test_error_says_mark_one_when_there_are_several_applications(db: None) -> None:
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


def test_settings_client_can_be_chosen_before_the_rows(db: None) -> None:
    rows = {name: application(name) for name in ("zoo", "alpha")}
    assert Application.objects.choices() == [None, rows["alpha"], rows["zoo"]]


def test_marked_application_can_be_chosen_before_all_others(db: None) -> None:
    first, marked = application("first"), application("marked", is_default=True)
    assert Application.objects.choices() == [marked, first, None]


@override_settings(INFUSIONSOFT_CLIENT_ID="")
def test_settings_without_a_client_cannot_be_chosen(db: None) -> None:
    assert Application.objects.choices() == []
    only = application("only")
    assert Application.objects.choices() == [only]


@pytest.mark.parametrize("marked", [True, False])
def test_first_choice_is_the_default_application(db: None, marked: bool) -> None:
    application("first")
    application("other", is_default=marked)
    assert Application.objects.choices()[0] == Application.objects.get_default()


# Queryset words


def test_words_part_the_connected_from_those_that_need_a_person(
    sandbox: Sandbox, connect: Connect
) -> None:
    alive, dead = connect("ab123"), connect("acc01")
    Credential.objects.filter(pk=dead.pk).update(status="reauthorization_required")
    assert list(Credential.objects.connected()) == [alive]
    assert list(Credential.objects.needs_reauthorization()) == [dead]


def test_words_can_be_chained(due: Callable[..., Credential], second: Application) -> None:
    due("ab123", application=second)
    dead = due("acc01")
    late = due("acc02")
    due("acc03", minutes=-60)
    Credential.objects.filter(pk=dead.pk).update(status="reauthorization_required")
    found = Credential.objects.due().connected().filter(application=None)
    assert list(found) == [late]
    assert list(Credential.objects.needs_reauthorization().due()) == [dead]
    assert [each.account for each in second.credentials.due()] == ["ab123"]


def test_due_is_told_by_the_databases_clock(
    due: Callable[..., Credential], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = due("ab123", minutes=5)
    due("acc01", minutes=-5)
    for hours in (-1, 1):
        wrong = datetime.now(UTC) + timedelta(hours=hours)
        monkeypatch.setattr(timezone, "now", lambda wrong=wrong: wrong)
        assert list(Credential.objects.due()) == [late]


def test_credential_that_needs_a_person_is_never_due(
    sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    due("ab123")
    sandbox.revoke("ab123")
    Credential.objects.refresh_due()
    assert not Credential.objects.due().exists()


@pytest.mark.parametrize("own", [True, False])
def test_others_are_left_when_an_application_is_put_aside(
    due: Callable[..., Credential], second: Application, own: bool
) -> None:
    of_settings, of_second = due("ab123"), due("ab123", application=second)
    left = Credential.objects.due().without_application(second.pk if own else None)
    assert list(left) == [of_settings if own else of_second]


# request_refresh


def make(account: str, **columns: Any) -> Credential:
    now = timezone.now()
    times = {"issued_at": now, "expires_at": now + timedelta(days=1), "connected_at": now}
    later = now + timedelta(hours=18)
    return Credential.objects.create(
        **{"account": account, "generation": 3, "refresh_at": later, **times, **columns}
    )


def ask_for_all(user: User | None = None) -> int:
    return Credential.objects.get_queryset().request_refresh(user=user)


def test_next_run_refreshes_what_was_asked_for(sandbox: Sandbox, connect: Connect) -> None:
    credentials = [connect(account) for account in ACCOUNTS[:3]]
    assert counts(Credential.objects.refresh_due()) == {}
    assert ask_for_all() == 3
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 3}
    assert [row(each).generation for each in credentials] == [2, 2, 2]


def test_what_was_asked_for_is_due_now_by_the_databases_clock(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential = make("ab123")
    now = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: now + timedelta(hours=1))
    ask_for_all()
    refresh_at = row(credential).refresh_at
    assert refresh_at is not None
    assert abs(refresh_at - now) < timedelta(seconds=10)


def test_event_tells_whose_will_the_refresh_is(db: None) -> None:
    credential, user = make("ab123"), User.objects.create_user("ann")
    ask_for_all(user)
    event = credential.events.get()
    assert (event.kind, event.user, event.generation) == ("refresh_requested", user, 3)


def test_event_names_nobody_when_a_program_asks(db: None) -> None:
    credential = make("ab123")
    ask_for_all()
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
def test_what_no_run_can_refresh_now_is_left_as_it_is(db: None, columns: dict[str, Any]) -> None:
    now = timezone.now()
    values = {
        name: now + value if isinstance(value, timedelta) else value
        for name, value in columns.items()
    }
    left, other = make("ab123", **values), make("acc01")
    assert ask_for_all() == 1
    assert row(left).refresh_at == left.refresh_at
    assert not left.events.exists()
    assert list(Credential.objects.due()) == [other]


def test_lease_that_has_ended_is_in_nobodys_way(db: None) -> None:
    make("ab123", lease_until=timezone.now() - timedelta(seconds=1), lease_id="x")
    assert ask_for_all() == 1
    assert Credential.objects.due().count() == 1


def test_only_the_chosen_ones_are_asked_for(db: None) -> None:
    chosen, other = make("ab123"), make("acc01")
    assert Credential.objects.get_queryset().filter(account="ab123").request_refresh() == 1
    assert list(Credential.objects.due()) == [chosen]
    assert not other.events.exists()


def test_nothing_is_written_when_nothing_is_chosen(db: None) -> None:
    make("ab123")
    assert Credential.objects.get_queryset().none().request_refresh() == 0
    assert not Credential.objects.due().exists()


def test_asking_for_a_refresh_decrypts_nothing(db: None) -> None:
    make("ab123")
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[]):
        assert ask_for_all() == 1


def test_asking_for_a_refresh_costs_as_many_queries_for_many_as_for_few(
    db: None, django_assert_num_queries: Any
) -> None:
    for first, last in ((0, 2), (2, 24)):
        for account in ACCOUNTS[first:last]:
            make(account)
        with django_assert_num_queries(5), CaptureQueriesContext(connection) as queries:
            assert ask_for_all() == last
        assert "access_token" not in " ".join(each["sql"] for each in queries.captured_queries)


def test_request_and_its_event_are_kept_with_the_callers_transaction(deferred: None) -> None:
    credential = make("ab123")
    with transaction.atomic():
        assert ask_for_all() == 1
    assert list(Credential.objects.due()) == [credential]
    assert credential.events.count() == 1


def test_request_is_undone_with_the_callers_transaction(deferred: None) -> None:
    credential = make("ab123")
    with transaction.atomic():
        ask_for_all()
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


def test_imported_pair_is_stored_and_told(db: None) -> None:
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


def test_imported_pair_goes_into_the_row_of_its_account(credential: Credential) -> None:
    again = Credential.objects.import_tokens(**pair(account="AB123.infusionsoft.com"))
    assert (again.pk, again.generation, again.access_token) == (credential.pk, 2, "access")


def test_imported_pair_belongs_to_the_application_that_is_named(
    credential: Credential, second: Application
) -> None:
    imported = Credential.objects.import_tokens(**pair(application=second))
    assert imported.pk != credential.pk
    assert imported.client.client_id == "second-client"


@pytest.mark.parametrize("years", [1, 30])
def test_imported_pair_is_due_at_once_when_its_access_token_has_ended(
    db: None, years: int
) -> None:
    ended = timezone.now() - timedelta(days=365 * years)
    credential = Credential.objects.import_tokens(**pair(expires_at=ended))
    assert list(Credential.objects.due()) == [credential]
    assert not row(credential).has_living_access_token
    assert not row(credential).has_fresh_access_token
    assert abs(row(credential).expires_at - ended) < timedelta(seconds=5)


def test_imported_tokens_lose_the_spaces_around_them(db: None) -> None:
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
def test_nothing_is_stored_when_an_imported_value_cannot_be_right(
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


# The run over the due


def test_run_refreshes_what_is_due_and_nothing_else(
    sandbox: Sandbox, due: Callable[..., Credential], connect: Connect
) -> None:
    late, early = due("ab123"), due("acc01", minutes=-60)
    fresh = connect("acc02")
    run = Credential.objects.refresh_due()
    assert counts(run) == {"refreshed": 1}
    assert run.went_well
    assert [row(each).generation for each in (late, early, fresh)] == [2, 1, 1]
    assert asked(sandbox) == ["ab123"]


def test_run_over_nothing_asks_nobody(sandbox: Sandbox, db: None) -> None:
    run = Credential.objects.refresh_due()
    assert (counts(run), run.went_well) == ({}, True)
    assert sandbox.token_requests == []


@ONE_BY_ONE
def test_run_begins_with_the_most_urgent(
    sandbox: Sandbox, due: Callable[..., Credential], second: Application
) -> None:
    due("acc01", 10)
    due("acc02", 30)
    due("acc03", 20, application=second)
    Credential.objects.refresh_due()
    assert asked(sandbox) == ["acc02", "acc03", "acc01"]


def test_run_refreshes_several_accounts_of_several_applications(
    sandbox: Sandbox, due: Callable[..., Credential], second: Application
) -> None:
    for account in ACCOUNTS[:12]:
        due(account)
    for account in ACCOUNTS[6:18]:
        due(account, application=second)
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 24}
    used = {(request.client_id, request.account) for request in sandbox.token_requests}
    assert len(used) == len(sandbox.token_requests) == 24
    assert not Credential.objects.due().exists()
    assert not Credential.objects.exclude(generation=2).exists()


def test_run_over_an_applications_own_leaves_the_rest(
    due: Callable[..., Credential], second: Application
) -> None:
    other = due("ab123")
    due("ab123", application=second)
    assert counts(second.credentials.refresh_due()) == {"refreshed": 1}
    assert row(other).generation == 1


def test_run_goes_on_when_one_account_is_dead(
    sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    dead = due("acc01", 60)
    others = [due(account) for account in ACCOUNTS[2:6]]
    sandbox.revoke("acc01")
    run = Credential.objects.refresh_due()
    assert counts(run) == {"refreshed": 4, "rejected": 1}
    assert not run.went_well
    assert row(dead).status == "reauthorization_required"
    assert [row(each).generation for each in others] == [2] * 4


def test_run_goes_on_when_one_answer_is_lost(
    sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    lost = due("acc01", 60)
    for account in ACCOUNTS[2:6]:
        due(account)
    sandbox.plan(faults.drop_after(), account="acc01")
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 4, "unknown": 1}
    assert row(lost).unanswered_attempts == 1


def test_run_goes_on_when_no_key_opens_one_credential(
    sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]):
        locked = due("acc01", 60)
    for account in ACCOUNTS[2:6]:
        due(account)
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 4, "unreadable": 1}
    assert "acc01" not in asked(sandbox)
    assert (row(locked).status, row(locked).failures) == ("connected", 1)
    assert "refresh_token" in row(locked).last_error


@pytest.mark.parametrize("answer", ["rotated", "rejected"])
def test_run_goes_on_when_a_credential_is_deleted_meanwhile(
    transactional_db: None, sandbox: Sandbox, due: Callable[..., Credential], answer: str
) -> None:
    doomed = due("acc01", 60)
    others = [due(account) for account in ACCOUNTS[2:6]]
    if answer == "rejected":
        sandbox.revoke("acc01")
    gate = sandbox.hold(account="acc01")
    with threads(1) as start:
        run = start(Credential.objects.refresh_due)
        gate.wait_until_processed()
        Credential.objects.filter(pk=doomed.pk).delete()
        gate.release()
    assert run.result().refreshed == 4
    assert [row(each).generation for each in others] == [2] * 4


def test_every_reply_of_a_batch_is_stored_when_one_credential_is_deleted_meanwhile(
    transactional_db: None, sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    due("acc09", 90)  # the probe
    doomed = due("acc01", 60)
    others = [due(account) for account in ACCOUNTS[2:6]]
    gates = [sandbox.hold(account=each.account) for each in (doomed, *others)]
    with threads(1) as start:
        run = start(Credential.objects.refresh_due)
        for gate in gates:
            gate.wait_until_processed()
        Credential.objects.filter(pk=doomed.pk).delete()
        for gate in gates:
            gate.release()
    assert run.result().refreshed == 5
    assert [row(each).generation for each in others] == [2] * 4


@contextmanager
def stores_failing(credential: Credential, error: BaseException) -> Iterator[None]:
    """Let the database, or the operator, stop the write of one credential's pair."""

    def fail(execute: Callable[..., Any], sql: str, params: Any, *rest: Any) -> Any:
        # The write of the pair ends with whose it is, and of which generation.
        if sql.startswith("UPDATE") and tuple(params[-2:]) == (credential.pk, 1):
            raise error
        return execute(sql, params, *rest)

    with connection.execute_wrapper(fail):
        yield


@pytest.mark.parametrize("with_error", [DataError("disk full"), KeyboardInterrupt()])
def test_every_other_reply_of_a_batch_is_stored_when_one_breaks_down(
    transactional_db: None,
    sandbox: Sandbox,
    due: Callable[..., Credential],
    with_error: BaseException,
) -> None:
    due("acc09", 90)  # the probe
    broken = due("acc01", 60)
    others = [due(account) for account in ACCOUNTS[2:6]]
    with stores_failing(broken, with_error), pytest.raises(type(with_error)):
        Credential.objects.refresh_due()
    assert [row(each).generation for each in others] == [2] * 4
    assert row(broken).generation == 1
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 1}
    assert row(broken).generation == 2


def test_credential_that_is_being_refreshed_is_passed_over(
    sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    busy = due("acc01", 60)
    due("acc02")
    assert leases.claim(busy)
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 1}
    assert asked(sandbox) == ["acc02"]


def test_credential_of_a_dead_process_is_taken_up_when_its_lease_has_ended(
    sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    late = due("acc01")
    assert leases.claim(late)
    end_leases()
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 1}


@ONE_BY_ONE
def test_one_application_is_put_aside_when_its_client_is_wrong(
    sandbox: Sandbox, due: Callable[..., Credential], second: Application
) -> None:
    wrong = [due(account, 60, application=second) for account in ACCOUNTS[:4]]
    for account in ACCOUNTS[:4]:
        due(account)
    second.client_secret = "wrong"
    second.save()
    run = Credential.objects.refresh_due(time_limit_seconds=10)
    assert counts(run) == {"refreshed": 4, "misconfigured": 1, "stopped": 1}
    outcomes = [request.outcome for request in sandbox.token_requests]
    assert outcomes == ["invalid_client", "invalid_client", *["rotated"] * 4]  # and a probe
    for each in wrong:
        assert (row(each).status, row(each).failures, row(each).lease_until) == (
            "connected",
            0,
            None,
        )
    assert Credential.objects.due().count() == 4


@ONE_BY_ONE
def test_settings_client_is_put_aside_when_it_is_wrong(
    sandbox: Sandbox, due: Callable[..., Credential], second: Application
) -> None:
    for account in ACCOUNTS[:4]:
        due(account, 60)
        due(account, application=second)
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        run = Credential.objects.refresh_due(time_limit_seconds=10)
    assert counts(run) == {"refreshed": 4, "misconfigured": 1, "stopped": 1}


@ONE_BY_ONE
def test_run_ends_early_when_keap_is_down(
    sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    for account in ACCOUNTS[:12]:
        due(account)
    sandbox.plan(faults.error_503(), times=None)
    run = Credential.objects.refresh_due()
    assert counts(run) == {"unavailable": FAILURES_THAT_HALT, "stopped": 1}
    assert run.ended == "keap"
    assert len(sandbox.token_requests) == FAILURES_THAT_HALT
    assert Credential.objects.due().count() == 12 - FAILURES_THAT_HALT


@ONE_BY_ONE
def test_run_goes_on_when_keap_fails_now_and_then(
    sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    for minutes, account in enumerate(ACCOUNTS[:12]):
        due(account, minutes)
        if minutes % 2:
            sandbox.plan(faults.error_503(), account=account)
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 6, "unavailable": 6}


@ONE_BY_ONE
def test_next_run_goes_on_where_urgency_is_greatest(
    sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    for minutes, account in enumerate(ACCOUNTS[:12]):
        due(account, 60 - minutes)
    Credential.objects.update(issued_at=F("refresh_at") - timedelta(days=1))
    sandbox.plan(faults.error_503(), times=None)
    failed = Credential.objects.refresh_due().unavailable
    sandbox.clear_plan()
    assert counts(Credential.objects.refresh_due()) == {"stopped": 1}  # too early to ask again
    ApplicationState.objects.update(probe_at=timezone.now())
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 12}
    probes_and_after = asked(sandbox)[failed:]
    assert [each for each in probes_and_after if each][:failed] == ACCOUNTS[:failed]


@pytest.mark.parametrize("seconds", [0, -1])
def test_nothing_is_begun_when_there_is_no_time(
    sandbox: Sandbox, due: Callable[..., Credential], seconds: float
) -> None:
    due("ab123")
    assert counts(Credential.objects.refresh_due(time_limit_seconds=seconds)) == {}
    assert sandbox.token_requests == []


@ONE_BY_ONE
def test_run_ends_at_its_time_limit_and_keeps_what_it_has_done(
    sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    for account in ACCOUNTS[:3]:
        due(account)
    sandbox.plan(faults.latency_after(0.3))
    assert counts(Credential.objects.refresh_due(time_limit_seconds=0.2)) == {"refreshed": 1}
    assert Credential.objects.due().count() == 2


def test_run_overlaps_its_calls(
    transactional_db: None, sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    due("acc01", 90)  # the probe
    gates = []
    for account in ACCOUNTS[2:10]:
        due(account)
        gates.append(sandbox.hold(account=account))
    with threads(1) as start:
        run = start(Credential.objects.refresh_due)
        for gate in gates:
            gate.wait_until_processed()
        for gate in gates:
            gate.release()
    assert counts(run.result()) == {"refreshed": 9}


def test_cost_grows_with_what_is_due_and_not_with_what_is_stored(
    sandbox: Sandbox, due: Callable[..., Credential], connect: Connect
) -> None:
    costs = []
    Credential.objects.refresh_due()  # the first of a site makes rows
    for accounts in (ACCOUNTS[2:3], ACCOUNTS[3:]):
        for account in accounts:
            connect(account)
        for account in ACCOUNTS[:2]:
            due(account)
        with CaptureQueriesContext(connection) as queries:
            assert counts(Credential.objects.refresh_due()) == {"refreshed": 2}
        costs.append(len(queries))
    assert costs[0] == costs[1]


def test_run_asks_whose_a_nameless_credential_is(sandbox: Sandbox, db: None) -> None:
    reply = sandbox.issue("ab123")
    pair = TokenPair(reply["access_token"], reply["refresh_token"], 3600, None)
    nameless = Credential.objects.connect(pair, application=None)
    Credential.objects.update(refresh_at=timezone.now() - timedelta(minutes=1))
    assert counts(Credential.objects.refresh_due()) == {"refreshed": 1}
    assert row(nameless).account == "ab123"


def test_run_tells_its_counts_in_the_log(
    due: Callable[..., Credential], caplog: pytest.LogCaptureFixture
) -> None:
    due("ab123")
    caplog.set_level("INFO", logger="django_infusionsoft")
    Credential.objects.refresh_due()
    assert "run_finished refreshed=1 rejected=0" in caplog.text


# Several runs


def test_second_run_takes_what_the_first_has_not_claimed(
    transactional_db: None, sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    for account in ACCOUNTS:
        due(account)
    tokens = [row(each).refresh_token for each in Credential.objects.all()]
    gate = sandbox.hold("before", times=None)
    with threads(2) as start:
        runs = [start(Credential.objects.refresh_due) for _ in range(2)]
        gate.wait_until_arrived(2)  # both have begun
        gate.release()
    done = [run.result().refreshed for run in runs]
    assert sum(done) == len(ACCOUNTS)
    assert min(done) > 0
    assert [sandbox.presentations(token) for token in tokens] == [1] * len(tokens)


def test_run_looks_again_when_another_has_just_claimed_what_it_found(
    transactional_db: None, sandbox: Sandbox, due: Callable[..., Credential]
) -> None:
    due("acc01", 60)
    due("acc02")

    def be_faster(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith("UPDATE") and not others:
            others.append(None)
            with threads(1) as start:
                start(lambda: leases.claim_batch(Credential.objects.due(), 1)).result()
        return execute(sql, *rest)

    others: list[None] = []
    with connection.execute_wrapper(be_faster):
        assert counts(Credential.objects.refresh_due()) == {"refreshed": 1}


@pytest.mark.parametrize("transaction_mode", ["IMMEDIATE", "DEFERRED"])
def test_each_refresh_token_is_presented_once_when_many_runs_meet(
    transactional_db: None,
    sandbox: Sandbox,
    due: Callable[..., Credential],
    monkeypatch: pytest.MonkeyPatch,
    transaction_mode: str,
) -> None:
    if connection.vendor == "sqlite":
        options = connection.settings_dict["OPTIONS"] | {"transaction_mode": transaction_mode}
        monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    elif transaction_mode == "DEFERRED":
        pytest.skip("a mode of SQLite's")
    for account in ACCOUNTS:
        due(account)
    with threads(4) as start:
        runs = [start(Credential.objects.refresh_due) for _ in range(4)]
    assert sum(run.result().refreshed for run in runs) == len(ACCOUNTS)
    assert len(sandbox.token_requests) == len(ACCOUNTS)
    assert sandbox.replays == 0
