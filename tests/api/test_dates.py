"""Dates and times in Keap's three forms."""

from datetime import UTC, date, datetime, timedelta, timezone
from xmlrpc.client import DateTime

import pytest

from django_infusionsoft.api.dates import (
    EASTERN,
    read_date,
    read_datetime,
    write_datetime,
    write_eastern,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2021-03-24T15:17:03.000+0000", datetime(2021, 3, 24, 15, 17, 3, tzinfo=UTC)),
        ("2026-01-05T10:00:00.000Z", datetime(2026, 1, 5, 10, tzinfo=UTC)),
        ("2026-01-05T10:00:00Z", datetime(2026, 1, 5, 10, tzinfo=UTC)),
        ("2017-01-01T16:15:24.000-07:00", datetime(2017, 1, 1, 23, 15, 24, tzinfo=UTC)),
        ("20260105T10:00:00", datetime(2026, 1, 5, 15, tzinfo=UTC)),
        ("20260705T10:00:00", datetime(2026, 7, 5, 14, tzinfo=UTC)),
        (DateTime("20260105T10:00:00"), datetime(2026, 1, 5, 15, tzinfo=UTC)),
    ],
)
def test_each_form_is_read_as_an_aware_datetime(value: object, expected: datetime) -> None:
    assert read_datetime(value) == expected
    assert read_datetime(value).tzinfo is not None


@pytest.mark.parametrize("value", ["2026-01-05", "", "soon", None, "2026-13-05T10:00:00Z"])
def test_anything_else_is_an_error(value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_datetime(value)


@pytest.mark.parametrize("value", ["1985-03-15", "1985-03-15T00:00:00.000+0000"])
def test_day_is_read_without_its_time(value: str) -> None:
    assert read_date(value) == date(1985, 3, 15)


def test_time_is_written_with_milliseconds_and_zone() -> None:
    moment = datetime(2026, 1, 5, 10, 0, 0, 4999, tzinfo=timezone(timedelta(hours=-7)))
    assert write_datetime(moment) == "2026-01-05T17:00:00.004Z"
    assert read_datetime(write_datetime(moment)) == moment.replace(microsecond=4000)


def test_time_is_written_in_eastern_time_for_xml_rpc() -> None:
    moment = datetime(2026, 7, 5, 14, tzinfo=UTC)
    assert write_eastern(moment) == "20260705T10:00:00"
    assert read_datetime(write_eastern(moment)) == moment == moment.astimezone(EASTERN)


@pytest.mark.parametrize("write", [write_datetime, write_eastern])
def test_time_without_a_zone_is_not_written(write: object) -> None:
    with pytest.raises(ValueError, match="time zone"):
        write(datetime(2026, 1, 5))  # type: ignore[operator]  # noqa: DTZ001
