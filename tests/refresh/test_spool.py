"""The spool: token pairs that Keap has issued and the database does not have yet."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.db import DataError
from django.test import override_settings

from django_infusionsoft.checks.values import check_spooled
from django_infusionsoft.exceptions import ReauthorizationRequired, SpoolError
from django_infusionsoft.keap.oauth import TokenPair
from django_infusionsoft.models import Credential
from django_infusionsoft.refresh.leases import claim
from django_infusionsoft.refresh.recovery import recover
from django_infusionsoft.refresh.sending import Attempt, spool_key_of
from django_infusionsoft.refresh.spool import SpoolKey, load, pending, save
from django_infusionsoft.refresh.spool_folder import check
from django_infusionsoft.refresh.storing import AttemptResult, record_outcome
from django_infusionsoft.sandbox import Sandbox
from tests.support import end_leases, row

KEY_OF_PAIR = SpoolKey("site", 1, 5, "0123456789ab")
OTHER_KEY = "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q="
Connect = Callable[..., Credential]


@pytest.fixture
def pair() -> TokenPair:
    return TokenPair("new-access-token", "new-refresh-token", 3600, "ab123")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing


def test_loaded_pair_equals_the_saved_pair(pair: TokenPair) -> None:
    spooled = save(KEY_OF_PAIR, pair)
    found = load(KEY_OF_PAIR)
    assert found
    assert (found.pair.access_token, found.pair.refresh_token) == (
        "new-access-token",
        "new-refresh-token",
    )
    assert (found.pair.expires_in, found.pair.account) == (3600, "ab123")
    assert found.pair.seconds_left == pytest.approx(3600, abs=5)
    spooled.discard()


def test_loaded_pair_has_no_refresh_token_when_the_reply_had_none() -> None:
    spooled = save(KEY_OF_PAIR, TokenPair("new-access-token", None, 3600, None))
    found = load(KEY_OF_PAIR)
    assert found
    assert found.pair.refresh_token is None
    spooled.discard()


def test_file_is_encrypted_and_readable_by_its_owner_only(pair: TokenPair, spool: Path) -> None:
    old_mask = os.umask(0)
    try:
        spooled = save(KEY_OF_PAIR, pair)
    finally:
        os.umask(old_mask)
    assert spooled.path
    assert spool.stat().st_mode & 0o777 == 0o700
    assert spooled.path.stat().st_mode & 0o777 == 0o600
    for secret in (b"new-access-token", b"new-refresh-token"):
        assert secret not in spooled.path.read_bytes()
    assert "new-" not in repr(spooled)
    spooled.discard()
    assert files(spool) == []


def test_folder_is_not_used_when_others_can_open_it(
    pair: TokenPair, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool.mkdir()
    spool.chmod(0o750)
    assert save(KEY_OF_PAIR, pair).path is None
    assert "chmod 700" in caplog.text
    assert "chmod 700" in check()
    assert spool.stat().st_mode & 0o777 == 0o750


def test_link_is_not_followed(pair: TokenPair, spool: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    spool.symlink_to(tmp_path / "elsewhere")
    assert save(KEY_OF_PAIR, pair).path is None
    assert load(KEY_OF_PAIR) is None
    assert "is a file or a link, not a directory" in check()
    spool.unlink()


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_torn_file_is_ignored_and_removed_when_it_is_old(
    pair: TokenPair, spool: Path, backdated: Callable[[], None], part: float
) -> None:
    """Until then a process may be writing it."""
    spooled = save(KEY_OF_PAIR, pair)
    assert spooled.path
    whole = spooled.path.read_bytes()
    spooled.path.write_bytes(whole[: int(len(whole) * part)])
    assert load(KEY_OF_PAIR) is None
    assert list(pending("site")) == []
    assert len(files(spool)) == 1
    backdated()
    assert load(KEY_OF_PAIR) is None
    assert files(spool) == []


def test_folder_is_created_again_when_it_was_removed(pair: TokenPair, spool: Path) -> None:
    save(KEY_OF_PAIR, pair).discard()
    spool.rmdir()
    spooled = save(KEY_OF_PAIR, pair)
    assert load(KEY_OF_PAIR)
    assert spool.stat().st_mode & 0o777 == 0o700
    spooled.discard()


def test_second_answer_to_the_same_refresh_token_replaces_the_first(
    pair: TokenPair, spool: Path
) -> None:
    save(KEY_OF_PAIR, pair)
    spooled = save(KEY_OF_PAIR, TokenPair("later", "later", 3600, None))
    assert len(files(spool)) == 1
    found = load(KEY_OF_PAIR)
    assert found
    assert found.pair.access_token == "later"
    spooled.discard()


def test_lifetime_is_shortened_by_the_time_in_the_spool(
    pair: TokenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled = save(KEY_OF_PAIR, pair)
    an_hour_later = time.time() + 3000
    monkeypatch.setattr("time.time", lambda: an_hour_later)
    found = load(KEY_OF_PAIR)
    assert found
    assert found.pair.seconds_left == pytest.approx(600, abs=5)
    spooled.discard()


def test_lifetime_is_not_lengthened_when_the_clock_was_set_back(
    pair: TokenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled = save(KEY_OF_PAIR, pair)
    an_hour_before = time.time() - 3600
    monkeypatch.setattr("time.time", lambda: an_hour_before)
    found = load(KEY_OF_PAIR)
    assert found
    assert found.pair.seconds_left <= 3600
    spooled.discard()


def test_folder_name_contains_the_user_id(tmp_path: Path, pair: TokenPair) -> None:
    with override_settings(INFUSIONSOFT_SPOOL_DIR=f"{tmp_path}/of-{{uid}}"):
        spooled = save(KEY_OF_PAIR, pair)
    assert spooled.path
    assert spooled.path.parent == tmp_path / f"of-{os.geteuid()}"


@override_settings(INFUSIONSOFT_SPOOL_DIR="")
def test_nothing_is_written_when_there_is_no_spool(pair: TokenPair, spool: Path) -> None:
    spooled = save(KEY_OF_PAIR, pair)
    assert spooled.path is None
    assert not spooled.fsync()
    assert load(KEY_OF_PAIR) is None
    assert list(pending("site")) == []
    spooled.discard()
    assert not spool.exists()


def test_error_is_logged_and_not_raised_when_the_folder_cannot_be_created(
    tmp_path: Path, pair: TokenPair, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with override_settings(INFUSIONSOFT_SPOOL_DIR=tmp_path / "file" / "spool"):
        spooled = save(KEY_OF_PAIR, pair)
        assert not spooled.fsync()
    assert spooled.path is None
    assert "spool_unusable" in caplog.text
    assert "new-" not in caplog.text


# Loading


def test_only_the_holder_of_the_lease_uses_the_answer_before_storing_has_failed(
    expired: Credential, pair: TokenPair
) -> None:
    claimed = claim(expired)
    assert claimed
    spooled = save(spool_key_of(expired), pair, claimed.lease.id)
    assert not recover(expired)
    assert spooled.fsync()
    assert recover(expired)
    assert Credential.objects.get().access_token == "new-access-token"


def test_reader_uses_the_answer_at_once_when_storing_has_failed(
    expired: Credential, pair: TokenPair
) -> None:
    """A process that cannot store the pair cannot release its lease, which may last minutes."""
    claimed = claim(expired)
    assert claimed
    save(spool_key_of(expired), pair, claimed.lease.id).fsync()
    with override_settings(INFUSIONSOFT_WAIT_SECONDS=0.1):
        assert Credential.objects.get().get_access_token() == "new-access-token"


@pytest.mark.parametrize(
    "other",
    [
        SpoolKey("another-site", 1, 5, "0123456789ab"),
        SpoolKey("site", 2, 5, "0123456789ab"),
        SpoolKey("site", 1, 4, "0123456789ab"),
        SpoolKey("site", 1, 6, "0123456789ab"),
        SpoolKey("site", 1, 5, "ba9876543210"),
        SpoolKey("site", 1, 5, "0123456789ab", identity="another row"),
        SpoolKey("site", 1, 5, "0123456789ab", schema="another tenant"),
    ],
)
def test_answer_is_used_for_one_generation_of_one_credential_only(
    pair: TokenPair, other: SpoolKey
) -> None:
    spooled = save(KEY_OF_PAIR, pair)
    spooled.fsync()
    assert load(other) is None
    spooled.discard()


def test_files_of_other_sites_of_the_same_user_are_ignored(pair: TokenPair) -> None:
    spooled = save(SpoolKey("another-site", 1, 5, "0123456789ab"), pair)
    assert list(pending("site")) == []
    assert [each.key.database for each in pending("another-site")] == ["another-site"]
    spooled.discard()


# Unreadable files


def test_error_names_the_file_when_no_key_can_decrypt_it(pair: TokenPair) -> None:
    spooled = save(KEY_OF_PAIR, pair)
    with (
        override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]),
        pytest.raises(SpoolError, match=r"INFUSIONSOFT_ENCRYPTION_KEYS can decrypt .*\.reply"),
    ):
        load(KEY_OF_PAIR)
    spooled.discard()


def test_file_is_logged_and_kept_when_no_key_can_decrypt_it(
    pair: TokenPair, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spooled = save(KEY_OF_PAIR, pair)
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]):
        assert list(pending("site")) == []
    assert "spool_unreadable" in caplog.text
    assert len(files(spool)) == 1
    spooled.discard()


def test_error_is_raised_when_the_file_has_another_version(
    pair: TokenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("json.dumps", lambda content: '{"version": 2}')
        spooled = save(KEY_OF_PAIR, pair)
    with pytest.raises(SpoolError, match="does not recognize"):
        load(KEY_OF_PAIR)
    spooled.discard()


@pytest.mark.parametrize(
    "tokens",
    [("two\nlines", "refresh"), ("access", "\ud800"), ("", "refresh"), (5, "r"), ("a", ["r"])],
)
def test_error_is_raised_when_the_file_has_no_usable_tokens(tokens: tuple[Any, Any]) -> None:
    spooled = save(KEY_OF_PAIR, TokenPair(*tokens, 3600, "ab123"))
    with pytest.raises(SpoolError, match="does not recognize") as caught:
        load(KEY_OF_PAIR)
    assert caught.value.__cause__ is None  # it would show the tokens
    spooled.discard()


def test_other_pairs_are_stored_when_one_cannot_be(
    connect: Connect, pair: TokenPair, monkeypatch: pytest.MonkeyPatch, spool: Path
) -> None:
    first, second = connect("ab123"), connect("cd456")
    for each in (first, second):
        save(spool_key_of(each), pair).fsync()

    def store(attempt: Attempt, **options: Any) -> AttemptResult:
        if attempt.credential.pk == first.pk:
            raise DataError("a value that this database cannot store")
        return record_outcome(attempt, **options)

    with monkeypatch.context() as patch:
        patch.setattr("django_infusionsoft.refresh.recovery.record_outcome", store)
        assert Credential.objects.refresh_due().refreshed == 1
    assert Credential.objects.get(pk=second.pk).access_token == "new-access-token"
    assert len(files(spool)) == 1
    assert Credential.objects.refresh_due().refreshed == 1


def test_nothing_is_sent_when_a_spooled_answer_cannot_be_read(
    sandbox: Sandbox, credential: Credential, pair: TokenPair
) -> None:
    key = spool_key_of(credential)
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]):
        spooled = save(key, pair)
    Credential.objects.update(unanswered_attempts=1)  # by the attempt that left it
    with pytest.raises(SpoolError):
        credential.refresh()
    assert sandbox.token_requests == []
    stored = Credential.objects.get()
    assert (stored.status, stored.generation, stored.lease_until) == ("connected", 1, None)
    spooled.discard()


# The check


def test_check_passes_when_the_folder_can_be_created_or_belongs_to_this_user(
    spool: Path, pair: TokenPair
) -> None:
    assert check() == ""
    assert not spool.exists()
    save(KEY_OF_PAIR, pair).discard()
    assert check() == ""


def test_check_fails_when_it_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with override_settings(INFUSIONSOFT_SPOOL_DIR=tmp_path / "file"):
        assert "is a file or a link, not a directory" in check()


def test_check_fails_when_it_belongs_to_another_user(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.mkdir()
    monkeypatch.setattr("os.geteuid", lambda: spool.stat().st_uid + 1)
    assert "belongs to another user" in check()


def test_pair_is_not_written_to_another_users_folder(
    spool: Path, pair: TokenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.mkdir()
    monkeypatch.setattr("os.geteuid", lambda: spool.stat().st_uid + 1)
    assert save(KEY_OF_PAIR, pair).path is None
    assert files(spool) == []


# Files of other databases and other rows


OTHERS: dict[str, dict[str, Any]] = {
    "identity": {"identity": "0" * 32},
    "schema": {"schema": "another_tenant"},
    "database": {"database": "another-site"},
    "newer generation": {"generation": 7},
    "refresh token": {"fingerprint": "0123456789ab"},
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("is_generation_newer", [False, True])
def test_file_of_another_row_is_neither_stored_nor_deleted(
    credential: Credential,
    pair: TokenPair,
    spool: Path,
    other: str,
    *,
    is_generation_newer: bool,
    backdated: Callable[..., None],
) -> None:
    """Two sites or schemas may have the same database name, user and key."""
    spooled = save(replace(spool_key_of(credential), **OTHERS[other]), pair)
    spooled.fsync()
    if is_generation_newer:
        credential.refresh()
        credential.refresh()
    access_token = row(credential).access_token
    backdated(days=6.9)
    Credential.objects.refresh_due()
    assert len(files(spool)) == 1
    assert row(credential).access_token == access_token
    spooled.discard()


def test_file_of_another_row_is_reported_and_dropped_after_a_week(
    credential: Credential,
    pair: TokenPair,
    spool: Path,
    backdated: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    spooled = save(replace(spool_key_of(credential), identity="0" * 32), pair)
    backdated(days=1)
    for _ in range(2):
        Credential.objects.refresh_due()
    assert caplog.text.count("spool_file_kept") == 1
    assert str(spooled.path) in caplog.text
    (warning,) = check_spooled()
    assert warning.id == "django_infusionsoft.W022"
    backdated(days=8)
    Credential.objects.refresh_due()
    assert files(spool) == []
    assert "spooled_pair_without_a_row" in caplog.text
    assert check_spooled() == []


@pytest.mark.parametrize("is_waiting", [True, False])
def test_file_is_not_used_while_another_process_has_the_lease(
    expired: Credential, pair: TokenPair, spool: Path, *, is_waiting: bool
) -> None:
    """It may be about to present the refresh token."""
    spooled = save(spool_key_of(expired), pair, "an earlier lease")
    if is_waiting:
        spooled.fsync()
    assert claim(expired)
    assert not recover(expired)
    Credential.objects.refresh_due()
    assert len(files(spool)) == 1
    end_leases()
    assert Credential.objects.refresh_due().refreshed == 1
    assert row(expired).access_token == "new-access-token"


def test_identity_differs_for_each_row_and_never_changes(connect: Connect) -> None:
    first, second = connect("ab123"), connect("cd456")
    assert first.identity != second.identity
    first.refresh()
    assert connect("ab123").identity == first.identity == row(first).identity


def test_row_with_another_identity_is_never_taken_for_it(
    sandbox: Sandbox, expired: Credential
) -> None:
    """As in another schema, which has a row with the same primary key."""
    Credential.objects.update(identity=uuid4())
    with pytest.raises(ReauthorizationRequired, match="not in the database"):
        expired.get_access_token()
    assert sandbox.token_requests == []


# Files that are no longer needed


def test_file_is_discarded_without_an_event_when_its_process_stored_the_pair_and_died(
    credential: Credential, backdated: Callable[[], None]
) -> None:
    key = spool_key_of(credential)
    credential.refresh()
    save(key, TokenPair(credential.access_token, credential.refresh_token, 3600, None))
    backdated()
    Credential.objects.refresh_due()
    assert [event.kind for event in credential.events.all()] == ["refreshed", "imported"]


def test_file_is_kept_while_its_process_is_storing_the_pair(
    credential: Credential, spool: Path, backdated: Callable[[], None]
) -> None:
    key = spool_key_of(credential)
    credential.refresh()
    save(key, TokenPair(credential.access_token, credential.refresh_token, 3600, None))
    Credential.objects.refresh_due()
    assert len(files(spool)) == 1
    backdated()
    Credential.objects.refresh_due()
    assert files(spool) == []
