"""The health view: its status for monitors, and account names for users with permission."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.core.mail import EmailMessage
from django.db import OperationalError, connection
from django.http import HttpResponse
from django.test import Client, RequestFactory, override_settings
from django.urls import resolve, reverse
from django.utils import timezone

from django_infusionsoft.models import Credential, WorkerState
from django_infusionsoft.views.health import HealthView
from tests.mails import mailing_by
from tests.support import run

pytestmark = pytest.mark.django_db
URL = "/infusionsoft/health/"


def mark_revoked(credential: Credential) -> None:
    Credential.objects.filter(pk=credential.pk).update(
        status="reauthorization_required", reason="revoked", refresh_at=None
    )


@pytest.fixture
def healthy(credential: Credential) -> Credential:
    """An account of a site whose worker is running."""
    run()
    return credential


@pytest.fixture
def revoked(healthy: Credential) -> Credential:
    Credential.objects.update(account_name="Acme\n<b>")
    mark_revoked(healthy)
    return healthy


def log_in_viewer(client: Client, **fields: Any) -> Client:
    user = User.objects.create_user("somebody", **fields)
    user.user_permissions.add(Permission.objects.get(codename="view_credential"))
    client.force_login(user)
    return client


def test_status_is_ok_when_accounts_are_connected_and_the_worker_is_running(
    client: Client, healthy: Credential
) -> None:
    response = client.get(URL)
    assert response.status_code == 200
    assert response.json()["status"] == "ok"
    assert response.json()["credentials"]["connected"] == 1


def test_status_is_action_required_when_an_account_must_be_reconnected(
    client: Client, revoked: Credential
) -> None:
    response = client.get(URL)
    assert response.status_code == 503
    assert response.json()["status"] == "action_required"


def test_status_is_behind_when_no_worker_run_was_ever_recorded(
    client: Client, credential: Credential
) -> None:
    response = client.get(URL)
    assert response.status_code == 503
    assert response.json()["status"] == "behind"
    assert response.json()["last_run"] is None


def test_status_is_ok_when_no_account_is_connected(client: Client) -> None:
    assert client.get(URL).status_code == 200


def test_url_can_be_reversed() -> None:
    assert reverse("django_infusionsoft:health") == URL


def test_response_is_never_cached(client: Client, healthy: Credential) -> None:
    assert "no-store" in client.get(URL).headers["Cache-Control"]


def test_head_returns_only_the_status(client: Client, revoked: Credential) -> None:
    response = client.head(URL)
    assert (response.status_code, response.content) == (503, b"")


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_other_methods_are_not_allowed(client: Client, method: str) -> None:
    response: HttpResponse = getattr(client, method)(URL)
    assert response.status_code == 405


def test_names_are_hidden_when_logged_out(client: Client, revoked: Credential) -> None:
    text = client.get(URL).content.decode()
    assert "needs_attention" in text
    assert "ab123" not in text
    assert "Acme" not in text


def test_names_are_hidden_without_the_view_permission(client: Client, revoked: Credential) -> None:
    client.force_login(User.objects.create_user("somebody", is_staff=True))
    assert "ab123" not in client.get(URL).content.decode()


def test_names_are_hidden_from_inactive_users(client: Client, revoked: Credential) -> None:
    assert "ab123" not in log_in_viewer(client, is_active=False).get(URL).content.decode()


def test_names_are_shown_with_the_view_permission(client: Client, revoked: Credential) -> None:
    assert log_in_viewer(client).get(URL).json()["needs_attention"] == [
        {"account": "ab123", "name": "Acme <b>", "reason": "revoked"}
    ]


def test_at_most_a_hundred_names_are_shown(client: Client, revoked: Credential) -> None:
    now = timezone.now()
    times = {"issued_at": now, "expires_at": now, "connected_at": now}
    Credential.objects.bulk_create(
        Credential(account=f"x{number}", status="reauthorization_required", **times)
        for number in range(120)
    )
    facts = log_in_viewer(client).get(URL).json()
    assert len(facts["needs_attention"]) == 100
    assert facts["credentials"]["needs_attention"] == 121


def test_view_works_without_a_user_on_the_request(healthy: Credential) -> None:
    response = HealthView.as_view()(RequestFactory().get(URL))
    assert response.status_code == 200


def test_view_works_without_middleware(client: Client, healthy: Credential) -> None:
    with override_settings(MIDDLEWARE=[]):
        assert client.get(URL).status_code == 200


def fail(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    raise OperationalError("the database is gone")


def test_status_is_no_database_when_the_database_is_unavailable(client: Client) -> None:
    with connection.execute_wrapper(fail):
        response = client.get(URL)
    assert (response.status_code, response.json()) == (503, {"status": "no_database"})
    assert "no-store" in response.headers["Cache-Control"]


def test_status_is_no_database_for_a_logged_in_user_when_the_database_is_unavailable(
    client: Client, revoked: Credential
) -> None:
    client = log_in_viewer(client)
    with (
        override_settings(SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies"),
        connection.execute_wrapper(fail),
    ):
        assert client.get(URL).json() == {"status": "no_database"}


def test_view_runs_outside_atomic_requests() -> None:
    assert vars(resolve(URL).func)["_non_atomic_requests"] == set(settings.DATABASES)


def test_mail_is_sent_when_no_worker_is_running(
    client: Client, healthy: Credential, mailoutbox: list[EmailMessage]
) -> None:
    WorkerState.objects.update(run_seen_at=timezone.now() - timedelta(hours=1))
    with mailing_by(), override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"]):
        client.get(URL)
    assert len(mailoutbox) == 1


def test_no_mail_is_sent_about_an_account_that_must_be_reconnected(
    client: Client, revoked: Credential, mailoutbox: list[EmailMessage]
) -> None:
    with mailing_by(), override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"]):
        client.get(URL)
    assert mailoutbox == []


def test_response_contains_no_secret(client: Client, connect: Callable[..., Credential]) -> None:
    credential = connect()
    text = log_in_viewer(client).get(URL).content.decode()
    assert credential.access_token not in text
    assert credential.refresh_token not in text
