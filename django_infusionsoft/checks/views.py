"""The way to Keap and back: URLs, sessions, the redirect URI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage
from django.http.request import split_domain_port, validate_host
from django.urls import NoReverseMatch, Resolver404, get_script_prefix, resolve, reverse
from django.utils import translation
from django.utils.module_loading import import_string

from django_infusionsoft.checks.values import where_settings_are_valid
from django_infusionsoft.conf import conf

MIDDLEWARE: Final = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)
# What Django lets in under DEBUG where ALLOWED_HOSTS is empty.
HOSTS_OF_DEBUG: Final = [".localhost", "127.0.0.1", "[::1]"]


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


def check_urls(**kwargs: Any) -> list[CheckMessage]:
    """W002: without the views the admin's buttons lead nowhere."""
    if not getattr(settings, "ROOT_URLCONF", None) or _are_views_included():
        return []
    return [
        checks.Warning(
            "django_infusionsoft.urls is not included in the site's URLs.",
            hint='Add to urlpatterns: path("infusionsoft/", include("django_infusionsoft.urls"))',
            id="django_infusionsoft.W002",
        )
    ]


def _are_views_included() -> bool:
    try:
        return bool(getattr(settings, "ROOT_URLCONF", None) and _callback_path())
    except NoReverseMatch:
        return False


def _callback_path() -> str:
    return reverse("django_infusionsoft:callback")


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


def check_session_engine(**kwargs: Any) -> list[CheckMessage]:
    """W012: an old cookie has the states that have been used since."""
    if settings.SESSION_ENGINE != "django.contrib.sessions.backends.signed_cookies":
        return []
    return [
        checks.Warning(
            "With sessions in cookies a state can be used more than once.",
            hint="Whoever has an older cookie has its states as well, for ten minutes. Set "
            "SESSION_ENGINE to one that keeps sessions on the server, such as Django's default.",
            id="django_infusionsoft.W012",
        )
    ]


def check_middleware(**kwargs: Any) -> list[CheckMessage]:
    """W013: the views ask for the user and keep the state in the session."""
    if not _are_views_included():
        return []
    used = {name for path in settings.MIDDLEWARE for name in _classes_of(path)}
    return [
        checks.Warning(
            f"The views cannot work without {name}.",
            hint="Add it to MIDDLEWARE, in the order of Django's project template. If another "
            "one stands in for it, add 'django_infusionsoft.W013' to SILENCED_SYSTEM_CHECKS.",
            id="django_infusionsoft.W013",
        )
        for name in MIDDLEWARE
        if name not in used
    ]


def _classes_of(path: str) -> Iterator[str]:
    """Yield the names of a middleware's class and of those that it is made from."""
    try:
        middleware = import_string(path)
    except ImportError:  # the site cannot start, and says so
        return
    for each in getattr(middleware, "__mro__", ()):
        yield f"{each.__module__}.{each.__qualname__}"


@where_settings_are_valid
def check_callback_path(**kwargs: Any) -> list[CheckMessage]:
    """W006: Keap would send the person and the code to another page."""
    path = urlsplit(conf.REDIRECT_URI).path
    if not conf.REDIRECT_URI or not _are_views_included() or _is_callback_in_a_language(path):
        return []
    return [
        checks.Warning(
            "INFUSIONSOFT_REDIRECT_URI does not lead to the callback view.",
            hint=f"Here that is at {_callback_path()}, to the last slash. Set it to the absolute "
            "URL of that, as it is registered at Keap, or leave it out.",
            id="django_infusionsoft.W006",
        )
    ]


def _is_callback_in_a_language(path: str) -> bool:
    """Tell whether one of the site's languages has the view there (``i18n_patterns()``)."""
    for code, _ in ((settings.LANGUAGE_CODE, ""), *settings.LANGUAGES):
        with translation.override(code):
            if _is_callback(path):
                return True
    return False


def _is_callback(path: str) -> bool:
    """Tell whether the path is the callback view's, or that of one made from it.

    It may be longer in front: only with FORCE_SCRIPT_NAME it is known where the site is mounted.
    """
    prefix, callback = get_script_prefix(), _callback_path()
    if not path.startswith(prefix):
        return False
    view, ours = _view_at(path, prefix), _view_at(callback, prefix)
    return path.endswith(callback) or bool(view and ours and issubclass(view, ours))


def _view_at(path: str, prefix: str) -> type | None:
    try:
        view = resolve("/" + path.removeprefix(prefix)).func
    except Resolver404:
        return None
    return getattr(view, "view_class", None)


@where_settings_are_valid
def check_callback_host(**kwargs: Any) -> list[CheckMessage]:
    """W007: Django would refuse the request that brings the code."""
    host, _ = split_domain_port(urlsplit(conf.REDIRECT_URI).netloc)
    allowed = settings.ALLOWED_HOSTS or (HOSTS_OF_DEBUG if settings.DEBUG else [])
    if not host or validate_host(host, allowed):
        return []
    return [
        checks.Warning(
            f"The host of INFUSIONSOFT_REDIRECT_URI, {host}, is not in ALLOWED_HOSTS.",
            hint="Keap sends people back to it, and Django refuses them: add it to ALLOWED_HOSTS, "
            "or name the host at which people use this site.",
            id="django_infusionsoft.W007",
        )
    ]
