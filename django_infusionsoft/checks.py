"""System checks. An id is never given to a second error."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.urls import NoReverseMatch, reverse

from django_infusionsoft import spool
from django_infusionsoft.conf import SETTINGS, conf
from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.fields import get_cipher
from django_infusionsoft.transport import longest_call_seconds


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


def check_lease(**kwargs: Any) -> list[CheckMessage]:
    """E004: a lease that can end before its call does lets two attempts be in flight."""
    try:
        longest, lease = longest_call_seconds(), conf.LEASE_SECONDS
    except ConfigurationError:
        return []  # E002 tells
    if longest < lease:
        return []
    return [
        Error(
            "INFUSIONSOFT_LEASE_SECONDS is shorter than a call to Keap can take.",
            hint=f"Set it to more than {longest:g}, which is INFUSIONSOFT_CONNECT_TIMEOUT_SECONDS "
            "and twice INFUSIONSOFT_READ_TIMEOUT_SECONDS and a second.",
            id="django_infusionsoft.E004",
        )
    ]


def check_time_zones(**kwargs: Any) -> list[CheckMessage]:
    """E005: expiry is kept as an absolute time."""
    if settings.USE_TZ:
        return []
    return [
        Error(
            "USE_TZ is off, and access tokens would seem to end at another time than they do.",
            hint="Set USE_TZ = True, which is Django's default.",
            id="django_infusionsoft.E005",
        )
    ]


def check_redirect_uri(**kwargs: Any) -> list[CheckMessage]:
    """W001: Keap compares the redirect URI to the letter, and sends a secret code to it."""
    redirect_uri = getattr(settings, "INFUSIONSOFT_REDIRECT_URI", "")
    parts = urlsplit(redirect_uri if isinstance(redirect_uri, str) else "")
    if not parts.query and not parts.fragment:
        return []
    return [
        checks.Warning(
            "INFUSIONSOFT_REDIRECT_URI has a query or a fragment.",
            hint="Keap has refused such URIs: use the bare address of the callback view.",
            id="django_infusionsoft.W001",
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


def check_urls(**kwargs: Any) -> list[CheckMessage]:
    """W002: without the views the admin's buttons lead nowhere."""
    if not getattr(settings, "ROOT_URLCONF", None):
        return []
    try:
        reverse("django_infusionsoft:authorize")
    except NoReverseMatch:
        return [
            checks.Warning(
                "django_infusionsoft.urls is not included in the site's URLs.",
                hint="Add to urlpatterns: "
                'path("infusionsoft/", include("django_infusionsoft.urls"))',
                id="django_infusionsoft.W002",
            )
        ]
    return []


def check_session_cookie(**kwargs: Any) -> list[CheckMessage]:
    """W003: the session holds the state, and has to be there when Keap sends a person back."""
    if settings.SESSION_COOKIE_SAMESITE != "Strict":
        return []
    return [
        checks.Warning(
            "With SESSION_COOKIE_SAMESITE = 'Strict' no account can be connected.",
            hint="Browsers leave the session behind on the way back from Keap. Use 'Lax', which "
            "is Django's default.",
            id="django_infusionsoft.W003",
        )
    ]
