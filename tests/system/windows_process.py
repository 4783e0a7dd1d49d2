"""A site on Windows, as far as a process without Windows' missing names can be one.

``python -m tests.system.windows_process``: prints ``ok`` once everything has worked.
"""

import os
import pkgutil
import signal
import sys
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from io import StringIO

MISSING_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
MISSING_NAMES = {
    os: "O_DIRECTORY O_NOFOLLOW fchmod fork geteuid getuid killpg setsid statvfs",
    signal: "SIGALRM SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 pthread_sigmask sigwait",
}


def remove_names() -> None:
    """Take away what Windows' Python lacks, after imports that depend on the platform's name."""
    if find_spec("celery"):
        import_module("billiard.pool")
    for module, names in MISSING_NAMES.items():
        for name in names.split():
            delattr(module, name)
    for module_name in MISSING_MODULES:
        sys.modules[module_name] = None  # type: ignore[assignment]


def import_all() -> None:
    """Import every module of the app."""
    import django_infusionsoft

    for each in pkgutil.walk_packages(django_infusionsoft.__path__, "django_infusionsoft."):
        if find_spec("celery") or not each.name.endswith(".tasks"):
            import_module(each.name)


def use() -> None:
    """Connect an account, refresh it in each way, and call the API."""
    from django.core.management import call_command
    from django.test import override_settings
    from django.utils import timezone

    from django_infusionsoft.models import Credential
    from django_infusionsoft.sandbox import Sandbox

    call_command("migrate", verbosity=0)
    call_command("check", databases=["default"], fail_level="WARNING", stdout=StringIO())
    with Sandbox() as sandbox, override_settings(**sandbox.settings):
        reply = sandbox.issue("ab123")
        credential = Credential.objects.import_tokens(
            account="ab123",
            access_token=reply["access_token"],
            refresh_token=reply["refresh_token"],
            expires_at=timezone.now() + timedelta(hours=1),
        )
        credential.refresh()
        Credential.objects.get_queryset().request_refresh()
        call_command("infusionsoft_refresh", stdout=StringIO(), stderr=StringIO())
        if find_spec("celery"):
            from django_infusionsoft.tasks import refresh_due_credentials

            Credential.objects.get_queryset().request_refresh()
            refresh_due_credentials()
        credential = Credential.objects.for_account("ab123")
        assert credential.generation == (4 if find_spec("celery") else 3)
        assert credential.session().get("v2/contacts").status_code == 200


def main() -> None:
    remove_names()
    import django

    django.setup()
    from django.conf import settings

    del settings.INFUSIONSOFT_SPOOL_DIR  # type: ignore[misc]  # the default
    import_all()
    use()
    print("ok")  # noqa: T201


if __name__ == "__main__":
    main()
