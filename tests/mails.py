"""The email backend of tests."""

import django
from django.test import override_settings

LOCMEM = "django.core.mail.backends.locmem.EmailBackend"


def mailing_by(backend: str = LOCMEM) -> override_settings:
    """Send emails with this backend, set as this version of Django requires."""
    if django.VERSION >= (6, 1):
        return override_settings(MAILERS={"default": {"BACKEND": backend}})
    return override_settings(EMAIL_BACKEND=backend)
