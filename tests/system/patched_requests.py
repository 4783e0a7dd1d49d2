"""A site whose process a tool has patched before Django starts; its name is the argument."""

import sys
from datetime import timedelta
from typing import Any

import requests
from requests.adapters import HTTPAdapter


def install_requests_cache() -> None:
    import requests_cache

    requests_cache.install_cache(backend="memory", allowable_methods=["GET", "POST"])


def replace_adapter() -> None:
    """Replay the first response to each URL, in place of the class that sessions mount."""
    known: dict[str, Any] = {}

    class Replaying(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
            url = str(request.url)
            if url not in known:
                known[url] = super().send(request, *args, **kwargs)
            return known[url]

    names: Any = (requests.adapters, requests.sessions)
    for module in names:
        module.HTTPAdapter = Replaying


def main(tool: str) -> None:
    {"requests-cache": install_requests_cache, "adapter": replace_adapter}[tool]()
    import django

    django.setup()
    use_two_accounts()


def use_two_accounts() -> None:
    from django.core.management import call_command
    from django.test import override_settings
    from django.utils import timezone

    from django_infusionsoft.connect import profiles
    from django_infusionsoft.keap import userinfo
    from django_infusionsoft.models import Credential
    from django_infusionsoft.sandbox import Sandbox

    call_command("migrate", verbosity=0)
    with Sandbox() as sandbox, override_settings(**sandbox.settings):
        for account in ("ab123", "cd456"):
            reply = sandbox.issue(account)
            pair = {name: reply[name] for name in ("access_token", "refresh_token")}
            expires_at = timezone.now() + timedelta(days=1)
            Credential.objects.import_tokens(account=account, expires_at=expires_at, **pair)
        for credential in Credential.objects.order_by("account"):
            assert credential.test_connection().profile.account == credential.account
            assert profiles.account_of(credential.access_token) == credential.account
            credential.refresh()
            credential.refresh()
            assert credential.generation == 3
        assert userinfo.status_for("invented") == 401
        assert len(sandbox.token_requests) == 4


if __name__ == "__main__":
    main(sys.argv[1])
