"""Checks for settings that are fine on a developer's machine only (``check --deploy``)."""

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage

from django_infusionsoft.checks.problems import problem
from django_infusionsoft.checks.values import where_settings_are_valid
from django_infusionsoft.conf import SETTINGS, conf, is_loopback, named_hosts
from django_infusionsoft.refresh import spool_folder


@where_settings_are_valid
def check_redirect_uri_is_public(**kwargs: Any) -> list[CheckMessage]:
    """W017: users' browsers would look for the site on their own machines."""
    if not is_loopback(urlsplit(conf.REDIRECT_URI).hostname):
        return []
    return problem(
        "W017",
        "INFUSIONSOFT_REDIRECT_URI points to this machine.",
        "Set it to the public https:// URL of the callback view.",
    )


@where_settings_are_valid
def check_redirect_uri_is_secure(**kwargs: Any) -> list[CheckMessage]:
    """W018: behind a proxy that terminates TLS, requests look like plain HTTP."""
    if conf.REDIRECT_URI or settings.SECURE_PROXY_SSL_HEADER or settings.SECURE_SSL_REDIRECT:
        return []
    return problem(
        "W018",
        "The redirect URI may be built with http://, and then no account can be connected.",
        "Set INFUSIONSOFT_REDIRECT_URI to the https:// URL of the callback view, or set "
        "SECURE_PROXY_SSL_HEADER if a proxy terminates TLS.",
    )


@where_settings_are_valid
def check_spool_outlives_service(**kwargs: Any) -> list[CheckMessage]:
    """W031: the default spool is lost with its service or container."""
    is_default = SETTINGS["INFUSIONSOFT_SPOOL_DIR"].default == conf.SPOOL_DIR
    if not is_default or not (why := spool_folder.volatility()):
        return []
    return problem(
        "W031",
        f"The spool for token pairs that cannot be stored yet does not last: {why}",
        "Set INFUSIONSOFT_SPOOL_DIR to a directory that lasts: systemd's StateDirectory=, or a "
        "volume of the container.",
    )


@where_settings_are_valid
def check_redirect_uri_is_fixed(**kwargs: Any) -> list[CheckMessage]:
    """W023: a forged Host header would become that of the redirect URI."""
    if conf.REDIRECT_URI or named_hosts() == list(settings.ALLOWED_HOSTS):
        return []
    return problem(
        "W023",
        "The redirect URI is built from the request's host, and ALLOWED_HOSTS has a wildcard: "
        "authorization codes could be sent to another host.",
        "Set INFUSIONSOFT_REDIRECT_URI, or name each host in ALLOWED_HOSTS. Until then, the views "
        "for customers refuse hosts that it does not name.",
    )


@where_settings_are_valid
def check_endpoints_are_public(**kwargs: Any) -> list[CheckMessage]:
    """W019: the site would use the sandbox, or something like it, instead of Keap."""
    return [
        checks.Warning(
            f"{SETTINGS[f'INFUSIONSOFT_{name}'].name} points to this machine instead of Keap.",
            hint="Remove it from the production settings: the default is Keap's own URL.",
            id="django_infusionsoft.W019",
        )
        for name in ("AUTHORIZE_URL", "TOKEN_URL", "API_URL")
        if is_loopback(urlsplit(getattr(conf, name)).hostname)
    ]
