"""The admin's applications: their use, how Keap takes them, and a secret that never comes out."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.test import Client, override_settings
from django.urls import path, reverse
from django.utils import timezone

from django_infusionsoft.admin import ApplicationAdmin, signs
from django_infusionsoft.choices import Trouble
from django_infusionsoft.exceptions import ClientRejected
from django_infusionsoft.models import Application, ApplicationState, Credential
from django_infusionsoft.sandbox import Sandbox
from tests.visits import (
    APPLICATIONS,
    LIST,
    OTHER_KEY,
    account,
    accounts_in,
    links,
    many,
    messages_of,
    page,
    plain,
    stop,
    texts,
    user_who_may,
    visitor,
)

pytestmark = pytest.mark.django_db

FINE = "Keap takes this client, as far as is known."

# An admin site with applications alone
workshop = admin.AdminSite(name="workshop")
workshop.register(Application, ApplicationAdmin)
urlpatterns = [path("workshop/", workshop.urls)]


@pytest.fixture
def application() -> Application:
    return Application.objects.create(
        name="Ours", client_id="sandbox-client", client_secret="sandbox-secret"
    )


def page_of(application: Application) -> str:
    return f"{APPLICATIONS}{application.pk}/change/"


def save(client: Client, url: str, **values: str) -> Any:
    form = {"name": "Ours", "client_id": "sandbox-client", "new_secret": ""}
    return client.post(url, form | values)


def column(client: Client, name: str) -> list[str]:
    return texts(page(client, APPLICATIONS), "td", f"field-{name}")


def above_the_list(client: Client) -> str:
    (section,) = re.findall(
        r'<section class="infusionsoft-summary".*?</section>',
        page(client, APPLICATIONS),
        re.DOTALL,
    )
    return plain(section)


def refuse_really(sandbox: Sandbox, application: Application | None) -> None:
    """Let Keap refuse the client, as it does one with a wrong secret."""
    reply = sandbox.issue("ab123")
    credential = Credential.objects.import_tokens(
        account="ab123",
        access_token=reply["access_token"],
        refresh_token=reply["refresh_token"],
        expires_at=timezone.now() + timedelta(hours=1),
        application=application,
    )
    with pytest.raises(ClientRejected):
        credential.refresh()


# Use


def test_use_is_told_in_list_and_page_and_leads_to_the_credentials(
    operator: Client, application: Application, second: Application
) -> None:
    account("ab123", application=application)
    account("cd456", application=application)
    account("ef789", application=second)
    assert column(operator, "use") == ["in use by 2 credentials", "in use by 1 credential"]
    url = f"{LIST}?application={application.pk}"
    for html in (page(operator, APPLICATIONS), page(operator, page_of(application))):
        assert (url, "in use by 2 credentials") in links(html)
    assert accounts_in(page(operator, url)) == ["ab123", "cd456"]


def test_unused_application_is_told_in_list_and_page(
    operator: Client, application: Application
) -> None:
    account()
    assert column(operator, "use") == ["not used by any credential"]
    html = page(operator, page_of(application))
    assert "not used by any credential" in plain(html)
    assert f"?application={application.pk}" not in html


def test_default_is_told_by_a_word(operator: Client, application: Application) -> None:
    Application.objects.create(name="usual", client_id="x", client_secret="y", is_default=True)
    assert column(operator, "default_label") == ["", "default"]


def test_list_needs_as_many_queries_for_many_as_for_few(
    operator: Client, django_assert_num_queries: Any
) -> None:
    for count in (3, 40):
        Application.objects.all().delete()
        for number in range(count):
            each = Application.objects.create(
                name=f"x{number}", client_id=f"{number}", client_secret="x"
            )
            stop(each)
        with django_assert_num_queries(7):
            assert len(column(operator, "use")) == count


def test_list_reads_no_secret(
    operator: Client, application: Application, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(10) as queries:
        page(operator, APPLICATIONS)
    read = " ".join(query["sql"] for query in queries.captured_queries)
    assert "is_default" in read
    assert "client_secret" not in read


@pytest.mark.urls(__name__)
def test_site_without_credentials_tells_the_use_without_a_link(
    operator: Client, application: Application
) -> None:
    account(application=application)
    url = reverse("workshop:django_infusionsoft_application_changelist")
    for html in (page(operator, url), page(operator, f"{url}{application.pk}/change/")):
        assert "in use by 1 credential" in plain(html)
        assert "in use by 1 credential</a>" not in html


# The client in the settings


def test_client_in_the_settings_is_told_above_the_list(operator: Client) -> None:
    account("ab123")
    account("cd456")
    assert above_the_list(operator) == (
        f"The settings have a client too: sandbox-client (in use by 2 credentials) {FINE}"
    )
    url = f"{LIST}?application=settings"
    assert (url, "in use by 2 credentials") in links(page(operator, APPLICATIONS))


def test_link_to_the_users_of_the_client_in_the_settings_shows_these(
    operator: Client, application: Application
) -> None:
    account("ab123")
    account("cd456", application=application)
    assert accounts_in(page(operator, f"{LIST}?application=settings")) == ["ab123"]


def test_unused_client_in_the_settings_is_told(operator: Client, application: Application) -> None:
    account(application=application)
    assert "(not used by any credential)" in above_the_list(operator)
    assert "?application=settings" not in page(operator, APPLICATIONS)


@override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")
def test_nothing_is_told_above_the_list_without_a_client_in_the_settings(
    operator: Client,
) -> None:
    assert "infusionsoft-summary" not in page(operator, APPLICATIONS)


def test_client_in_the_settings_that_keap_refuses_is_told(
    operator: Client, sandbox: Sandbox
) -> None:
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        refuse_really(sandbox, None)
        told = above_the_list(operator)
    assert "(in use by 1 credential) Keap refuses the client (since " in told
    assert " Keap is asked again in " in told


# How Keap takes a client


def test_client_that_nobody_has_refused_is_told_as_fine(
    operator: Client, application: Application
) -> None:
    assert column(operator, "state_label") == [FINE]
    html = page(operator, page_of(application))
    assert f'<span class="infusionsoft-good">{signs.GOOD.svg} {FINE}</span>' in html


def test_wrong_secret_is_told_in_list_and_page(operator: Client, sandbox: Sandbox) -> None:
    wrong = Application.objects.create(
        name="wrong", client_id="sandbox-client", client_secret="wrong"
    )
    refuse_really(sandbox, wrong)
    (told,) = column(operator, "state_label")
    assert told.startswith("Keap refuses the client (since ")
    html = page(operator, page_of(wrong))
    assert f'<span class="infusionsoft-bad">{signs.BAD.svg} Keap refuses the client (since' in html
    assert above_the_list(operator).endswith(FINE)  # which is another client


def test_client_is_told_as_fine_again_once_its_secret_is_right(
    operator: Client, sandbox: Sandbox
) -> None:
    wrong = Application.objects.create(
        name="wrong", client_id="sandbox-client", client_secret="wrong"
    )
    refuse_really(sandbox, wrong)
    save(operator, page_of(wrong), new_secret="sandbox-secret")
    Credential.objects.get().refresh()
    assert column(operator, "state_label") == [FINE]


@pytest.mark.parametrize(
    ("trouble", "tone"),
    [
        (Trouble.NONE, "good"),
        (Trouble.REJECTED, "bad"),
        (Trouble.UNANSWERED, "waiting"),
        (Trouble.UNAVAILABLE, "waiting"),
    ],
)
def test_every_trouble_is_told_with_its_tone(
    operator: Client, application: Application, trouble: Trouble, tone: str
) -> None:
    stop(application, trouble)
    words = f"{trouble.label} (since " if trouble else FINE
    for html in (page(operator, APPLICATIONS), page(operator, page_of(application))):
        found = re.findall(rf'<span class="infusionsoft-{tone}">(.*?)</span>', html, re.DOTALL)
        assert [each for each in map(plain, found) if each.startswith(words)]


def test_trouble_of_one_application_is_not_told_of_another(
    operator: Client, application: Application, second: Application
) -> None:
    stop(second)
    fine, refused = column(operator, "state_label")
    assert (fine, refused.partition(" (")[0]) == (FINE, "Keap refuses the client")
    assert FINE in above_the_list(operator)
    assert FINE in plain(page(operator, page_of(application)))


# The secret


@pytest.mark.parametrize("secret", ["plain", "with spaces in it", "$&<>\"'%{}", "zażółć"])
def test_secret_of_a_new_application_is_stored_as_it_is(operator: Client, secret: str) -> None:
    assert save(operator, f"{APPLICATIONS}add/", new_secret=secret).status_code == 302
    assert Application.objects.get().client_secret == secret


def test_new_application_needs_a_secret(operator: Client) -> None:
    response = save(operator, f"{APPLICATIONS}add/")
    assert "This field is required" in response.content.decode()
    assert not Application.objects.exists()


def test_new_application_has_nothing_to_tell_yet(operator: Client) -> None:
    html = page(operator, f"{APPLICATIONS}add/")
    assert "field-use" not in html
    assert "field-state_label" not in html


def test_stored_secret_is_told_and_not_shown(operator: Client, application: Application) -> None:
    html = page(operator, page_of(application))
    assert "A secret is stored. Leave this empty to keep it." in html
    assert "sandbox-secret" not in html
    (field,) = re.findall('<input[^>]*name="new_secret"[^>]*>', html)
    assert 'type="password"' in field
    assert 'autocomplete="new-password"' in field
    assert "value=" not in field


@pytest.mark.parametrize("keys", [[OTHER_KEY], []])
def test_secret_that_no_key_opens_is_told(
    operator: Client, application: Application, keys: list[str]
) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=keys):
        html = page(operator, page_of(application))
    assert "No key of this site opens the stored secret: enter it again." in html
    assert "A secret is stored" not in html


def test_empty_secret_keeps_the_stored_one(operator: Client, application: Application) -> None:
    save(operator, page_of(application), name="renamed")
    stored = Application.objects.get()
    assert (stored.name, stored.client_secret) == ("renamed", "sandbox-secret")


def test_new_secret_replaces_the_stored_one(operator: Client, application: Application) -> None:
    save(operator, page_of(application), new_secret="new")
    assert Application.objects.get().client_secret == "new"


def test_secret_that_no_key_opens_survives_a_change_of_the_name(
    operator: Client, application: Application
) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]):
        save(operator, page_of(application), name="renamed")
    stored = Application.objects.get()
    assert (stored.name, stored.client_secret) == ("renamed", "sandbox-secret")


@override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[])
def test_secret_without_an_encryption_key_is_an_error_of_the_form(operator: Client) -> None:
    response = save(operator, f"{APPLICATIONS}add/", new_secret="secret-of-ours")
    assert "infusionsoft_key" in response.content.decode()
    assert "secret-of-ours" not in response.content.decode()
    assert not Application.objects.exists()


def test_secret_typed_into_a_form_with_an_error_does_not_come_back(operator: Client) -> None:
    response = save(operator, f"{APPLICATIONS}add/", name="", new_secret="secret-of-ours")
    assert response.status_code == 200
    assert "secret-of-ours" not in response.content.decode()


def test_secret_is_in_no_page_and_in_no_log_entry(
    operator: Client, application: Application
) -> None:
    answers = [
        save(operator, page_of(application), new_secret="secret-of-ours"),
        save(operator, page_of(application), name="", new_secret="second-one"),
        save(operator, f"{APPLICATIONS}add/", client_id="x", new_secret="third-one"),
    ]
    urls = [f"{APPLICATIONS}{application.pk}/{name}/" for name in ("change", "delete", "history")]
    told = [page(operator, url) for url in (APPLICATIONS, LIST, f"{LIST}add/", "/admin/", *urls)]
    told += [f"{each.content.decode()} {messages_of(each)}" for each in answers]
    told += [f"{entry} {entry.change_message}" for entry in LogEntry.objects.all()]
    assert LogEntry.objects.count() == 2
    sealed = str(Application.objects.get(pk=application.pk).__dict__["client_secret"].value)
    for secret in ("sandbox-secret", "secret-of-ours", "second-one", "third-one", sealed):
        assert secret not in " ".join(told)


def test_application_can_be_looked_at_by_who_may_not_change_it(application: Application) -> None:
    client = visitor(user_who_may("view_application"))
    html = page(client, page_of(application))
    assert "sandbox-client" in html
    assert "secret" not in html  # an empty place for it would say that there is none
    assert FINE in plain(html)


def test_second_default_application_takes_the_place_of_the_first(
    operator: Client, application: Application
) -> None:
    Application.objects.create(name="old", client_id="x", client_secret="y", is_default=True)
    save(operator, page_of(application), is_default="on")
    assert Application.objects.get(is_default=True) == application


# Delete


def delete_of(application: Application) -> str:
    return f"{APPLICATIONS}{application.pk}/delete/"


def test_application_in_use_cannot_be_deleted_and_its_use_is_told(
    operator: Client, application: Application
) -> None:
    account(application=application)
    html = page(operator, delete_of(application))
    assert "would require deleting the following protected related objects" in html
    assert "Ours: in use by 1 credential" in plain(html)
    assert "ab123" not in html
    operator.post(delete_of(application), {"post": "yes"})
    assert Application.objects.exists()


def test_page_that_refuses_to_delete_costs_as_much_for_many_credentials_as_for_few(
    operator: Client, django_assert_num_queries: Any
) -> None:
    for count in (2, 60):
        Credential.objects.all().delete()
        many(count)
        with django_assert_num_queries(6):
            html = page(operator, delete_of(Application.objects.get()))
        assert f"many: in use by {count} credentials" in plain(html)
        assert "x0000" not in html


def test_unused_application_can_be_deleted_with_its_state(
    operator: Client, application: Application
) -> None:
    stop(application)
    operator.post(delete_of(application), {"post": "yes"})
    assert not Application.objects.exists()
    assert not ApplicationState.objects.exists()


@pytest.mark.parametrize("is_used", [True, False])
def test_selected_applications_are_deleted_unless_one_is_in_use(
    operator: Client, application: Application, second: Application, is_used: bool
) -> None:
    if is_used:
        account(application=second)
    ids = [application.pk, second.pk]
    form = {"action": "delete_selected", "_selected_action": ids}
    html = operator.post(APPLICATIONS, form).content.decode()
    assert ("Second: in use by 1 credential" in plain(html)) is is_used
    operator.post(APPLICATIONS, {**form, "post": "yes"})
    assert Application.objects.count() == (2 if is_used else 0)
