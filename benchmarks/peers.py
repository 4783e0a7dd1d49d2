"""The packages that sites use today, in loops that refresh one account after another.

``social`` loops over the rows of social-auth-app-django. ``recipe`` uses the recipe in the
documentation of requests-oauthlib, and stores the token pairs in the same rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

import django
from django.db import connection, transaction
from requests.auth import AuthBase, HTTPBasicAuth
from requests_oauthlib import OAuth2Session
from social_core.backends.oauth import BaseOAuth2

from benchmarks.sandbox_process import Grant
from benchmarks.timed_process import Job, Work

PROVIDER: Final = "keap"
APPS: Final = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django_infusionsoft",
    "social_django",
]


class KeapOAuth2(BaseOAuth2[Any]):
    """Keap as a backend of social-auth-app-django, for refreshing only."""

    name = PROVIDER
    REFRESH_TOKEN_METHOD = "POST"
    # Without the first entry, a refresh would discard the new refresh token.
    EXTRA_DATA = [("refresh_token", "refresh_token", True), ("expires_in", "expires_in")]

    def refresh_token_url(self) -> str:
        return str(self.setting("TOKEN_ENDPOINT"))

    def refresh_token_auth(self) -> AuthBase:
        return HTTPBasicAuth(*self.get_key_and_secret())

    def get_user_details(self, response: Any) -> dict[str, Any]:
        return {}


def settings(sandbox: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that social-auth-app-django needs."""
    return {
        "INSTALLED_APPS": APPS,
        "AUTHENTICATION_BACKENDS": ["benchmarks.peers.KeapOAuth2"],
        "SOCIAL_AUTH_KEAP_KEY": sandbox["INFUSIONSOFT_CLIENT_ID"],
        "SOCIAL_AUTH_KEAP_SECRET": sandbox["INFUSIONSOFT_CLIENT_SECRET"],
        "SOCIAL_AUTH_KEAP_TOKEN_ENDPOINT": sandbox["INFUSIONSOFT_TOKEN_URL"],
    }


def store(grants: list[Grant]) -> None:
    """Replace all rows of social-auth-app-django with grants."""
    from django.contrib.auth import get_user_model
    from social_django.models import UserSocialAuth

    UserSocialAuth.objects.all().delete()
    user, _ = get_user_model().objects.get_or_create(username="peer")
    UserSocialAuth.objects.bulk_create(
        UserSocialAuth(
            user=user,
            provider=PROVIDER,
            uid=account,
            extra_data={"access_token": access_token, "refresh_token": refresh_token},
        )
        for account, access_token, refresh_token in grants
    )


def prepare(job: Job) -> Work:
    # The sandbox runs on this machine and uses plain HTTP.
    os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"
    django.setup()
    connection.ensure_connection()
    loops: dict[str, Callable[[Job], int]] = {"social": social, "recipe": recipe}
    loop = loops[job["peer"]]
    return lambda: {"refreshed": loop(job)}


def social(job: Job) -> int:
    from social_django.models import UserSocialAuth
    from social_django.utils import load_strategy

    strategy, count = load_strategy(), 0  # type: ignore[no-untyped-call]
    for each in UserSocialAuth.objects.filter(provider=PROVIDER):
        each.refresh_token(strategy)
        count += 1
    return count


def recipe(job: Job) -> int:
    from social_django.models import UserSocialAuth

    auth, count = HTTPBasicAuth(job["client_id"], job["client_secret"]), 0
    for each in UserSocialAuth.objects.filter(provider=PROVIDER):
        session = OAuth2Session(job["client_id"], token=each.extra_data)
        each.extra_data = dict(session.refresh_token(job["token_url"], auth=auth))
        with transaction.atomic():
            each.save(update_fields=["extra_data"])
        count += 1
    return count
