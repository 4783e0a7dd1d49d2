"""A site whose customers connect their own accounts: the two views that the docs show."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections, models
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.test import Client, override_settings
from django.urls import include, path
from django.views.generic import View

from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults
from django_infusionsoft.views import AuthorizeView, CallbackView
from django_infusionsoft.views.oauth_state import PendingAuthorization
from tests.web import client_for, parameter

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


# The example of the docs


class CustomersMixin:
    """For every logged-in customer, at URLs of the site's own."""

    permission_required = ()
    authorize_url_name = "connect-keap"
    callback_url_name = "keap-connected"


class ConnectKeapView(CustomersMixin, AuthorizeView):
    template_name = "shop/connect.html"

    def get_credentials(self) -> models.QuerySet[Credential]:
        # A customer must not name, and so see, another customer's account.
        return super().get_credentials().filter(authorized_by=self.request.user)  # type: ignore[misc]


class KeapConnectedView(CustomersMixin, CallbackView):
    def connected(self, credential: Credential, pending: PendingAuthorization) -> HttpResponse:
        # Store here, in a model of your own, which customer has this account.
        self.request.session["keap_account"] = credential.account
        return redirect("/")


# Further uses


class BrokenView(CustomersMixin, CallbackView):
    callback_url_name = "broken"

    def connected(self, credential: Credential, pending: PendingAuthorization) -> HttpResponse:
        raise RuntimeError("a bug in the site's code")


class LoggingMixin(View):
    """A mixin that overrides ``dispatch``, as many do."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return super().dispatch(request, *args, **kwargs)


class MixedView(LoggingMixin, BrokenView):
    """A callback view whose ``dispatch`` is not the app's."""


class ConnectTeamView(ConnectKeapView):
    authorize_url_name = "connect-team"
    callback_url_name = "team-connected"


class TeamConnectedView(KeapConnectedView):
    authorize_url_name = "connect-team"
    callback_url_name = "team-connected"


urlpatterns = [
    path("shop/keap/", ConnectKeapView.as_view(), name="connect-keap"),
    path("shop/keap/connected/", KeapConnectedView.as_view(), name="keap-connected"),
    path("broken/", BrokenView.as_view(), name="broken"),
    path("mixed/", MixedView.as_view(), name="mixed"),
    path("team/<slug:team>/keap/", ConnectTeamView.as_view(), name="connect-team"),
    path("team/<slug:team>/back/", TeamConnectedView.as_view(), name="team-connected"),
    path("infusionsoft/", include("django_infusionsoft.urls")),
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "loaders": [
                (
                    "django.template.loaders.locmem.Loader",
                    {"shop/connect.html": "{{ expected }} at our shop {% csrf_token %}"},
                ),
                "django.template.loaders.app_directories.Loader",
            ]
        },
    }
]


@pytest.fixture
def customer(sandbox: Sandbox) -> Client:
    """The browser of a user without any permission."""
    return client_for(User.objects.create_user("cleo"))


def go_to_keap(client: Client, url: str = "/shop/keap/") -> str:
    response = client.post(url)
    assert response.status_code == 302
    return response.headers["Location"]


def test_customer_connects_an_account_at_the_sites_own_urls(
    customer: Client, sandbox: Sandbox
) -> None:
    at_keap = go_to_keap(customer)
    assert parameter(at_keap, "redirect_uri") == "http://localhost/shop/keap/connected/"
    response = customer.get(sandbox.authorize(at_keap))
    assert response.headers["Location"] == "/"
    assert customer.session["keap_account"] == "ab123"
    assert Credential.objects.for_account("ab123").authorized_by == User.objects.get()


@override_settings(TEMPLATES=TEMPLATES)
def test_customer_sees_the_sites_own_template(customer: Client) -> None:
    assert "at our shop" in customer.get("/shop/keap/").content.decode()


@override_settings(LOGIN_URL="/login/")
def test_anonymous_visitor_is_redirected_to_the_login(sandbox: Sandbox) -> None:
    assert client_for().get("/shop/keap/").headers["Location"] == "/login/?next=/shop/keap/"


def test_anonymous_visitor_is_rejected_when_no_permission_is_required(sandbox: Sandbox) -> None:
    assert client_for().get("/shop/keap/connected/?code=x&state=y").status_code == 403


def test_customer_cannot_use_the_staffs_views(customer: Client) -> None:
    assert customer.get("/infusionsoft/authorize/").status_code == 403


def test_customer_cannot_reconnect_another_users_account(
    customer: Client, credential: Credential
) -> None:
    response = customer.get(f"/shop/keap/?credential={credential.pk}")
    assert response.status_code == 404
    assert "ab123" not in response.content.decode()


@override_settings(TEMPLATES=TEMPLATES)
def test_customer_can_reconnect_their_own_account(customer: Client, sandbox: Sandbox) -> None:
    customer.get(sandbox.authorize(go_to_keap(customer)))
    url = f"/shop/keap/?credential={Credential.objects.get().pk}"
    assert "ab123 at our shop" in customer.get(url).content.decode()
    customer.get(sandbox.authorize(go_to_keap(customer, url)))
    assert Credential.objects.get().generation == 2


def test_error_page_links_to_the_sites_own_url(customer: Client, sandbox: Sandbox) -> None:
    response = customer.get(sandbox.authorize(go_to_keap(customer), decision="deny"))
    assert 'href="/shop/keap/"' in response.content.decode()


@override_settings(INFUSIONSOFT_REDIRECT_URI="https://fixed.test/infusionsoft/callback/")
def test_redirect_uri_setting_provides_only_the_host(customer: Client) -> None:
    redirect_uri = parameter(go_to_keap(customer), "redirect_uri")
    assert redirect_uri == "https://fixed.test/shop/keap/connected/"


def test_url_arguments_are_kept_in_redirect_uri_and_error_page(
    customer: Client, sandbox: Sandbox
) -> None:
    at_keap = go_to_keap(customer, "/team/red/keap/")
    assert parameter(at_keap, "redirect_uri") == "http://localhost/team/red/back/"
    sandbox.plan(faults.error_503(), endpoint="exchange")
    response = customer.get(sandbox.authorize(at_keap))
    assert 'href="/team/red/keap/"' in response.content.decode()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("url", ["/broken/", "/mixed/"])
def test_token_pair_stays_stored_when_the_sites_hook_fails_under_atomic_requests(
    customer: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    back = sandbox.authorize(go_to_keap(customer))
    customer.raise_request_exception = False
    response = customer.get(url + "?" + back.partition("?")[2])
    assert response.status_code == 500
    assert Credential.objects.for_account("ab123").get_access_token()
