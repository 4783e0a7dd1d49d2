"""Checks of the mails to INFUSIONSOFT_ALERT_RECIPIENTS."""

import warnings
from email.utils import getaddresses
from typing import Any, Final

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from django_infusionsoft.checks.problems import problem
from django_infusionsoft.checks.values import where_settings_are_valid
from django_infusionsoft.conf import conf

SMTP: Final = "django.core.mail.backends.smtp.EmailBackend"


@where_settings_are_valid
def check_recipients(**kwargs: Any) -> list[CheckMessage]:
    """E007: alerts would not be delivered."""
    return [
        Error(
            f"INFUSIONSOFT_ALERT_RECIPIENTS contains {recipient!r}, which is no email address.",
            hint="Write each as 'ops@site.example' or 'Operations <ops@site.example>'.",
            id="django_infusionsoft.E007",
        )
        for recipient in conf.ALERT_RECIPIENTS
        if not _is_address(recipient)
    ]


def _is_address(recipient: object) -> bool:
    if not isinstance(recipient, str) or recipient.splitlines() != [recipient]:
        return False
    addresses = getaddresses([recipient])  # versions of Python differ if there are several
    if len(addresses) != 1:
        return False
    _, address = addresses[0]
    try:
        validate_email(address)
    except ValidationError:
        return False
    return address in recipient  # getaddresses() joins parts separated by spaces


@where_settings_are_valid
def check_mail_links(**kwargs: Any) -> list[CheckMessage]:
    """W015: a worker has no request to take the site's URL from."""
    if not conf.ALERT_RECIPIENTS or conf.SITE_URL or conf.REDIRECT_URI:
        return []
    return problem(
        "W015",
        "Mails to INFUSIONSOFT_ALERT_RECIPIENTS would contain paths instead of links.",
        "Set INFUSIONSOFT_SITE_URL to the site's URL, such as 'https://site.example'.",
    )


@where_settings_are_valid
def check_mail_timeout(**kwargs: Any) -> list[CheckMessage]:
    """W016: a mail server that hangs would block a run, and all refreshes with it."""
    backend, timeout = _mailer()
    if not conf.ALERT_RECIPIENTS or backend != SMTP or timeout is not None:
        return []
    return problem(
        "W016",
        "A mail server that does not respond would block the runs forever.",
        f"Set {_timeout_setting()} to a number of seconds, such as 10.",
    )


def _timeout_setting() -> str:
    if hasattr(settings, "MAILERS"):
        return "'timeout' in the OPTIONS of MAILERS['default']"
    return "EMAIL_TIMEOUT"


def _mailer() -> tuple[str, float | None]:
    """Return the mail backend's path and its timeout in seconds."""
    mailers = getattr(settings, "MAILERS", None)  # from Django 6.1 on
    if mailers is not None:
        mailer = mailers.get("default", {})
        return mailer.get("BACKEND", SMTP), mailer.get("OPTIONS", {}).get("timeout")
    with warnings.catch_warnings():
        # Django 6.1 deprecates these settings, and has warned already.
        warnings.simplefilter("ignore")
        return settings.EMAIL_BACKEND, settings.EMAIL_TIMEOUT
