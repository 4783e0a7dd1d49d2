"""The email backend of tests."""

import threading

import django
from django.test import override_settings

LOCMEM = "django.core.mail.backends.locmem.EmailBackend"


def mailing_by(backend: str = LOCMEM) -> override_settings:
    """Send emails with this backend, set as this version of Django requires."""
    if django.VERSION >= (6, 1):
        return override_settings(MAILERS={"default": {"BACKEND": backend}})
    return override_settings(EMAIL_BACKEND=backend)


def wait_for_mails() -> None:
    """Wait for the threads that send mails."""
    for thread in threading.enumerate():
        if thread.name == "infusionsoft-mail":
            thread.join(timeout=30)
            assert not thread.is_alive()
