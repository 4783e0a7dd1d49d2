"""A user connects an account where the site's Content-Security-Policy forbids all that it can."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import include, path
from pytest_django.live_server_helper import LiveServer

from django_infusionsoft.models import Credential
from django_infusionsoft.views import AuthorizeView, CallbackView
from tests.system.browsing import decide, go_to_keap, open_account, reads

if TYPE_CHECKING:
    from playwright.sync_api import Route

    from tests.system.browsing import Open

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
]

POLICY = (
    "default-src 'none'; form-action 'self'; script-src 'self'; style-src 'self'; img-src 'self'"
)


class ConnectKeapView(AuthorizeView):
    permission_required = ()
    authorize_url_name = "connect-keap"
    callback_url_name = "keap-connected"


class KeapConnectedView(CallbackView):
    permission_required = ()
    authorize_url_name = "connect-keap"
    callback_url_name = "keap-connected"


urlpatterns = [
    path("admin/", admin.site.urls),
    path("infusionsoft/", include("django_infusionsoft.urls")),
    path("keap/", ConnectKeapView.as_view(), name="connect-keap"),
    path("keap/connected/", KeapConnectedView.as_view(), name="keap-connected"),
]


def policy_middleware(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return middleware


@pytest.fixture(scope="module")
def live_server() -> Iterator[LiveServer]:
    """Run a server whose responses have the policy."""
    middleware = [f"{__name__}.policy_middleware", *settings.MIDDLEWARE]
    with override_settings(MIDDLEWARE=middleware):  # read when the server starts
        server = LiveServer("localhost")
    yield server
    server.stop()


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def javascript(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_staff_connects_and_reconnects_an_account(open_page: "Open", javascript: bool) -> None:
    page = open_page(User.objects.create_superuser("ana"), java_script_enabled=javascript)
    go_to_keap(page)
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    open_account(page, "ab123")
    page.get_by_role("link", name="Reconnect").click()
    page.get_by_role("button", name="Continue to Keap").click()
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected.")
    assert Credential.objects.get().generation == 2


def test_customer_connects_an_account(open_page: "Open", javascript: bool) -> None:
    page = open_page(User.objects.create_user("cleo"), java_script_enabled=javascript)
    page.goto("/keap/")
    page.get_by_role("button", name="Continue to Keap").click()
    page.get_by_role("button", name="Sign in as Ana").click()
    decide(page, "Acme Bakery")
    reads(page, "Account ab123 is connected")
    assert str(Credential.objects.get().authorized_by) == "cleo"


def test_link_leads_to_keap_where_the_browser_does_not_redirect(open_page: "Open") -> None:
    def remove_redirect(route: "Route") -> None:
        response = route.fetch()
        page_without = response.text().replace('http-equiv="refresh"', "")
        route.fulfill(response=response, body=page_without)

    page = open_page(User.objects.create_superuser("ana"))
    page.route("**/infusionsoft/authorize/**", remove_redirect)
    page.get_by_role("link", name="Connect a Keap account").click()
    page.get_by_role("button", name="Continue to Keap").click()
    page.get_by_role("link", name="Continue to Keap").click()
    page.get_by_role("button", name="Sign in as Ana").wait_for()
