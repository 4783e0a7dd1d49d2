"""Helpers for the authorization at Keap and for the pages of the admin."""

import html
import re
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.html import strip_tags

from django_infusionsoft.choices import BlockReason
from django_infusionsoft.models import (
    Application,
    ApplicationState,
    Credential,
    CredentialEvent,
    WorkerState,
)
from django_infusionsoft.monitoring import heartbeat
from django_infusionsoft.sandbox import Sandbox

HERE = "http://localhost"
LIST = "/admin/django_infusionsoft/credential/"
APPLICATIONS = "/admin/django_infusionsoft/application/"
EVENTS = "/admin/django_infusionsoft/credentialevent/"
OTHER_KEY = "b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q="
# Columns of a credential in each condition.
LOST = {"status": "reauthorization_required", "reason": "revoked"}
DISCONNECTED = {"status": "disconnected", "refresh_at": None}
LEASED = {"lease_until": timedelta(minutes=1), "refresh_at": timedelta(minutes=1)}

# The permission that each action needs, and a text shown after disconnecting.
MAY = {
    "refresh": "refresh_credential",
    "test": "refresh_credential",
    "disconnect": "disconnect_credential",
}
REVOKE = "open API Settings, Third-Party Authorizations."


def user_who_may(*codenames: str, name: str = "ann") -> User:
    """Create a user of the admin with these permissions."""
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return user


def client_for(user: User | None = None, **defaults: Any) -> Client:
    """Return a test client, logged in as the user, on the host for which Keap needs no TLS."""
    client = Client(**{"SERVER_NAME": "localhost", **defaults})
    if user is not None:
        client.force_login(user)
    return client


# Authorization at Keap


def go_to_keap(client: Client, **query: Any) -> str:
    """Press the button on the authorize page; return the URL at Keap."""
    return url_at_keap(client.post(reverse("django_infusionsoft:authorize", query=query)))


def url_at_keap(response: Any) -> str:
    """Return the URL to which the page after the button redirects."""
    markup = response.content.decode()
    found = re.search(r'<meta http-equiv="refresh" content="0; url=([^"]*)">', markup)
    assert found, markup
    return html.unescape(found[1])


def authorize(
    client: Client,
    sandbox: Sandbox,
    *,
    account: str = "ab123",
    decision: Literal["allow", "deny"] = "allow",
    **query: Any,
) -> Any:
    """Go to Keap, allow or deny access, and return the response of the callback."""
    return client.get(
        sandbox.authorize(go_to_keap(client, **query), account=account, decision=decision)
    )


def parameter(url: str, name: str) -> str:
    """Return a parameter of a URL's query."""
    (value,) = parse_qs(urlsplit(url).query)[name]
    return value


# Pages of the admin


def page(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200
    return response.content.decode()


def change_url(credential: Credential) -> str:
    return f"{LIST}{credential.pk}/change/"


def action_url(credential: Credential, verb: str) -> str:
    return f"{LIST}{credential.pk}/{verb}/"


def plain(markup: str) -> str:
    """Return the visible text, with one space between words."""
    return " ".join(html.unescape(strip_tags(markup)).split())


def texts(markup: str, tag: str, class_name: str) -> list[str]:
    """Return the text of each element of a class."""
    pattern = rf'<{tag}\b[^>]*\bclass="{class_name}(?: [^"]*)?"[^>]*>(.*?)</{tag}>'
    return [plain(each) for each in re.findall(pattern, markup, re.DOTALL)]


def links(markup: str) -> list[tuple[str, str]]:
    """Return the URL and the text of each link."""
    found = re.findall(r'<a\b[^>]*\bhref="([^"]*)"[^>]*>(.*?)</a>', markup, re.DOTALL)
    return [(html.unescape(url), plain(text)) for url, text in found]


def accounts_in(markup: str) -> list[str]:
    """Return the accounts of a list in order."""
    return [each.split()[0] for each in texts(markup, "th", "field-account_label")]


def messages_of(response: Any) -> list[str]:
    return [f"{each.level_tag}: {each.message}" for each in get_messages(response.wsgi_request)]


def run_action(client: Client, action: str, *credentials: Credential, **form: Any) -> Any:
    """Run an action of the list for these credentials."""
    ids = [credential.pk for credential in credentials]
    return client.post(LIST, {"action": action, "_selected_action": ids, **form})


def users_of_events(kind: str) -> list[str | None]:
    """Return the usernames of these events."""
    found = CredentialEvent.objects.filter(kind=kind).order_by("pk")
    return [event.user.get_username() if event.user else None for event in found]


def confirmation_form(html: str) -> dict[str, list[str]]:
    """Return the form data that a browser sends with the button "Yes"."""
    (form,) = re.findall(r'<form[^>]* class="infusionsoft-question">.*?</form>', html, re.DOTALL)
    values: dict[str, list[str]] = {}
    for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="(\w*)">', form):
        values.setdefault(name, []).append(value)
    return values


# Data for the pages


def account(name: str | None = "ab123", **columns: Any) -> Credential:
    """Create a credential; a time may be a ``timedelta`` from now."""
    now = timezone.now()
    times: dict[str, Any] = {
        "issued_at": timedelta(hours=-2),
        "connected_at": timedelta(days=-3, hours=-1),
        "expires_at": timedelta(hours=22.2),
        "refresh_at": timedelta(hours=16.2),
    }
    values = {
        column: now + value if isinstance(value, timedelta) else value
        for column, value in (times | columns).items()
    }
    tokens = {"access_token": "access-of-a-row", "refresh_token": "refresh-of-a-row"}
    return Credential.objects.create(account=name, generation=1, **tokens, **values)


def many(count: int) -> None:
    """Create credentials, each with an application, and a user in its history."""
    application, _ = Application.objects.get_or_create(name="many", client_id="many")
    user, _ = User.objects.get_or_create(username="somebody")
    now = timezone.now()
    times = {"issued_at": now, "connected_at": now, "expires_at": now, "refresh_at": now}
    Credential.objects.bulk_create(
        Credential(
            account=f"x{number:04}",
            application=application,
            authorized_by=user,
            generation=1,
            access_token="access-of-many",
            refresh_token="refresh-of-many",
            **times,
        )
        for number in range(count)
    )
    CredentialEvent.objects.bulk_create(
        CredentialEvent(credential=each, kind="refreshed", generation=1, user=user)
        for each in Credential.objects.filter(application=application)
    )


def record_heartbeat(*, minutes_ago: float = 0) -> None:
    """Record a heartbeat of a worker some minutes ago."""
    heartbeat.record_heartbeat("default")
    WorkerState.objects.update(run_seen_at=timezone.now() - timedelta(minutes=minutes_ago))


def stop(
    application: Application | None, block_reason: BlockReason = BlockReason.REJECTED
) -> ApplicationState:
    """Block the client of an application."""
    now = timezone.now()
    return ApplicationState.objects.create(
        application=application,
        block_reason=block_reason,
        since=now,
        probe_at=now + timedelta(minutes=4, seconds=15),
    )
