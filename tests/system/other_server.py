"""Another OAuth 2 server: django-oauth-toolkit, which lets a refresh token be used only once.

``python -m tests.system.other_server FOLDER``: prints its port once it listens.
"""

import sys
from pathlib import Path
from wsgiref.simple_server import make_server

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application

CLIENT_ID, CLIENT_SECRET = "other-client", "other-secret"
USER, PASSWORD = "ana", "ana"
REDIRECT_URI = "http://localhost/infusionsoft/callback/"


def configure(folder: Path) -> None:
    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": folder / "other.sqlite3"}
        },
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.messages",
            "django.contrib.sessions",
            "oauth2_provider",
        ],
        LOGIN_URL="/admin/login/",
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        OAUTH2_PROVIDER={
            "ACCESS_TOKEN_EXPIRE_SECONDS": 3600,
            "DEFAULT_SCOPES": ["full"],
            "PKCE_REQUIRED": False,
            "REFRESH_TOKEN_GRACE_PERIOD_SECONDS": 0,
            "ROTATE_REFRESH_TOKEN": True,
            "SCOPES": {"full": "everything"},
        },
        ROOT_URLCONF="tests.system.other_server_urls",
        SECRET_KEY="other",
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
    )
    django.setup()


def populate() -> None:
    from django.contrib.auth.models import User
    from oauth2_provider.models import Application

    call_command("migrate", verbosity=0)
    User.objects.create_superuser(USER, password=PASSWORD)
    Application.objects.create(
        authorization_grant_type=Application.GRANT_AUTHORIZATION_CODE,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        client_type=Application.CLIENT_CONFIDENTIAL,
        redirect_uris=REDIRECT_URI,
    )


def main(folder: Path) -> None:
    configure(folder)
    populate()
    with make_server("127.0.0.1", 0, get_wsgi_application()) as server:
        print(server.server_port, flush=True)  # noqa: T201
        server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
