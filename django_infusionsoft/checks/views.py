"""Checks for the views: URLs, sessions, the redirect URI."""

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

from django_infusionsoft.checks.problems import problem
from django_infusionsoft.checks.values import where_settings_are_valid
from django_infusionsoft.conf import conf

MIDDLEWARE: Final = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)
# The hosts that Django allows under DEBUG if ALLOWED_HOSTS is empty.
HOSTS_OF_DEBUG: Final = [".localhost", "127.0.0.1", "[::1]"]


def check_redirect_uri(**kwargs: Any) -> list[CheckMessage]:
    """W001: Keap compares redirect URIs exactly, and has rejected such ones."""
    redirect_uri = getattr(settings, "INFUSIONSOFT_REDIRECT_URI", "")
    parts = urlsplit(redirect_uri if isinstance(redirect_uri, str) else "")
    if not parts.query and not parts.fragment:
        return []
    return problem(
        "W001",
        "INFUSIONSOFT_REDIRECT_URI has a query string or a fragment.",
        "Keap has rejected such URIs. Use the plain URL of the callback view.",
    )


def check_urls(**kwargs: Any) -> list[CheckMessage]:
    """W002: without the views, the admin cannot connect accounts."""
    if not getattr(settings, "ROOT_URLCONF", None) or _are_views_included():
        return []
    return problem(
        "W002",
        "django_infusionsoft.urls is not included in the site's URLconf.",
        'Add this to urlpatterns: path("infusionsoft/", include("django_infusionsoft.urls"))',
    )


def _are_views_included() -> bool:
    try:
        return bool(getattr(settings, "ROOT_URLCONF", None) and _callback_path())
    except NoReverseMatch:
        return False


def _callback_path() -> str:
    return reverse("django_infusionsoft:callback")


def check_session_cookie(**kwargs: Any) -> list[CheckMessage]:
    """W003: the callback needs the session, which stores the state."""
    if settings.SESSION_COOKIE_SAMESITE != "Strict":
        return []
    return problem(
        "W003",
        "With SESSION_COOKIE_SAMESITE = 'Strict', no account can be connected.",
        "Browsers do not send the session cookie when Keap redirects back to the site. "
        "Use 'Lax', Django's default.",
    )


def check_middleware(**kwargs: Any) -> list[CheckMessage]:
    """W013: the views need the user and the session."""
    if not _are_views_included():
        return []
    used = {name for path in settings.MIDDLEWARE for name in _classes_of(path)}
    return [
        checks.Warning(
            f"The views do not work without {name}.",
            hint="Add it to MIDDLEWARE, in the order of Django's project template. If another "
            "middleware replaces it, add 'django_infusionsoft.W013' to "
            "SILENCED_SYSTEM_CHECKS.",
            id="django_infusionsoft.W013",
        )
        for name in MIDDLEWARE
        if name not in used
    ]


def _classes_of(path: str) -> Iterator[str]:
    """Yield the names of a middleware class and its base classes."""
    try:
        middleware = import_string(path)
    except ImportError:  # Django reports it when the site starts
        return
    for each in getattr(middleware, "__mro__", ()):
        yield f"{each.__module__}.{each.__qualname__}"


@where_settings_are_valid
def check_callback_path(**kwargs: Any) -> list[CheckMessage]:
    """W006: Keap would send the code to another page."""
    path = urlsplit(conf.REDIRECT_URI).path
    if not conf.REDIRECT_URI or not _are_views_included() or _is_callback_in_a_language(path):
        return []
    return problem(
        "W006",
        "INFUSIONSOFT_REDIRECT_URI does not point to the callback view.",
        f"The path of that view is {_callback_path()}, including slashes. Set it to the "
        "view's absolute URL, as registered at Keap, or remove it.",
    )


def _is_callback_in_a_language(path: str) -> bool:
    """Whether the path is the callback's in one of the site's languages (``i18n_patterns()``)."""
    for code in (settings.LANGUAGE_CODE, *dict(settings.LANGUAGES)):
        with translation.override(code):
            if _is_callback(path):
                return True
    return False


def _is_callback(path: str) -> bool:
    """Whether the path belongs to the callback view or a subclass of it.

    It may have a prefix: only FORCE_SCRIPT_NAME says where the site is mounted.
    """
    prefix, callback = get_script_prefix(), _callback_path()
    if not path.startswith(prefix):
        return False
    view, base = _view_at(path, prefix), _view_at(callback, prefix)
    return path.endswith(callback) or bool(view and base and issubclass(view, base))


def _view_at(path: str, prefix: str) -> type | None:
    try:
        view = resolve("/" + path.removeprefix(prefix)).func
    except Resolver404:
        return None
    return getattr(view, "view_class", None)


@where_settings_are_valid
def check_callback_host(**kwargs: Any) -> list[CheckMessage]:
    """W007: Django would reject the request that carries the code."""
    host, _ = split_domain_port(urlsplit(conf.REDIRECT_URI).netloc)
    allowed = settings.ALLOWED_HOSTS or (HOSTS_OF_DEBUG if settings.DEBUG else [])
    if not host or validate_host(host, allowed):
        return []
    return problem(
        "W007",
        f"The host of INFUSIONSOFT_REDIRECT_URI, {host}, is not in ALLOWED_HOSTS.",
        "Keap redirects users to this host, and Django rejects their requests. Add it "
        "to ALLOWED_HOSTS, or use the host under which users reach this site.",
    )
