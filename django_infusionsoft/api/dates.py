"""Dates and times as Keap writes and takes them (keap-facts 14)."""

from datetime import UTC, date, datetime
from typing import Final
from zoneinfo import ZoneInfo

# Of XML-RPC, whose times name no zone.
EASTERN: Final = ZoneInfo("America/New_York")
DAY_LENGTH: Final = len("2026-01-05")


def read_datetime(value: object) -> datetime:
    """Return the aware datetime that a value of Keap's stands for.

    :param value: of v1 (``2021-03-24T15:17:03.000+0000``), of v2 (``2026-01-05T10:00:00.000Z``),
        or of XML-RPC (``20260105T10:00:00``, also as ``xmlrpc.client.DateTime``), in US Eastern
        time.
    :raises ValueError: it is none of these.
    """
    text = str(value)
    if len(text) <= DAY_LENGTH:
        raise ValueError(f"{text!r} is no date with a time: use read_date().")
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=EASTERN) if found.tzinfo is None else found


def read_date(value: object) -> date:
    """Return the day of a value such as ``1985-03-15``; v1 adds a time, which means nothing.

    :raises ValueError: it is no date.
    """
    return datetime.fromisoformat(str(value)).date()


def write_datetime(moment: datetime) -> str:
    """Return an aware datetime as v1 and v2 take it: with milliseconds, in UTC.

    v1 rejects times without milliseconds, and v2's filters reject dates without a time.

    :raises ValueError: it is naive.
    """
    return _aware(moment).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + (
        f"{moment.microsecond // 1000:03}Z"
    )


def write_eastern(moment: datetime) -> str:
    """Return an aware datetime as XML-RPC takes it: without a zone, in US Eastern time.

    :raises ValueError: it is naive.
    """
    return _aware(moment).astimezone(EASTERN).strftime("%Y%m%dT%H:%M:%S")


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone: use django.utils.timezone.make_aware().")
    return moment
