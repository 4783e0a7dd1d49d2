"""What sites do today: one account after the other, each with a connection of its own.

``social`` is the loop over social-auth-app-django's rows; ``recipe`` is the one that the
documentation of requests-oauthlib has for refreshing, with the same rows to keep the pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

import django
from django.db import connection, transaction
from requests.auth import HTTPBasicAuth
from requests_oauthlib import OAuth2Session

from benchmarks.keap import Grant
from benchmarks.timed import Job, Work, serve

PROVIDER: Final = "keap"
BACKEND: Final = "benchmarks.keap_backend.KeapOAuth2"
APPS: Final = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django_infusionsoft",
    "social_django",
]


def settings(keap: Mapping[str, str]) -> dict[str, Any]:
    """Return what social-auth-app-django needs of a site."""
    return {
        "INSTALLED_APPS": APPS,
        "AUTHENTICATION_BACKENDS": [BACKEND],
        "SOCIAL_AUTH_KEAP_KEY": keap["INFUSIONSOFT_CLIENT_ID"],
        "SOCIAL_AUTH_KEAP_SECRET": keap["INFUSIONSOFT_CLIENT_SECRET"],
        "SOCIAL_AUTH_KEAP_TOKEN_ENDPOINT": keap["INFUSIONSOFT_TOKEN_URL"],
    }


def store(grants: list[Grant]) -> None:
    """Put grants in place of all rows of social-auth-app-django's."""
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
    # The sandbox is on this machine, and speaks plain HTTP.
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


if __name__ == "__main__":
    serve(prepare)
