"""Who it is that we are connected to: names, and accounts that the token reply did not tell."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import override_settings

from django_infusionsoft import leases, profiles
from django_infusionsoft.models import Credential
from django_infusionsoft.oauth import TokenPair
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import failing_updates, threads

Connect = Callable[..., Credential]
OTHER_KEY = "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q="


@pytest.fixture
def nameless(sandbox: Sandbox, db: None) -> Callable[[], Credential]:
    """Connect ab123 without being told that it is ab123."""

    def make() -> Credential:
        reply = sandbox.issue("ab123")
        pair = TokenPair(reply["access_token"], reply["refresh_token"], 86_400, None)
        return Credential.objects.connect(pair, application=None)

    return make


def row(credential: Credential) -> Credential:
    return Credential.objects.get(pk=credential.pk)


def made_older(credential: Credential, **by: float) -> None:
    connected_at = credential.connected_at - timedelta(**by)
    Credential.objects.filter(pk=credential.pk).update(connected_at=connected_at)


def in_api(sandbox: Sandbox, *answers: faults.Fault) -> None:
    """Let the API's next calls go wrong: userinfo v2, userinfo v1, account profile."""
    for fault in answers:
        sandbox.plan(fault, endpoint="api")


# Names


def test_names_are_stored(credential: Credential) -> None:
    assert credential.fetch_profile() is credential
    stored = row(credential)
    assert (stored.account_name, stored.keap_user, stored.keap_user_is_admin) == (
        "Acme Bakery",
        "ana@example.test",
        True,
    )
    assert credential.account_name == "Acme Bakery"


def test_user_is_told_to_be_no_admin_when_he_is_none(connect: Connect) -> None:
    credential = connect("ef789")
    credential.fetch_profile()
    assert row(credential).keap_user_is_admin is False


def test_user_is_taken_from_v1_when_v2_does_not_know(
    sandbox: Sandbox, credential: Credential
) -> None:
    in_api(sandbox, faults.answer(404, {}))
    assert profiles.fetch(credential).keap_user == "ana@example.test"


@pytest.mark.parametrize(
    ("answer", "user"),
    [
        ({"email": "a@x.test", "keap_id": "b@x.test"}, "a@x.test"),
        ({"keap_id": "b@x.test"}, "b@x.test"),
        ({"infusionsoft_id": "c@x.test"}, "c@x.test"),
        ({"email": "", "keap_id": "b@x.test"}, "b@x.test"),
        ({"email": 7, "keap_id": "b@x.test"}, "b@x.test"),
        ({"email": None, "sub": "1"}, ""),
        ({"email": "x" * 500}, "x" * 200),
        ({"email": "a\0b"}, "ab"),
        ({"is_admin": "yes", "email": ["a"]}, ""),
    ],
)
def test_user_is_read_from_whatever_the_answer_holds(
    sandbox: Sandbox, credential: Credential, answer: dict[str, Any], user: str
) -> None:
    in_api(sandbox, faults.answer(200, answer), faults.answer(404))
    credential.fetch_profile()
    assert (row(credential).keap_user, row(credential).keap_user_is_admin) == (user, None)


def test_names_stay_when_keap_does_not_tell_them_any_more(
    sandbox: Sandbox, credential: Credential
) -> None:
    credential.fetch_profile()
    in_api(sandbox, *[faults.error_503()] * 3)
    credential.fetch_profile()
    assert row(credential).account_name == "Acme Bakery"
    assert row(credential).keap_user_is_admin is True


def test_account_is_not_changed_when_keap_names_another_one(
    sandbox: Sandbox, credential: Credential
) -> None:
    in_api(sandbox, faults.answer(200, {"tenant_id": "cd456"}))
    assert credential.fetch_profile().account == row(credential).account == "ab123"


# Best effort


@pytest.mark.parametrize(
    "fault",
    [
        faults.error_500(),
        faults.error_596(),
        faults.throttled(),
        faults.html(),
        faults.empty(),
        faults.drop_before(),
        faults.drop_midway(),
        faults.answer(403, {"message": "no"}),
        faults.answer(200, "[1, 2]"),
        faults.answer(200, "null"),
        faults.answer(200, '"text"'),
        faults.answer(200, b"\xff\xfe"),
        faults.answer(200, '{"email": "a'),
        faults.answer(302, headers={"Location": "http://127.0.0.1:1/"}),
    ],
    ids=str,
)
def test_nothing_is_raised_and_nothing_stored_when_the_api_is_not_itself(
    sandbox: Sandbox, credential: Credential, fault: faults.Fault
) -> None:
    before = row(credential)
    sandbox.plan(fault, endpoint="api", times=None)
    assert credential.fetch_profile() is credential
    after = row(credential)
    assert (after.account_name, after.keap_user, after.keap_user_is_admin) == ("", "", None)
    assert (after.status, after.generation) == (before.status, before.generation)


def test_nothing_is_raised_when_nobody_listens(credential: Credential) -> None:
    with override_settings(INFUSIONSOFT_API_URL="http://127.0.0.1:1/"):
        assert credential.fetch_profile() is credential


def test_person_does_not_wait_longer_than_the_profiles_own_timeout(
    sandbox: Sandbox, credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "TIMEOUT_SECONDS", 0.1)
    sandbox.plan(faults.latency(5), endpoint="api", times=None)
    assert profiles.fetch(credential) == profiles.Profile()


def test_nothing_is_raised_when_the_api_refuses_every_access_token(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.answer(401, {}), endpoint="api", times=None)
    assert credential.fetch_profile() is credential
    assert row(credential).status == "connected"


def test_name_is_not_worth_a_refresh_when_keap_refuses_the_access_token(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke_access_tokens("ab123")
    assert credential.fetch_profile() is credential
    assert sandbox.token_requests == []


def test_connection_stands_when_the_profile_cannot_be_stored(
    transactional_db: None, credential: Credential, caplog: pytest.LogCaptureFixture
) -> None:
    with failing_updates("gone"):
        assert credential.fetch_profile() is credential
    assert "profile_not_stored" in caplog.text


def test_name_is_stored_as_far_as_it_is_text(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.plan(faults.answer(200, '{"name": "Bak\\ud800ery"}'), endpoint="api", times=None)
    credential.fetch_profile()
    assert row(credential).account_name == "Bakery"


def test_nothing_is_raised_when_the_credential_is_deleted_meanwhile(
    credential: Credential,
) -> None:
    orphan = row(credential)
    credential.delete()
    orphan.fetch_profile()
    assert not Credential.objects.exists()


def test_user_is_known_when_only_the_account_profile_fails(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.edited(lambda answer: answer), endpoint="api")
    in_api(sandbox, faults.drop_before())
    profile = profiles.fetch(credential)
    assert (profile.keap_user, profile.account_name) == ("ana@example.test", "")


# A name for the nameless


@pytest.mark.parametrize("tenant_id", ["bare", "host"])
def test_account_is_named_by_userinfo(
    sandbox: Sandbox, nameless: Callable[[], Credential], tenant_id: Any
) -> None:
    sandbox.switches.quota_headers = "off"
    sandbox.switches.tenant_id = tenant_id
    credential = nameless()
    identified = credential.fetch_profile()
    assert (identified.pk, identified.account) == (credential.pk, "ab123")
    assert Credential.objects.for_account("ab123") == credential


def test_account_is_named_by_the_headers_when_userinfo_has_no_tenant(
    sandbox: Sandbox, nameless: Callable[[], Credential]
) -> None:
    sandbox.switches.tenant_id = "absent"
    assert nameless().fetch_profile().account == "ab123"


def test_account_is_named_by_the_headers_when_only_v1_answers(
    sandbox: Sandbox, nameless: Callable[[], Credential]
) -> None:
    credential = nameless()
    in_api(sandbox, faults.answer(404, {}))
    assert credential.fetch_profile().account == "ab123"


def test_account_stays_unknown_when_nothing_names_it(
    sandbox: Sandbox, nameless: Callable[[], Credential]
) -> None:
    sandbox.switches.tenant_id = "absent"
    sandbox.switches.quota_headers = "off"
    credential = nameless()
    assert credential.fetch_profile() is credential
    assert row(credential).account is None
    assert row(credential).keap_user == "ana@example.test"


def test_identification_is_told_by_an_event(nameless: Callable[[], Credential]) -> None:
    identified = nameless().fetch_profile()
    assert [event.kind for event in identified.events.order_by("pk")] == [
        "connected",
        "identified",
    ]
    assert identified.account_name == "Acme Bakery"


def test_identified_credential_keeps_its_pair_and_generation(
    sandbox: Sandbox, nameless: Callable[[], Credential]
) -> None:
    credential = nameless()
    identified = credential.fetch_profile()
    assert identified.access_token == credential.access_token
    assert identified.generation == 1
    identified.refresh()
    assert sandbox.replays == 0


def test_pair_moves_into_the_accounts_row_when_it_is_the_later(
    nameless: Callable[[], Credential], connect: Connect
) -> None:
    home = connect()
    made_older(home, minutes=1)
    credential = nameless()
    holder = credential.fetch_profile()
    assert holder.pk == home.pk
    assert not Credential.objects.filter(pk=credential.pk).exists()
    stored = row(home)
    assert (stored.access_token, stored.refresh_token) == (
        credential.access_token,
        credential.refresh_token,
    )
    assert (stored.generation, stored.connected_at) == (2, row(holder).connected_at)
    assert (stored.account_name, stored.keap_user) == ("Acme Bakery", "ana@example.test")


def test_pair_in_the_accounts_row_stays_when_it_is_the_later(
    nameless: Callable[[], Credential], connect: Connect
) -> None:
    credential = nameless()
    made_older(credential, minutes=1)
    home = connect()
    holder = credential.fetch_profile()
    assert holder.pk == home.pk
    assert not Credential.objects.filter(pk=credential.pk).exists()
    assert (row(home).access_token, row(home).generation) == (home.access_token, 1)


def test_living_pair_moves_in_when_the_later_one_is_dead(
    nameless: Callable[[], Credential], connect: Connect
) -> None:
    credential = nameless()
    made_older(credential, minutes=1)
    home = connect()
    Credential.objects.filter(pk=home.pk).update(status="reauthorization_required")
    assert credential.fetch_profile().pk == home.pk
    stored = row(home)
    assert (stored.access_token, stored.status) == (credential.access_token, "connected")


def test_moved_pair_works_and_can_be_refreshed(
    sandbox: Sandbox, nameless: Callable[[], Credential], connect: Connect
) -> None:
    made_older(connect(), minutes=1)
    holder = nameless().fetch_profile()
    assert holder.session().get("v2/contacts").ok
    holder.refresh()
    assert (row(holder).generation, sandbox.replays) == (3, 0)


def test_history_moves_along(nameless: Callable[[], Credential], connect: Connect) -> None:
    home = connect()
    made_older(home, minutes=1)
    holder = nameless().fetch_profile()
    kinds = [event.kind for event in holder.events.order_by("pk")]
    assert kinds == ["imported", "connected", "identified"]


def test_reply_of_a_refresh_under_way_is_dropped_when_a_later_pair_moves_in(
    nameless: Callable[[], Credential], connect: Connect
) -> None:
    home = connect()
    made_older(home, minutes=1)
    claimed = leases.claim(home)
    assert claimed is not None
    nameless().fetch_profile()
    assert not leases.held(home, claimed.lease.id, home.generation).exists()
    assert row(home).lease_until is None


def test_pair_stays_where_it_is_while_it_is_being_refreshed(
    nameless: Callable[[], Credential], connect: Connect
) -> None:
    made_older(connect(), minutes=1)
    credential = nameless()
    assert leases.claim(credential)
    assert credential.fetch_profile() is credential
    assert row(credential).account is None
    Credential.objects.update(lease_until=None, lease_id="")
    assert credential.fetch_profile().account == "ab123"
    assert Credential.objects.count() == 1


def test_name_is_given_even_while_the_pair_is_being_refreshed(
    nameless: Callable[[], Credential],
) -> None:
    credential = nameless()
    claimed = leases.claim(credential)
    assert claimed is not None
    assert credential.fetch_profile().account == "ab123"
    assert leases.held(credential, claimed.lease.id, credential.generation).exists()


def test_secret_that_no_key_opens_moves_unopened(
    nameless: Callable[[], Credential], connect: Connect
) -> None:
    home = connect()
    made_older(home, minutes=1)
    credential = nameless()
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]):
        holder = profiles._identify(row(credential), "ab123", {})  # noqa: SLF001
    assert row(holder).refresh_token == credential.refresh_token


def test_accounts_of_other_applications_stay_apart(
    sandbox: Sandbox, nameless: Callable[[], Credential], connect: Connect
) -> None:
    from django_infusionsoft.models import Application

    application = Application.objects.create(name="A", client_id="a", client_secret="s")
    other = connect()
    Credential.objects.filter(pk=other.pk).update(application=application)
    credential = nameless()
    assert credential.fetch_profile().pk == credential.pk
    assert row(other).access_token == other.access_token


# Several at once


def test_credential_is_kept_when_it_was_identified_meanwhile(
    nameless: Callable[[], Credential],
) -> None:
    credential = nameless()
    slow = row(credential)
    credential.fetch_profile()
    assert slow.fetch_profile().pk == credential.pk
    assert row(credential).account == "ab123"
    assert [event.kind for event in credential.events.all()].count("identified") == 1


def test_accounts_row_is_returned_when_the_pair_was_moved_meanwhile(
    nameless: Callable[[], Credential], connect: Connect
) -> None:
    home = connect()
    made_older(home, minutes=1)
    credential = nameless()
    slow = row(credential)
    credential.fetch_profile()
    assert profiles._identify(slow, "ab123", {}).pk == home.pk  # noqa: SLF001


@pytest.fixture
def meanwhile() -> Callable[[Callable[[], object]], Any]:
    """Do something in another connection just before a credential is given its name."""

    def install(action: Callable[[], object]) -> Any:
        todo = [action]

        def wrapper(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
            if sql.startswith("UPDATE") and '"account" =' in sql.replace("`", '"') and todo:
                with threads(1) as start:
                    start(todo.pop()).result()
            return execute(sql, *rest)

        return connection.execute_wrapper(wrapper)

    return install


def test_pairs_meet_in_one_row_when_two_are_identified_at_the_same_moment(
    transactional_db: None,
    nameless: Callable[[], Credential],
    connect: Connect,
    meanwhile: Callable[[Callable[[], object]], Any],
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite lets one writer in at a time")
    first, second = nameless(), nameless()
    made_older(first, minutes=1)
    with meanwhile(lambda: row(first).fetch_profile()):
        holder = row(second).fetch_profile()
    assert Credential.objects.get() == holder
    assert row(holder).access_token == second.access_token


def test_many_identifications_at_once_leave_one_row_with_the_latest_pair(
    transactional_db: None, nameless: Callable[[], Credential]
) -> None:
    made = [nameless() for _ in range(4)]
    for minutes, credential in enumerate(reversed(made)):
        made_older(credential, minutes=minutes)
    loaded = [row(credential) for credential in made * 2]
    with threads(8) as start:
        tasks = [start(credential.fetch_profile) for credential in loaded]
    for task in tasks:
        task.result()
    stored = Credential.objects.get()
    assert stored.account == "ab123"
    assert stored.access_token == made[-1].access_token


# Inside a caller's transaction


def test_identification_survives_when_the_caller_rolls_back(
    deferred: None, nameless: Callable[[], Credential], connect: Connect
) -> None:
    made_older(connect(), minutes=1)
    credential = nameless()
    with transaction.atomic():
        row(credential).fetch_profile()
        transaction.set_rollback(True)
    stored = Credential.objects.get()
    assert (stored.account, stored.access_token) == ("ab123", credential.access_token)


def test_names_are_stored_inside_a_callers_transaction(
    transactional_db: None, credential: Credential
) -> None:
    with transaction.atomic():
        credential.fetch_profile()
    assert row(credential).account_name == "Acme Bakery"
