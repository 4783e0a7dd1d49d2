"""Profiles: names at Keap, and accounts that the token reply did not identify."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.test import override_settings

from django_infusionsoft.connect import profiles
from django_infusionsoft.keap.oauth import TokenPair
from django_infusionsoft.models import Credential
from django_infusionsoft.refresh import leases
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import failing_updates, threads

Connect = Callable[..., Credential]
OTHER_KEY = "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q="


@pytest.fixture
def unidentified(sandbox: Sandbox, db: None) -> Callable[[], Credential]:
    """Connect account ab123 by a token reply that does not name the account."""

    def make() -> Credential:
        reply = sandbox.issue("ab123")
        pair = TokenPair(reply["access_token"], reply["refresh_token"], 86_400, None)
        return Credential.objects.connect(pair, application=None)

    return make


def row(credential: Credential) -> Credential:
    return Credential.objects.get(pk=credential.pk)


def make_older(credential: Credential, **by: float) -> None:
    connected_at = credential.connected_at - timedelta(**by)
    Credential.objects.filter(pk=credential.pk).update(connected_at=connected_at)


def plan_api(sandbox: Sandbox, *answers: faults.Fault) -> None:
    """Plan faults for the API's next calls: userinfo v2, userinfo v1, account profile."""
    for fault in answers:
        sandbox.plan(fault, endpoint="api")


# Names


def test_names_stay_when_keap_answers_with_deeply_nested_json(
    sandbox: Sandbox, credential: Credential
) -> None:
    plan_api(sandbox, *[faults.answer(200, "[" * 100_000)] * 3)
    assert credential.fetch_profile() is credential
    assert row(credential).account_name == ""


def test_names_of_account_and_user_are_stored(credential: Credential) -> None:
    assert credential.fetch_profile() is credential
    stored = row(credential)
    assert (stored.account_name, stored.keap_user, stored.keap_user_is_admin) == (
        "Acme Bakery",
        "ana@example.test",
        True,
    )
    assert credential.account_name == "Acme Bakery"


def test_user_who_is_not_an_administrator_is_stored_as_such(connect: Connect) -> None:
    credential = connect("ef789")
    credential.fetch_profile()
    assert row(credential).keap_user_is_admin is False


def test_user_is_read_from_v1_when_v2_fails(sandbox: Sandbox, credential: Credential) -> None:
    plan_api(sandbox, faults.answer(404, {}))
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
def test_user_is_read_from_the_first_valid_field(
    sandbox: Sandbox, credential: Credential, answer: dict[str, Any], user: str
) -> None:
    plan_api(sandbox, faults.answer(200, answer), faults.answer(404))
    credential.fetch_profile()
    assert (row(credential).keap_user, row(credential).keap_user_is_admin) == (user, None)


def test_names_are_kept_when_keap_no_longer_returns_them(
    sandbox: Sandbox, credential: Credential
) -> None:
    credential.fetch_profile()
    plan_api(sandbox, *[faults.error_503()] * 3)
    credential.fetch_profile()
    assert row(credential).account_name == "Acme Bakery"
    assert row(credential).keap_user_is_admin is True


def test_account_is_unchanged_when_keap_names_another(
    sandbox: Sandbox, credential: Credential
) -> None:
    plan_api(sandbox, faults.answer(200, {"tenant_id": "cd456"}))
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
def test_nothing_is_raised_or_stored_when_the_api_fails(
    sandbox: Sandbox, credential: Credential, fault: faults.Fault
) -> None:
    before = row(credential)
    sandbox.plan(fault, endpoint="api", times=None)
    assert credential.fetch_profile() is credential
    after = row(credential)
    assert (after.account_name, after.keap_user, after.keap_user_is_admin) == ("", "", None)
    assert (after.status, after.generation) == (before.status, before.generation)


def test_nothing_is_raised_when_the_api_cannot_be_reached(credential: Credential) -> None:
    with override_settings(INFUSIONSOFT_API_URL="http://127.0.0.1:1/"):
        assert credential.fetch_profile() is credential


def test_fetch_ends_after_its_own_timeout(
    sandbox: Sandbox, credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "TIMEOUT_SECONDS", 0.1)
    sandbox.plan(faults.latency(5), endpoint="api", times=None)
    assert profiles.fetch(credential) == profiles.Profile()


def test_nothing_is_raised_when_the_api_rejects_every_access_token(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.answer(401, {}), endpoint="api", times=None)
    assert credential.fetch_profile() is credential
    assert row(credential).status == "connected"


def test_token_pair_is_not_refreshed_when_keap_rejects_the_access_token(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.revoke_access_tokens("ab123")
    assert credential.fetch_profile() is credential
    assert sandbox.token_requests == []


def test_nothing_is_raised_when_the_profile_cannot_be_stored(
    transactional_db: None, credential: Credential, caplog: pytest.LogCaptureFixture
) -> None:
    with failing_updates("gone"):
        assert credential.fetch_profile() is credential
    assert "profile_not_stored" in caplog.text


def test_name_is_stored_without_invalid_characters(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.answer(200, '{"name": "Bak\\ud800ery"}'), endpoint="api", times=None)
    credential.fetch_profile()
    assert row(credential).account_name == "Bakery"


def test_nothing_is_raised_when_the_credential_was_deleted_meanwhile(
    credential: Credential,
) -> None:
    orphan = row(credential)
    credential.delete()
    orphan.fetch_profile()
    assert not Credential.objects.exists()


def test_user_is_returned_when_only_the_account_profile_fails(
    sandbox: Sandbox, credential: Credential
) -> None:
    sandbox.plan(faults.edited(lambda answer: answer), endpoint="api")
    plan_api(sandbox, faults.drop_before())
    profile = profiles.fetch(credential)
    assert (profile.keap_user, profile.account_name) == ("ana@example.test", "")


# Identification


@pytest.mark.parametrize("tenant_id", ["bare", "host"])
def test_account_is_identified_by_userinfo(
    sandbox: Sandbox, unidentified: Callable[[], Credential], tenant_id: Any
) -> None:
    sandbox.switches.quota_headers = "off"
    sandbox.switches.tenant_id = tenant_id
    credential = unidentified()
    identified = credential.fetch_profile()
    assert (identified.pk, identified.account) == (credential.pk, "ab123")
    assert Credential.objects.for_account("ab123") == credential


def test_account_is_identified_by_the_headers_when_userinfo_has_no_tenant(
    sandbox: Sandbox, unidentified: Callable[[], Credential]
) -> None:
    sandbox.switches.tenant_id = "absent"
    assert unidentified().fetch_profile().account == "ab123"


def test_account_is_identified_by_the_headers_when_only_v1_responds(
    sandbox: Sandbox, unidentified: Callable[[], Credential]
) -> None:
    credential = unidentified()
    plan_api(sandbox, faults.answer(404, {}))
    assert credential.fetch_profile().account == "ab123"


def test_account_stays_unidentified_when_no_response_names_it(
    sandbox: Sandbox, unidentified: Callable[[], Credential]
) -> None:
    sandbox.switches.tenant_id = "absent"
    sandbox.switches.quota_headers = "off"
    credential = unidentified()
    assert credential.fetch_profile() is credential
    assert row(credential).account is None
    assert row(credential).keap_user == "ana@example.test"


def test_identification_writes_an_event(unidentified: Callable[[], Credential]) -> None:
    identified = unidentified().fetch_profile()
    assert [event.kind for event in identified.events.order_by("pk")] == [
        "connected",
        "identified",
    ]
    assert identified.account_name == "Acme Bakery"


def test_identified_credential_keeps_its_token_pair_and_generation(
    sandbox: Sandbox, unidentified: Callable[[], Credential]
) -> None:
    credential = unidentified()
    identified = credential.fetch_profile()
    assert identified.access_token == credential.access_token
    assert identified.generation == 1
    identified.refresh()
    assert sandbox.replays == 0


def test_token_pair_is_merged_into_the_known_row_when_it_is_newer(
    unidentified: Callable[[], Credential], connect: Connect
) -> None:
    known = connect()
    make_older(known, minutes=1)
    credential = unidentified()
    holder = credential.fetch_profile()
    assert holder.pk == known.pk
    assert not Credential.objects.filter(pk=credential.pk).exists()
    stored = row(known)
    assert (stored.access_token, stored.refresh_token) == (
        credential.access_token,
        credential.refresh_token,
    )
    assert (stored.generation, stored.connected_at) == (2, row(holder).connected_at)
    assert (stored.account_name, stored.keap_user) == ("Acme Bakery", "ana@example.test")


def test_token_pair_of_the_known_row_is_kept_when_it_is_newer(
    unidentified: Callable[[], Credential], connect: Connect
) -> None:
    credential = unidentified()
    make_older(credential, minutes=1)
    known = connect()
    holder = credential.fetch_profile()
    assert holder.pk == known.pk
    assert not Credential.objects.filter(pk=credential.pk).exists()
    assert (row(known).access_token, row(known).generation) == (known.access_token, 1)


def test_valid_token_pair_is_merged_when_the_newer_one_is_invalid(
    unidentified: Callable[[], Credential], connect: Connect
) -> None:
    credential = unidentified()
    make_older(credential, minutes=1)
    known = connect()
    Credential.objects.filter(pk=known.pk).update(status="reauthorization_required")
    assert credential.fetch_profile().pk == known.pk
    stored = row(known)
    assert (stored.access_token, stored.status) == (credential.access_token, "connected")


def test_merged_token_pair_is_valid_and_can_be_refreshed(
    sandbox: Sandbox, unidentified: Callable[[], Credential], connect: Connect
) -> None:
    make_older(connect(), minutes=1)
    holder = unidentified().fetch_profile()
    assert holder.session().get("v2/contacts").ok
    holder.refresh()
    assert (row(holder).generation, sandbox.replays) == (3, 0)


def test_history_is_merged_with_the_row(
    unidentified: Callable[[], Credential], connect: Connect
) -> None:
    known = connect()
    make_older(known, minutes=1)
    holder = unidentified().fetch_profile()
    kinds = [event.kind for event in holder.events.order_by("pk")]
    assert kinds == ["imported", "connected", "identified"]


def test_lease_of_a_running_refresh_is_released_when_a_newer_token_pair_is_merged(
    unidentified: Callable[[], Credential], connect: Connect
) -> None:
    known = connect()
    make_older(known, minutes=1)
    claimed = leases.claim(known)
    assert claimed is not None
    unidentified().fetch_profile()
    assert not leases.held(known, claimed.lease.id, known.generation).exists()
    assert row(known).lease_until is None


def test_row_is_not_merged_while_it_is_being_refreshed(
    unidentified: Callable[[], Credential], connect: Connect
) -> None:
    make_older(connect(), minutes=1)
    credential = unidentified()
    assert leases.claim(credential)
    assert credential.fetch_profile() is credential
    assert row(credential).account is None
    Credential.objects.update(lease_until=None, lease_id="")
    assert credential.fetch_profile().account == "ab123"
    assert Credential.objects.count() == 1


def test_account_is_identified_while_it_is_being_refreshed(
    unidentified: Callable[[], Credential],
) -> None:
    credential = unidentified()
    claimed = leases.claim(credential)
    assert claimed is not None
    assert credential.fetch_profile().account == "ab123"
    assert leases.held(credential, claimed.lease.id, credential.generation).exists()


def test_token_pair_is_merged_without_decrypting_it(
    unidentified: Callable[[], Credential], connect: Connect
) -> None:
    known = connect()
    make_older(known, minutes=1)
    credential = unidentified()
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]):
        holder = profiles._identify(row(credential), "ab123", {})  # noqa: SLF001
    assert row(holder).refresh_token == credential.refresh_token


def test_accounts_of_other_applications_are_not_merged(
    sandbox: Sandbox, unidentified: Callable[[], Credential], connect: Connect
) -> None:
    from django_infusionsoft.models import Application

    application = Application.objects.create(name="A", client_id="a", client_secret="s")
    other = connect()
    Credential.objects.filter(pk=other.pk).update(application=application)
    credential = unidentified()
    assert credential.fetch_profile().pk == credential.pk
    assert row(other).access_token == other.access_token


# Concurrency


def test_credential_is_returned_when_it_was_identified_meanwhile(
    unidentified: Callable[[], Credential],
) -> None:
    credential = unidentified()
    slow = row(credential)
    credential.fetch_profile()
    assert slow.fetch_profile().pk == credential.pk
    assert row(credential).account == "ab123"
    assert [event.kind for event in credential.events.all()].count("identified") == 1


def test_known_row_is_returned_when_the_token_pair_was_merged_meanwhile(
    unidentified: Callable[[], Credential], connect: Connect
) -> None:
    known = connect()
    make_older(known, minutes=1)
    credential = unidentified()
    slow = row(credential)
    credential.fetch_profile()
    assert profiles._identify(slow, "ab123", {}).pk == known.pk  # noqa: SLF001


def test_row_with_another_identity_is_not_identified(
    unidentified: Callable[[], Credential],
) -> None:
    """As in another schema, which has a row with the same primary key."""
    credential = unidentified()
    Credential.objects.update(identity=uuid4())
    credential.fetch_profile()
    assert row(credential).account is None


@pytest.fixture
def before_identification() -> Callable[[Callable[[], object]], Any]:
    """Run an action in another connection just before a credential gets its account."""

    def install(action: Callable[[], object]) -> Any:
        pending = [action]

        def wrapper(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
            if sql.startswith("UPDATE") and '"account" =' in sql.replace("`", '"') and pending:
                with threads(1) as start:
                    start(pending.pop()).result()
            return execute(sql, *rest)

        return connection.execute_wrapper(wrapper)

    return install


def test_one_row_remains_when_two_are_identified_at_the_same_moment(
    transactional_db: None,
    unidentified: Callable[[], Credential],
    connect: Connect,
    before_identification: Callable[[Callable[[], object]], Any],
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite lets one writer in at a time")
    first, second = unidentified(), unidentified()
    make_older(first, minutes=1)
    with before_identification(lambda: row(first).fetch_profile()):
        holder = row(second).fetch_profile()
    assert Credential.objects.get() == holder
    assert row(holder).access_token == second.access_token


def test_concurrent_identifications_leave_one_row_with_the_newest_token_pair(
    transactional_db: None, unidentified: Callable[[], Credential]
) -> None:
    made = [unidentified() for _ in range(4)]
    for minutes, credential in enumerate(reversed(made)):
        make_older(credential, minutes=minutes)
    loaded = [row(credential) for credential in made * 2]
    with threads(8) as start:
        tasks = [start(credential.fetch_profile) for credential in loaded]
    for task in tasks:
        task.result()
    stored = Credential.objects.get()
    assert stored.account == "ab123"
    assert stored.access_token == made[-1].access_token


# The caller's transaction


def test_identification_is_kept_when_the_caller_rolls_back(
    deferred: None, unidentified: Callable[[], Credential], connect: Connect
) -> None:
    make_older(connect(), minutes=1)
    credential = unidentified()
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
