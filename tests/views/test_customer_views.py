"""A site whose customers connect their own accounts: the two views that the docs show."""

import time
from contextlib import suppress
from functools import partial
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest
from django.contrib.auth.mixins import LoginRequiredMixin, UserPassesTestMixin
from django.contrib.auth.models import User
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.test import Client, RequestFactory, override_settings
from django.urls import include, path
from django.utils import timezone
from django.views.generic import View

from django_infusionsoft.connect import callbacks, connection_check
from django_infusionsoft.exceptions import NotAllowed
from django_infusionsoft.keap import userinfo
from django_infusionsoft.keap.oauth import TokenPair
from django_infusionsoft.models import Application, Credential
from django_infusionsoft.sandbox import Sandbox, faults
from django_infusionsoft.views import AuthorizeView, CallbackView
from django_infusionsoft.views.oauth_state import SESSION_KEY, PendingAuthorization
from tests.support import threads
from tests.web import authorize, client_for, parameter, url_at_keap, user_who_may

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


# The example of the docs


class CustomersMixin:
    """For every logged-in customer, at URLs of the site's own."""

    permission_required = ()
    authorize_url_name = "connect-keap"
    callback_url_name = "keap-connected"


class ConnectKeapView(CustomersMixin, AuthorizeView):
    template_name = "shop/connect.html"


class KeapConnectedView(CustomersMixin, CallbackView):
    def connected(self, credential: Credential, pending: PendingAuthorization) -> HttpResponse:
        # Store the id here, in a model of your own.
        self.request.session["keap_credential"] = credential.pk
        return redirect("/")


def credential_of(request: HttpRequest) -> Credential | None:
    pk = request.session.get("keap_credential", 0)
    return Credential.objects.filter(pk=pk, authorized_by=request.user.pk).first()


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


class ByRuleMixin(CustomersMixin):
    """For every logged-in customer, by a rule instead of a permission; with any application."""

    permission_required = AuthorizeView.permission_required
    authorize_url_name = "connect-by-rule"
    callback_url_name = "connected-by-rule"

    def has_permission(self) -> bool:
        return True

    def may_name_application(self) -> bool:
        return True


class ConnectByRuleView(ByRuleMixin, AuthorizeView):
    """An authorize view with another rule."""


class ConnectedByRuleView(ByRuleMixin, CallbackView):
    """A callback view with another rule."""


class LoginFirstView(LoginRequiredMixin, KeapConnectedView):
    """A callback view behind a mixin of Django's."""


class NobodyView(UserPassesTestMixin, KeapConnectedView):
    """A callback view behind a test that nobody passes."""

    def test_func(self) -> bool:
        return False


class LenientView(KeapConnectedView):
    """Lets a customer replace a token pair that nobody has authorized."""

    callback_url_name = "lenient"

    def may_connect(self, pair_account: str | None, existing: Credential | None) -> bool:
        is_free = existing is not None and existing.authorized_by is None
        return is_free or super().may_connect(pair_account, existing)


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
    path("rule/keap/", ConnectByRuleView.as_view(), name="connect-by-rule"),
    path("rule/connected/", ConnectedByRuleView.as_view(), name="connected-by-rule"),
    path("login-first/", LoginFirstView.as_view(), name="login-first"),
    path("nobody/", NobodyView.as_view(), name="nobody"),
    path("lenient/", LenientView.as_view(), name="lenient"),
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
    return url_at_keap(client.post(url))


def test_customer_connects_an_account_at_the_sites_own_urls(
    customer: Client, sandbox: Sandbox
) -> None:
    at_keap = go_to_keap(customer)
    assert parameter(at_keap, "redirect_uri") == "http://localhost/shop/keap/connected/"
    response = customer.get(sandbox.authorize(at_keap))
    assert response.headers["Location"] == "/"
    assert customer.session["keap_credential"] == Credential.objects.get().pk
    assert Credential.objects.for_account("ab123").authorized_by == User.objects.get()


@override_settings(TEMPLATES=TEMPLATES)
def test_customer_sees_the_sites_own_template(customer: Client) -> None:
    assert "at our shop" in customer.get("/shop/keap/").content.decode()


@override_settings(LOGIN_URL="/login/")
def test_anonymous_visitor_is_redirected_to_the_login(sandbox: Sandbox) -> None:
    assert client_for().get("/shop/keap/").headers["Location"] == "/login/?next=/shop/keap/"


def test_anonymous_visitor_is_rejected_when_no_permission_is_required(sandbox: Sandbox) -> None:
    assert client_for().get("/shop/keap/connected/?code=x&state=y").status_code == 403


@pytest.mark.parametrize(
    ("url", "words"),
    [("/login-first/", "You are not logged in"), ("/nobody/", "You are not allowed to connect")],
)
def test_error_page_is_shown_when_a_mixin_of_the_site_refuses(
    customer: Client, url: str, words: str
) -> None:
    client = client_for() if url == "/login-first/" else customer
    response = client.get(f"{url}?code=x&state=y")
    assert response.status_code == 403
    assert words in response.content.decode()
    headers = [response.headers[name] for name in ("Cache-Control", "Referrer-Policy")]
    assert headers == ["no-store", "no-referrer"]
    assert response.headers["X-Frame-Options"] == "DENY"


def test_customer_cannot_use_the_staffs_views(customer: Client) -> None:
    assert customer.get("/infusionsoft/authorize/").status_code == 403


def test_customer_cannot_reconnect_another_users_account(
    customer: Client, credential: Credential
) -> None:
    response = customer.get(f"/shop/keap/?credential={credential.pk}")
    assert response.status_code == 404
    assert "ab123" not in response.content.decode()


# An account that somebody else has connected


def connected_at(client: Client, sandbox: Sandbox, url: str = "/shop/keap/") -> Any:
    """Connect ``ab123`` as a customer; return the response of the callback."""
    return client.get(sandbox.authorize(go_to_keap(client, url)))


def columns(credential: Credential) -> dict[str, Any]:
    return dict(Credential.objects.filter(pk=credential.pk).values().get())


@pytest.fixture(params=["another customer", "staff", "an import"])
def taken(request: pytest.FixtureRequest, sandbox: Sandbox) -> Credential:
    """An account that another customer or a staff user has connected, or that was imported."""
    if request.param == "another customer":
        connected_at(client_for(User.objects.create_user("otto")), sandbox)
    else:
        authorize(client_for(user_who_may("connect_credential")), sandbox)
    if request.param == "an import":
        Credential.objects.update(authorized_by=None)
    return Credential.objects.get()


def test_customer_cannot_replace_the_grant_of_somebody_else(
    customer: Client, sandbox: Sandbox, taken: Credential
) -> None:
    before = columns(taken)
    response = connected_at(customer, sandbox)
    assert response.status_code == 403
    assert "Account ab123 is already connected, and not by you" in response.content.decode()
    assert 'href="/shop/keap/"' in response.content.decode()
    assert "keap_credential" not in customer.session
    assert columns(taken) == before
    event = taken.events.latest("pk")
    assert (event.kind, event.outcome, str(event.user)) == ("tested", "ok", "cleo")
    taken.refresh()


def test_superuser_cannot_replace_a_customers_grant_in_the_customers_view(
    sandbox: Sandbox, taken: Credential
) -> None:
    before = columns(taken)
    superuser = client_for(User.objects.create_superuser("root"))
    assert connected_at(superuser, sandbox).status_code == 403
    assert columns(taken) == before
    authorize(superuser, sandbox)  # in the view for staff
    assert columns(taken)["authorized_by_id"] == User.objects.get(username="root").pk


def test_customer_is_restricted_when_another_rule_replaces_the_permission(
    customer: Client, sandbox: Sandbox, taken: Credential
) -> None:
    before = columns(taken)
    assert connected_at(customer, sandbox, "/rule/keap/").status_code == 403
    assert customer.get(f"/rule/keap/?credential={taken.pk}").status_code == 404
    assert columns(taken) == before


@pytest.mark.parametrize("access_token", ["valid", "expired", "refreshed just now"])
def test_loss_is_reported_when_the_new_grant_has_ended_the_old_one(
    customer: Client, sandbox: Sandbox, taken: Credential, access_token: str
) -> None:
    sandbox.switches.new_grant_revokes_older = True
    if access_token == "expired":
        Credential.objects.update(expires_at=timezone.now())
    elif access_token != "valid":
        taken.refresh()
    assert connected_at(customer, sandbox).status_code == 403
    taken.refresh_from_db()
    assert (taken.status, taken.reason) == ("reauthorization_required", "revoked")


def test_recipe_returns_the_credential_until_staff_connects_the_account(
    customer: Client, sandbox: Sandbox, rf: RequestFactory
) -> None:
    connected_at(customer, sandbox)
    request = rf.get("/")
    request.session, request.user = customer.session, User.objects.get()
    assert credential_of(request) == Credential.objects.get()
    authorize(client_for(user_who_may("connect_credential")), sandbox)
    assert credential_of(request) is None


def test_customer_gets_the_page_when_keap_is_down_afterwards(
    customer: Client, sandbox: Sandbox, taken: Credential
) -> None:
    sandbox.plan(faults.error_503(), endpoint="api")
    assert connected_at(customer, sandbox).status_code == 403


def test_disconnected_account_of_somebody_else_is_not_tested(
    customer: Client, sandbox: Sandbox, taken: Credential
) -> None:
    taken.disconnect()
    assert connected_at(customer, sandbox).status_code == 403
    assert taken.events.latest("pk").kind == "disconnected"


def test_hook_may_allow_what_the_default_refuses(
    customer: Client, sandbox: Sandbox, credential: Credential
) -> None:
    back = sandbox.authorize(go_to_keap(customer))
    assert customer.get("/lenient/?" + back.partition("?")[2]).status_code == 302
    credential.refresh_from_db()
    assert (str(credential.authorized_by), credential.generation) == ("cleo", 2)


@pytest.mark.parametrize("scope", ["full", "absent"])
def test_account_is_identified_before_the_grant_is_stored(
    customer: Client, sandbox: Sandbox, taken: Credential, scope: Any
) -> None:
    before = columns(taken)
    sandbox.switches.token_scope = scope
    assert connected_at(customer, sandbox).status_code == 403
    assert columns(taken) == before
    taken.delete()
    assert connected_at(customer, sandbox).status_code == 302
    assert Credential.objects.get().account == "ab123"


def test_nothing_is_stored_when_keap_does_not_name_the_account(
    customer: Client, sandbox: Sandbox, taken: Credential
) -> None:
    before = columns(taken)
    sandbox.switches.token_scope = "absent"
    sandbox.plan(faults.error_503(), endpoint="api")
    response = connected_at(customer, sandbox)
    assert response.status_code == 503
    assert "did not say which account" in response.content.decode()
    assert Credential.objects.count() == 1
    assert columns(taken) == before


@pytest.mark.parametrize(("scope", "status"), [("full", 503), ("account", 403)])
def test_customer_gets_the_page_when_the_api_takes_too_long(
    customer: Client,
    sandbox: Sandbox,
    taken: Credential,
    monkeypatch: pytest.MonkeyPatch,
    scope: Any,
    status: int,
) -> None:
    monkeypatch.setattr(callbacks, "AFTER_EXCHANGE_SECONDS", 0.4)
    monkeypatch.setattr(userinfo, "CHECK_TIMEOUT_SECONDS", 60)
    monkeypatch.setattr(connection_check, "TIMEOUT_SECONDS", 60)
    sandbox.switches.token_scope = scope
    sandbox.hold("before", endpoint="api")
    started_at = time.monotonic()
    assert connected_at(customer, sandbox).status_code == status
    assert time.monotonic() - started_at < 30


@pytest.mark.django_db(transaction=True)
def test_one_of_two_customers_gets_the_account_when_both_connect_at_once() -> None:
    both = Barrier(2)

    def connect(user: User, number: int) -> str:
        def may_connect(existing: Any) -> bool:
            if existing is None:
                with suppress(BrokenBarrierError):
                    both.wait(1)  # SQLite lets in one at a time
            return existing is None or existing.authorized_by_id == user.pk

        pair = TokenPair(f"access-{number}", f"refresh-{number}", 86_400, "ab123")
        try:
            Credential.objects.connect(pair, application=None, user=user, may_connect=may_connect)
        except NotAllowed:
            return "refused"
        return user.username

    users = [User.objects.create_user(name) for name in ("ana", "otto")]
    with threads(2) as start:
        running = [start(partial(connect, user, n)) for n, user in enumerate(users)]
        results = {each.result(timeout=30) for each in running}
    stored = Credential.objects.get()
    assert results == {str(stored.authorized_by), "refused"}
    assert stored.generation == 1


# The application


@pytest.mark.parametrize("name", ["settings", "second"])
def test_customer_cannot_name_an_application(
    customer: Client, second: Application, name: str
) -> None:
    value = second.pk if name == "second" else name
    assert customer.get(f"/shop/keap/?application={value}").status_code == 404
    assert customer.post(f"/shop/keap/?application={value}").status_code == 404


def test_customer_can_name_an_application_where_the_site_allows_it(
    customer: Client, second: Application
) -> None:
    at_keap = go_to_keap(customer, f"/rule/keap/?application={second.pk}")
    assert parameter(at_keap, "client_id") == "second-client"
    denied = f"/rule/connected/?error=access_denied&state={parameter(at_keap, 'state')}"
    assert f"application={second.pk}" in customer.get(denied).content.decode()


@override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")
def test_link_to_start_again_names_no_application_that_is_not_allowed(
    customer: Client, second: Application
) -> None:
    state = parameter(go_to_keap(customer), "state")
    response = customer.get(f"/shop/keap/connected/?error=access_denied&state={state}")
    assert 'href="/shop/keap/"' in response.content.decode()


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


WILDCARDS = pytest.mark.parametrize("hosts", [["*"], [".shop.test"]], ids=str)


@WILDCARDS
@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("header", ["Host", "X-Forwarded-Host"])
def test_host_that_only_a_wildcard_allows_is_refused(
    customer: Client, hosts: list[str], method: str, header: str
) -> None:
    is_forwarded = header != "Host"
    headers = {"Host": "localhost", header: "evil.shop.test"}
    with override_settings(ALLOWED_HOSTS=["localhost", *hosts], USE_X_FORWARDED_HOST=is_forwarded):
        response = getattr(customer, method)("/shop/keap/", headers=headers, secure=True)
    assert response.status_code == 503
    assert "ALLOWED_HOSTS does not name" in response.content.decode()
    assert SESSION_KEY not in customer.session


@WILDCARDS
def test_code_is_sent_to_a_host_that_the_site_names(customer: Client, hosts: list[str]) -> None:
    def redirect_uri(host: str, *, secure: bool = True) -> str:
        response = customer.post("/shop/keap/", headers={"Host": host}, secure=secure)
        return parameter(url_at_keap(response), "redirect_uri")

    with override_settings(ALLOWED_HOSTS=["Www.shop.test", "127.0.0.1", *hosts]):
        assert (
            redirect_uri("www.shop.test:8443") == "https://www.shop.test:8443/shop/keap/connected/"
        )
        if "*" in hosts:
            assert redirect_uri("[::1]:80", secure=False).startswith("http://[::1]:80/")
        fixed = "https://fixed.test/infusionsoft/callback/"
        with override_settings(INFUSIONSOFT_REDIRECT_URI=fixed):
            assert redirect_uri("any.shop.test") == "https://fixed.test/shop/keap/connected/"


@override_settings(ALLOWED_HOSTS=["*"])
def test_staff_may_use_any_host_that_is_allowed(sandbox: Sandbox) -> None:
    client = client_for(user_who_may("connect_credential"), SERVER_NAME="a.test")
    response = client.post("/infusionsoft/authorize/", secure=True)
    uri = "https://a.test/infusionsoft/callback/"
    assert parameter(url_at_keap(response), "redirect_uri") == uri


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
