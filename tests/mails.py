"""Mail servers for tests."""

import django
from django.test import override_settings

LOCMEM = "django.core.mail.backends.locmem.EmailBackend"


def mailing_by(backend: str = LOCMEM) -> override_settings:
    """Send mails by this backend, as the settings of this Django say so."""
    if django.VERSION >= (6, 1):
        return override_settings(MAILERS={"default": {"BACKEND": backend}})
    return override_settings(EMAIL_BACKEND=backend)
