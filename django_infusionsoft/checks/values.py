"""The settings of the app, each and together."""

from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error

from django_infusionsoft import spool
from django_infusionsoft.conf import SETTINGS, conf
from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.fields import get_cipher
from django_infusionsoft.transport import longest_call_seconds

Check = Callable[..., list[CheckMessage]]

# The requests a second that Keap's gateway lets through for one client.
KEAP_RATE: Final = 25
KEAP_TOKEN_HOST: Final = "api.infusionsoft.com"  # noqa: S105  # a host
# Of 32 random bytes, or their 31 steps, so few differ once in 2,000,000,000,000 keys:
# C(256, 16) * (16 / 256) ** 31. That all are printable is rarer: (95 / 256) ** 32.
FEW_BYTES: Final = 16


def where_settings_are_valid(check: Check) -> Check:
    """Leave a check out where a setting that it reads is wrong: E001 or E002 tell."""

    @wraps(check)
    def check_if_valid(**kwargs: Any) -> list[CheckMessage]:
        try:
            return check(**kwargs)
        except ConfigurationError:
            return []

    return check_if_valid


def check_encryption_keys(**kwargs: Any) -> list[CheckMessage]:
    """E001: without a key nothing can be stored."""
    try:
        get_cipher()
    except ConfigurationError as error:
        return [
            Error(
                str(error),
                hint="`python manage.py infusionsoft_key` prints a new key. Keep it as safe as a "
                "password, and keep the old ones in the list behind it.",
                id="django_infusionsoft.E001",
            )
        ]
    return []


@where_settings_are_valid
def check_key_strength(**kwargs: Any) -> list[CheckMessage]:
    """W005: a key that somebody has typed can be guessed."""
    get_cipher()
    keys = enumerate((str(key).strip() for key in conf.ENCRYPTION_KEYS), start=1)
    return [
        checks.Warning(
            f"Key {number} of INFUSIONSOFT_ENCRYPTION_KEYS is not random.",
            hint="Put one that `python manage.py infusionsoft_key` prints in front of it. Take it "
            "out when all has been stored anew: tokens are with each refresh, client secrets "
            "when they are entered again.",
            id="django_infusionsoft.W005",
        )
        for number, key in keys
        if key and _is_not_random(urlsafe_b64decode(key))
    ]


def _is_not_random(key: bytes) -> bool:
    is_text = key.isascii() and key.decode("ascii").isprintable()
    steps = {(second - first) % 256 for first, second in pairwise(key)}
    return is_text or min(len(set(key)), len(steps)) <= FEW_BYTES


def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """E002: a setting of the wrong type, or outside its range."""
    problems: list[CheckMessage] = []
    for setting in SETTINGS.values():
        try:
            setting.__get__(conf, type(conf))
        except ConfigurationError as error:
            problems.append(Error(str(error), id="django_infusionsoft.E002"))
    return problems


def check_client(**kwargs: Any) -> list[CheckMessage]:
    """E003: half a client in the settings. None at all is fine: it may be in the admin."""
    found = [
        bool(getattr(settings, name, ""))
        for name in ("INFUSIONSOFT_CLIENT_ID", "INFUSIONSOFT_CLIENT_SECRET")
    ]
    if all(found) or not any(found):
        return []
    return [
        Error(
            "Only one of INFUSIONSOFT_CLIENT_ID and INFUSIONSOFT_CLIENT_SECRET is set.",
            hint="Both are shown at https://keys.developer.keap.com, or leave both out and add an "
            "application in the admin.",
            id="django_infusionsoft.E003",
        )
    ]


@where_settings_are_valid
def check_lease(**kwargs: Any) -> list[CheckMessage]:
    """E004: a lease that can end before its call does lets two attempts be in flight."""
    longest = longest_call_seconds()
    if longest < conf.LEASE_SECONDS:
        return []
    return [
        Error(
            "INFUSIONSOFT_LEASE_SECONDS is shorter than a call to Keap can take.",
            hint=f"Set it to more than {longest:g}, which is INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS "
            "and twice INFUSIONSOFT_READ_TIMEOUT_SECONDS and a second.",
            id="django_infusionsoft.E004",
        )
    ]


@where_settings_are_valid
def check_rate(**kwargs: Any) -> list[CheckMessage]:
    """W011: Keap answers 429 above its limit, and the application is left alone for a while."""
    is_keap = urlsplit(conf.TOKEN_URL).hostname == KEAP_TOKEN_HOST
    if not is_keap or 0 < conf.REFRESH_RATE <= KEAP_RATE:
        return []
    return [
        checks.Warning(
            "INFUSIONSOFT_REFRESH_RATE lets more requests through than Keap does.",
            hint=f"Keap cuts off at {KEAP_RATE} a second, your calls to its API included. Set it "
            "to 20, which is the default, or less.",
            id="django_infusionsoft.W011",
        )
    ]


def check_spool(**kwargs: Any) -> list[CheckMessage]:
    """W004: without a spool a pair is lost with its process when the database is away."""
    problem = spool.problem()
    if not problem:
        return []
    return [
        checks.Warning(
            f"The spool for pairs that cannot be stored yet cannot be used: {problem}",
            hint="Set INFUSIONSOFT_SPOOL_DIR to a folder that this user can write to and that "
            "outlives the process, or to '' to do without.",
            id="django_infusionsoft.W004",
        )
    ]
