"""The spool: pairs that Keap has given and the database does not have yet."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from django.test import override_settings

from django_infusionsoft.attempts import place_of
from django_infusionsoft.exceptions import SpoolError
from django_infusionsoft.models import Credential
from django_infusionsoft.oauth import TokenPair
from django_infusionsoft.sandbox import Sandbox
from django_infusionsoft.spool import Place, find, keep, problem, waiting

PLACE = Place("site", 1, 5, "0123456789ab")
OTHER_KEY = "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q="
Connect = Callable[..., Credential]


@pytest.fixture
def pair() -> TokenPair:
    return TokenPair("new-access-token", "new-refresh-token", 3600, "ab123")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing


def test_pair_comes_back_as_it_was(pair: TokenPair) -> None:
    slip = keep(PLACE, pair)
    found = find(PLACE, in_flight=True)
    assert found
    assert (found.pair.access_token, found.pair.refresh_token) == (
        "new-access-token",
        "new-refresh-token",
    )
    assert (found.pair.expires_in, found.pair.account) == (3600, "ab123")
    assert found.pair.seconds_left == pytest.approx(3600, abs=5)
    slip.forget()


def test_refresh_token_that_was_not_named_stays_unnamed() -> None:
    slip = keep(PLACE, TokenPair("new-access-token", None, 3600, None))
    found = find(PLACE, in_flight=True)
    assert found
    assert found.pair.refresh_token is None
    slip.forget()


def test_pair_is_encrypted_and_closed_to_others(pair: TokenPair, spool: Path) -> None:
    old_mask = os.umask(0)
    try:
        slip = keep(PLACE, pair)
    finally:
        os.umask(old_mask)
    assert slip.path
    assert spool.stat().st_mode & 0o777 == 0o700
    assert slip.path.stat().st_mode & 0o777 == 0o600
    for secret in (b"new-access-token", b"new-refresh-token"):
        assert secret not in slip.path.read_bytes()
    assert "new-" not in repr(slip)
    slip.forget()
    assert files(spool) == []


def test_folder_that_others_can_open_is_not_used(
    pair: TokenPair, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool.mkdir()
    spool.chmod(0o750)
    assert keep(PLACE, pair).path is None
    assert "chmod 700" in caplog.text
    assert "chmod 700" in problem()
    assert spool.stat().st_mode & 0o777 == 0o750


def test_link_is_not_followed(pair: TokenPair, spool: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    spool.symlink_to(tmp_path / "elsewhere")
    assert keep(PLACE, pair).path is None
    assert find(PLACE, in_flight=True) is None
    assert "is not a folder, but" in problem()
    spool.unlink()


def test_empty_file_is_removed(pair: TokenPair, spool: Path) -> None:
    slip = keep(PLACE, pair)
    assert slip.path
    slip.path.write_bytes(b"")
    assert find(PLACE, in_flight=True) is None
    assert files(spool) == []


def test_second_answer_to_the_same_refresh_token_takes_the_place_of_the_first(
    pair: TokenPair, spool: Path
) -> None:
    keep(PLACE, pair)
    slip = keep(PLACE, TokenPair("later", "later", 3600, None))
    assert len(files(spool)) == 1
    found = find(PLACE, in_flight=True)
    assert found
    assert found.pair.access_token == "later"
    slip.forget()


def test_time_in_the_spool_counts(pair: TokenPair, monkeypatch: pytest.MonkeyPatch) -> None:
    slip = keep(PLACE, pair)
    an_hour_later = time.time() + 3000
    monkeypatch.setattr("time.time", lambda: an_hour_later)
    found = find(PLACE, in_flight=True)
    assert found
    assert found.pair.seconds_left == pytest.approx(600, abs=5)
    slip.forget()


def test_clock_that_was_set_back_lengthens_no_life(
    pair: TokenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    slip = keep(PLACE, pair)
    an_hour_before = time.time() - 3600
    monkeypatch.setattr("time.time", lambda: an_hour_before)
    found = find(PLACE, in_flight=True)
    assert found
    assert found.pair.seconds_left <= 3600
    slip.forget()


def test_folder_is_named_by_the_user(tmp_path: Path, pair: TokenPair) -> None:
    with override_settings(INFUSIONSOFT_SPOOL_DIR=f"{tmp_path}/of-{{uid}}"):
        slip = keep(PLACE, pair)
    assert slip.path
    assert slip.path.parent == tmp_path / f"of-{os.geteuid()}"


@override_settings(INFUSIONSOFT_SPOOL_DIR="")
def test_nothing_is_written_when_there_is_no_spool(pair: TokenPair, spool: Path) -> None:
    slip = keep(PLACE, pair)
    assert slip.path is None
    assert not slip.secure()
    assert find(PLACE, in_flight=True) is None
    assert list(waiting("site")) == []
    slip.forget()
    assert not spool.exists()


def test_folder_that_cannot_be_made_is_told_and_stops_nothing(
    tmp_path: Path, pair: TokenPair, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with override_settings(INFUSIONSOFT_SPOOL_DIR=tmp_path / "file" / "spool"):
        slip = keep(PLACE, pair)
        assert not slip.secure()
    assert slip.path is None
    assert "spool_not_written credential=1" in caplog.text
    assert "new-" not in caplog.text


# Finding


def test_answer_in_flight_is_only_for_who_holds_the_lease(pair: TokenPair) -> None:
    slip = keep(PLACE, pair)
    assert find(PLACE, in_flight=False) is None
    assert slip.secure()
    assert find(PLACE, in_flight=False)
    slip.forget()


@pytest.mark.parametrize(
    "other",
    [
        Place("another-site", 1, 5, "0123456789ab"),
        Place("site", 2, 5, "0123456789ab"),
        Place("site", 1, 4, "0123456789ab"),
        Place("site", 1, 6, "0123456789ab"),
        Place("site", 1, 5, "ba9876543210"),
    ],
)
def test_answer_is_for_one_generation_of_one_credential(pair: TokenPair, other: Place) -> None:
    slip = keep(PLACE, pair)
    slip.secure()
    assert find(other, in_flight=True) is None
    slip.forget()


def test_other_sites_of_the_same_user_are_left_alone(pair: TokenPair) -> None:
    slip = keep(Place("another-site", 1, 5, "0123456789ab"), pair)
    assert list(waiting("site")) == []
    assert [each.place.database for each in waiting("another-site")] == ["another-site"]
    slip.forget()


def test_half_written_file_is_removed_when_it_is_old(
    spool: Path, pair: TokenPair, backdated: Callable[[], None]
) -> None:
    keep(PLACE, pair).forget()
    (spool / ".half-written-abc").write_text("…")
    assert list(waiting("site")) == []
    assert files(spool) == [".half-written-abc"]
    backdated()
    assert list(waiting("site")) == []
    assert files(spool) == []


# What cannot be read


def test_error_names_the_file_when_no_key_opens_it(pair: TokenPair) -> None:
    slip = keep(PLACE, pair)
    with (
        override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]),
        pytest.raises(SpoolError, match=r"INFUSIONSOFT_ENCRYPTION_KEYS opens .*\.reply"),
    ):
        find(PLACE, in_flight=True)
    slip.forget()


def test_file_that_no_key_opens_is_told_and_kept(
    pair: TokenPair, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slip = keep(PLACE, pair)
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]):
        assert list(waiting("site")) == []
    assert "spool_unreadable" in caplog.text
    assert len(files(spool)) == 1
    slip.forget()


def test_file_of_another_version_is_an_error(
    pair: TokenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("json.dumps", lambda content: '{"version": 2}')
        slip = keep(PLACE, pair)
    with pytest.raises(SpoolError, match="does not know"):
        find(PLACE, in_flight=True)
    slip.forget()


def test_nothing_is_sent_when_the_answer_is_there_and_cannot_be_read(
    sandbox: Sandbox, credential: Credential, pair: TokenPair
) -> None:
    slip = keep(place_of(credential), pair)
    assert slip.path
    slip.path.write_bytes(b"damaged")
    with pytest.raises(SpoolError):
        credential.refresh()
    assert sandbox.token_requests == []
    stored = Credential.objects.get()
    assert (stored.status, stored.generation, stored.lease_until) == ("connected", 1, None)
    slip.forget()


# The check


def test_no_problem_when_it_can_be_made_or_is_ours(spool: Path, pair: TokenPair) -> None:
    assert problem() == ""
    assert not spool.exists()
    keep(PLACE, pair).forget()
    assert problem() == ""


def test_problem_is_told_when_it_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with override_settings(INFUSIONSOFT_SPOOL_DIR=tmp_path / "file"):
        assert "is not a folder, but" in problem()


def test_problem_is_told_when_it_is_another_users(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.mkdir()
    monkeypatch.setattr("os.geteuid", lambda: spool.stat().st_uid + 1)
    assert "another user's" in problem()


def test_pair_is_not_written_to_another_users_folder(
    spool: Path, pair: TokenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.mkdir()
    monkeypatch.setattr("os.geteuid", lambda: spool.stat().st_uid + 1)
    assert keep(PLACE, pair).path is None
    assert files(spool) == []


# What belongs nowhere


def test_pair_that_its_process_stored_before_it_died_is_forgotten_silently(
    credential: Credential, backdated: Callable[[], None]
) -> None:
    place = place_of(credential)
    credential.refresh()
    keep(place, TokenPair(credential.access_token, credential.refresh_token, 3600, None))
    backdated()
    Credential.objects.refresh_due()
    assert [event.kind for event in credential.events.all()] == ["refreshed", "imported"]


def test_pair_that_is_being_stored_is_left_to_who_does_it(
    credential: Credential, spool: Path, backdated: Callable[[], None]
) -> None:
    place = place_of(credential)
    credential.refresh()
    keep(place, TokenPair(credential.access_token, credential.refresh_token, 3600, None))
    Credential.objects.refresh_due()
    assert len(files(spool)) == 1
    backdated()
    Credential.objects.refresh_due()
    assert files(spool) == []
