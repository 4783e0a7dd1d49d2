"""What a monitor is told, and who is told names."""

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

from django_infusionsoft.models import Credential, Upkeep
from django_infusionsoft.monitor import HealthView
from tests.mails import mailing_by
from tests.support import run

pytestmark = pytest.mark.django_db
URL = "/infusionsoft/health/"


def lose(credential: Credential) -> None:
    Credential.objects.filter(pk=credential.pk).update(
        status="reauthorization_required", reason="revoked", refresh_at=None
    )


@pytest.fixture
def well(credential: Credential) -> Credential:
    """An account of a site whose worker runs."""
    run()
    return credential


@pytest.fixture
def lost(well: Credential) -> Credential:
    Credential.objects.update(account_name="Acme\n<b>")
    lose(well)
    return well


def may_view(client: Client, **who: Any) -> Client:
    user = User.objects.create_user("somebody", **who)
    user.user_permissions.add(Permission.objects.get(codename="view_credential"))
    client.force_login(user)
    return client


def test_all_is_well(client: Client, well: Credential) -> None:
    response = client.get(URL)
    assert response.status_code == 200
    assert response.json()["status"] == "ok"
    assert response.json()["credentials"]["connected"] == 1


def test_account_that_needs_a_person_is_not_well(client: Client, lost: Credential) -> None:
    response = client.get(URL)
    assert response.status_code == 503
    assert response.json()["status"] == "needs_person"


def test_worker_that_was_never_seen_is_not_well(client: Client, credential: Credential) -> None:
    response = client.get(URL)
    assert response.status_code == 503
    assert response.json()["status"] == "behind"
    assert response.json()["last_run"] is None


def test_nothing_connected_is_well(client: Client) -> None:
    assert client.get(URL).status_code == 200


def test_address_has_a_name() -> None:
    assert reverse("django_infusionsoft:health") == URL


def test_answer_is_never_kept(client: Client, well: Credential) -> None:
    assert "no-store" in client.get(URL).headers["Cache-Control"]


def test_head_tells_the_status_alone(client: Client, lost: Credential) -> None:
    response = client.head(URL)
    assert (response.status_code, response.content) == (503, b"")


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_nothing_can_be_sent(client: Client, method: str) -> None:
    response: HttpResponse = getattr(client, method)(URL)
    assert response.status_code == 405


def test_names_are_not_for_everybody(client: Client, lost: Credential) -> None:
    text = client.get(URL).content.decode()
    assert "needs_attention" in text
    assert "ab123" not in text
    assert "Acme" not in text


def test_names_are_not_for_every_user(client: Client, lost: Credential) -> None:
    client.force_login(User.objects.create_user("somebody", is_staff=True))
    assert "ab123" not in client.get(URL).content.decode()


def test_names_are_not_for_users_who_have_left(client: Client, lost: Credential) -> None:
    assert "ab123" not in may_view(client, is_active=False).get(URL).content.decode()


def test_names_are_for_who_may_view_credentials(client: Client, lost: Credential) -> None:
    assert may_view(client).get(URL).json()["needs_attention"] == [
        {"account": "ab123", "name": "Acme <b>", "reason": "revoked"}
    ]


def test_a_hundred_names_are_enough(client: Client, lost: Credential) -> None:
    now = timezone.now()
    times = {"issued_at": now, "expires_at": now, "connected_at": now}
    Credential.objects.bulk_create(
        Credential(account=f"x{number}", status="reauthorization_required", **times)
        for number in range(120)
    )
    facts = may_view(client).get(URL).json()
    assert len(facts["needs_attention"]) == 100
    assert facts["credentials"]["needs_attention"] == 121


def test_site_without_users_is_told_numbers(well: Credential) -> None:
    response = HealthView.as_view()(RequestFactory().get(URL))
    assert response.status_code == 200


def test_site_without_middleware_is_told_numbers(client: Client, well: Credential) -> None:
    with override_settings(MIDDLEWARE=[]):
        assert client.get(URL).status_code == 200


def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    raise OperationalError("the database is gone")


def test_database_that_is_gone_is_told(client: Client) -> None:
    with connection.execute_wrapper(refuse):
        response = client.get(URL)
    assert (response.status_code, response.json()) == (503, {"status": "no_database"})
    assert "no-store" in response.headers["Cache-Control"]


def test_database_that_is_gone_is_told_to_a_user(client: Client, lost: Credential) -> None:
    client = may_view(client)
    with (
        override_settings(SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies"),
        connection.execute_wrapper(refuse),
    ):
        assert client.get(URL).json() == {"status": "no_database"}


def test_database_is_met_inside_the_view_where_requests_are_transactions() -> None:
    assert vars(resolve(URL).func)["_non_atomic_requests"] == set(settings.DATABASES)


def test_mail_is_sent_where_no_worker_runs(
    client: Client, well: Credential, mailoutbox: list[EmailMessage]
) -> None:
    Upkeep.objects.update(run_seen_at=timezone.now() - timedelta(hours=1))
    with mailing_by(), override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"]):
        client.get(URL)
    assert len(mailoutbox) == 1


def test_mail_about_a_loss_is_left_to_who_came_upon_it(
    client: Client, lost: Credential, mailoutbox: list[EmailMessage]
) -> None:
    with mailing_by(), override_settings(INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"]):
        client.get(URL)
    assert mailoutbox == []


def test_no_secret_is_told(client: Client, connect: Callable[..., Credential]) -> None:
    credential = connect()
    text = may_view(client).get(URL).content.decode()
    assert credential.access_token not in text
    assert credential.refresh_token not in text
