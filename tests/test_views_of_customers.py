"""A site whose customers connect their own accounts: the pair of views that the docs show."""

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
from django_infusionsoft.states import Pending
from django_infusionsoft.views import AuthorizeView, CallbackView
from tests.visits import parameter, visitor

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


# As the docs show it


class CustomersMixin:
    """For every customer who is logged in, at addresses of our own."""

    permission_required = ()
    authorize_url_name = "connect-keap"
    callback_url_name = "keap-connected"


class ConnectKeapView(CustomersMixin, AuthorizeView):
    template_name = "shop/connect.html"

    def get_credentials(self) -> models.QuerySet[Credential]:
        # Nobody may name, and so see, an account of somebody else's.
        return super().get_credentials().filter(authorized_by=self.request.user)  # type: ignore[misc]


class KeapConnectedView(CustomersMixin, CallbackView):
    def connected(self, credential: Credential, pending: Pending) -> HttpResponse:
        # The place to note, in a model of your own, whose account this is.
        self.request.session["keap_account"] = credential.account
        return redirect("/")


# What else a site may do with them


class BrokenView(CustomersMixin, CallbackView):
    callback_url_name = "broken"

    def connected(self, credential: Credential, pending: Pending) -> HttpResponse:
        raise RuntimeError("a bug of the site's")


class LoggingMixin(View):
    """A mixin with a ``dispatch`` of its own, as there are many."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return super().dispatch(request, *args, **kwargs)


class MixedView(LoggingMixin, BrokenView):
    """Its ``dispatch`` is none of ours."""


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
    """The browser of somebody without any permission."""
    return visitor(User.objects.create_user("cleo"))


def depart(client: Client, url: str = "/shop/keap/") -> str:
    response = client.post(url)
    assert response.status_code == 302
    return response.headers["Location"]


def test_customer_connects_an_account_at_the_sites_own_addresses(
    customer: Client, sandbox: Sandbox
) -> None:
    at_keap = depart(customer)
    assert parameter(at_keap, "redirect_uri") == "http://localhost/shop/keap/connected/"
    response = customer.get(sandbox.authorize(at_keap))
    assert response.headers["Location"] == "/"
    assert customer.session["keap_account"] == "ab123"
    assert Credential.objects.for_account("ab123").authorized_by == User.objects.get()


@override_settings(TEMPLATES=TEMPLATES)
def test_customer_sees_the_sites_own_page(customer: Client) -> None:
    assert "at our shop" in customer.get("/shop/keap/").content.decode()


@override_settings(LOGIN_URL="/login/")
def test_visitor_logs_in_before_connecting(sandbox: Sandbox) -> None:
    assert visitor().get("/shop/keap/").headers["Location"] == "/login/?next=/shop/keap/"


def test_visitor_is_not_let_in_by_an_empty_permission(sandbox: Sandbox) -> None:
    assert visitor().get("/shop/keap/connected/?code=x&state=y").status_code == 403


def test_customer_cannot_use_the_views_of_the_staff(customer: Client) -> None:
    assert customer.get("/infusionsoft/authorize/").status_code == 403


def test_customer_cannot_name_an_account_of_somebody_else(
    customer: Client, credential: Credential
) -> None:
    response = customer.get(f"/shop/keap/?credential={credential.pk}")
    assert response.status_code == 404
    assert "ab123" not in response.content.decode()


@override_settings(TEMPLATES=TEMPLATES)
def test_customer_connects_an_account_of_theirs_again(customer: Client, sandbox: Sandbox) -> None:
    customer.get(sandbox.authorize(depart(customer)))
    url = f"/shop/keap/?credential={Credential.objects.get().pk}"
    assert "ab123 at our shop" in customer.get(url).content.decode()
    customer.get(sandbox.authorize(depart(customer, url)))
    assert Credential.objects.get().generation == 2


def test_problem_leads_back_to_the_sites_own_address(customer: Client, sandbox: Sandbox) -> None:
    response = customer.get(sandbox.authorize(depart(customer), decision="deny"))
    assert 'href="/shop/keap/"' in response.content.decode()


@override_settings(INFUSIONSOFT_REDIRECT_URI="https://fixed.test/infusionsoft/callback/")
def test_setting_gives_customers_its_host_and_not_its_path(customer: Client) -> None:
    redirect_uri = parameter(depart(customer), "redirect_uri")
    assert redirect_uri == "https://fixed.test/shop/keap/connected/"


def test_arguments_of_the_url_stay_on_the_way(customer: Client, sandbox: Sandbox) -> None:
    at_keap = depart(customer, "/team/red/keap/")
    assert parameter(at_keap, "redirect_uri") == "http://localhost/team/red/back/"
    sandbox.plan(faults.error_503(), endpoint="exchange")
    response = customer.get(sandbox.authorize(at_keap))
    assert 'href="/team/red/keap/"' in response.content.decode()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("url", ["/broken/", "/mixed/"])
def test_pair_stays_stored_when_the_sites_hook_fails_under_atomic_requests(
    customer: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    back = sandbox.authorize(depart(customer))
    customer.raise_request_exception = False
    response = customer.get(url + "?" + back.partition("?")[2])
    assert response.status_code == 500
    assert Credential.objects.for_account("ab123").get_access_token()
