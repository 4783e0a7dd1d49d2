"""What is fine on a developer's machine only. Run by ``check --deploy``."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage

from django_infusionsoft.checks.values import where_settings_are_valid
from django_infusionsoft.conf import SETTINGS, conf, is_loopback


def _leads_here(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname)


@where_settings_are_valid
def check_redirect_uri_is_public(**kwargs: Any) -> list[CheckMessage]:
    """W017: people's browsers would look for the site on their own machines."""
    if not _leads_here(conf.REDIRECT_URI):
        return []
    return [
        checks.Warning(
            "INFUSIONSOFT_REDIRECT_URI leads to this machine.",
            hint="Set it to the https:// address of the callback view, as people reach it.",
            id="django_infusionsoft.W017",
        )
    ]


@where_settings_are_valid
def check_redirect_uri_is_secure(**kwargs: Any) -> list[CheckMessage]:
    """W018: behind a proxy that ends TLS, requests look like plain HTTP."""
    if conf.REDIRECT_URI or settings.SECURE_PROXY_SSL_HEADER or settings.SECURE_SSL_REDIRECT:
        return []
    return [
        checks.Warning(
            "The redirect URI may be built as http://, and then no account can be connected.",
            hint="Set INFUSIONSOFT_REDIRECT_URI to the https:// address of the callback view, or "
            "SECURE_PROXY_SSL_HEADER behind a proxy that ends TLS.",
            id="django_infusionsoft.W018",
        )
    ]


@where_settings_are_valid
def check_endpoints_are_public(**kwargs: Any) -> list[CheckMessage]:
    """W019: the sandbox, or another stand-in, instead of Keap."""
    return [
        checks.Warning(
            f"{SETTINGS[f'INFUSIONSOFT_{name}'].name} leads to this machine, and not to Keap.",
            hint="Take it out of the production settings: the default is Keap's own address.",
            id="django_infusionsoft.W019",
        )
        for name in ("AUTHORIZE_URL", "TOKEN_URL", "API_URL")
        if _leads_here(getattr(conf, name))
    ]
