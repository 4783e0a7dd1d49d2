"""The mails to INFUSIONSOFT_ALERT_RECIPIENTS."""

from __future__ import annotations

import warnings
from email.utils import getaddresses
from typing import Any, Final

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from django_infusionsoft.checks.values import where_settings_are_valid
from django_infusionsoft.conf import conf

SMTP: Final = "django.core.mail.backends.smtp.EmailBackend"


@where_settings_are_valid
def check_recipients(**kwargs: Any) -> list[CheckMessage]:
    """E007: nobody would get the mail."""
    return [
        Error(
            f"INFUSIONSOFT_ALERT_RECIPIENTS holds {recipient!r}, which is no mail address.",
            hint="Write each as 'ops@site.example' or 'Operations <ops@site.example>'.",
            id="django_infusionsoft.E007",
        )
        for recipient in conf.ALERT_RECIPIENTS
        if not _is_address(recipient)
    ]


def _is_address(recipient: object) -> bool:
    if not isinstance(recipient, str) or recipient.splitlines() != [recipient]:
        return False
    addresses = getaddresses([recipient])  # Pythons differ in what they make of several
    if len(addresses) != 1:
        return False
    _, address = addresses[0]
    try:
        validate_email(address)
    except ValidationError:
        return False
    return address in recipient  # it joins what spaces part


@where_settings_are_valid
def check_mail_links(**kwargs: Any) -> list[CheckMessage]:
    """W015: a mail from a worker has no request to take the site's address from."""
    if not conf.ALERT_RECIPIENTS or conf.SITE_URL or conf.REDIRECT_URI:
        return []
    return [
        checks.Warning(
            "The mails to INFUSIONSOFT_ALERT_RECIPIENTS would have a path instead of a link.",
            hint="Set INFUSIONSOFT_SITE_URL to the site's own address, such as "
            "'https://site.example'.",
            id="django_infusionsoft.W015",
        )
    ]


@where_settings_are_valid
def check_mail_timeout(**kwargs: Any) -> list[CheckMessage]:
    """W016: a mail server that hangs would hold up a run, and all refreshes with it."""
    backend, timeout = _mailer()
    if not conf.ALERT_RECIPIENTS or backend != SMTP or timeout is not None:
        return []
    return [
        checks.Warning(
            "A mail server that does not answer would hold up the runs for ever.",
            hint=f"Set {_timeout_setting()}, in seconds: 10, for example.",
            id="django_infusionsoft.W016",
        )
    ]


def _timeout_setting() -> str:
    if hasattr(settings, "MAILERS"):
        return "'timeout' in the OPTIONS of MAILERS['default']"
    return "EMAIL_TIMEOUT"


def _mailer() -> tuple[str, float | None]:
    """Return the backend's path and its timeout."""
    mailers = getattr(settings, "MAILERS", None)  # from Django 6.1 on
    if mailers is not None:
        mailer = mailers.get("default", {})
        return mailer.get("BACKEND", SMTP), mailer.get("OPTIONS", {}).get("timeout")
    with warnings.catch_warnings():
        # Whoever sets the older settings has been told by Django 6.1.
        warnings.simplefilter("ignore")
        return settings.EMAIL_BACKEND, settings.EMAIL_TIMEOUT
