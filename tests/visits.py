"""A person's way to Keap and back, over Django's test client."""

from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from django_infusionsoft.sandbox import Sandbox

HERE = "http://localhost"


def user_who_may(*codenames: str, name: str = "ann") -> User:
    """Make a user of the admin with these permissions."""
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return user


def visitor(user: User | None = None, **defaults: Any) -> Client:
    """Return a browser of our own, logged in, on the host for which Keap needs no TLS."""
    client = Client(**{"SERVER_NAME": "localhost", **defaults})
    if user is not None:
        client.force_login(user)
    return client


def depart(client: Client, **query: Any) -> str:
    """Press the button on the authorize page; return the URL at Keap."""
    response = client.post(reverse("django_infusionsoft:authorize", query=query))
    assert response.status_code == 302, response.content.decode()
    return response.headers["Location"]


def travel(
    client: Client,
    sandbox: Sandbox,
    *,
    account: str = "ab123",
    decision: Literal["allow", "deny"] = "allow",
    **query: Any,
) -> Any:
    """Go to Keap, decide there, and return the response to the way back."""
    return client.get(
        sandbox.authorize(depart(client, **query), account=account, decision=decision)
    )


def parameter(url: str, name: str) -> str:
    """Return a parameter of a URL's query."""
    (value,) = parse_qs(urlsplit(url).query)[name]
    return value
