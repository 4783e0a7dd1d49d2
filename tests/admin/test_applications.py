"""The admin's applications: their use, their state at Keap, and a secret that is never shown."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.test import Client, override_settings
from django.urls import path, reverse
from django.utils import timezone

from django_infusionsoft.admin import ApplicationAdmin, icons
from django_infusionsoft.choices import BlockReason
from django_infusionsoft.exceptions import ClientRejected
from django_infusionsoft.models import Application, ApplicationState, Credential
from django_infusionsoft.sandbox import Sandbox
from tests.web import (
    APPLICATIONS,
    LIST,
    OTHER_KEY,
    account,
    accounts_in,
    client_for,
    links,
    many,
    messages_of,
    page,
    plain,
    stop,
    texts,
    user_who_may,
)

pytestmark = pytest.mark.django_db

FINE = "No known problem with this client."

# An admin site that registers only applications
application_site = admin.AdminSite(name="application_site")
application_site.register(Application, ApplicationAdmin)
urlpatterns = [path("application-site/", application_site.urls)]


@pytest.fixture
def application() -> Application:
    return Application.objects.create(
        name="Ours", client_id="sandbox-client", client_secret="sandbox-secret"
    )


def change_url(application: Application) -> str:
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


def have_keap_reject(sandbox: Sandbox, application: Application | None) -> None:
    """Let Keap reject the client because of its wrong secret."""
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


def test_use_is_shown_in_list_and_page_and_links_to_the_credentials(
    operator: Client, application: Application, second: Application
) -> None:
    account("ab123", application=application)
    account("cd456", application=application)
    account("ef789", application=second)
    assert column(operator, "use") == ["in use by 2 credentials", "in use by 1 credential"]
    url = f"{LIST}?application={application.pk}"
    for html in (page(operator, APPLICATIONS), page(operator, change_url(application))):
        assert (url, "in use by 2 credentials") in links(html)
    assert accounts_in(page(operator, url)) == ["ab123", "cd456"]


def test_unused_application_is_marked_in_list_and_page(
    operator: Client, application: Application
) -> None:
    account()
    assert column(operator, "use") == ["not used by any credential"]
    html = page(operator, change_url(application))
    assert "not used by any credential" in plain(html)
    assert f"?application={application.pk}" not in html


def test_default_is_marked_in_the_list(operator: Client, application: Application) -> None:
    Application.objects.create(name="usual", client_id="x", client_secret="y", is_default=True)
    assert column(operator, "default_label") == ["", "default"]


def test_list_needs_the_same_number_of_queries_for_many_applications(
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
def test_use_has_no_link_when_the_site_lacks_credentials(
    operator: Client, application: Application
) -> None:
    account(application=application)
    url = reverse("application_site:django_infusionsoft_application_changelist")
    for html in (page(operator, url), page(operator, f"{url}{application.pk}/change/")):
        assert "in use by 1 credential" in plain(html)
        assert "in use by 1 credential</a>" not in html


# The client in the settings


def test_client_in_the_settings_is_shown_above_the_list(operator: Client) -> None:
    account("ab123")
    account("cd456")
    assert above_the_list(operator) == (
        f"The settings also define a client: sandbox-client (in use by 2 credentials) {FINE}"
    )
    url = f"{LIST}?application=settings"
    assert (url, "in use by 2 credentials") in links(page(operator, APPLICATIONS))


def test_settings_filter_lists_the_credentials_of_the_client_in_the_settings(
    operator: Client, application: Application
) -> None:
    account("ab123")
    account("cd456", application=application)
    assert accounts_in(page(operator, f"{LIST}?application=settings")) == ["ab123"]


def test_unused_client_in_the_settings_is_marked(
    operator: Client, application: Application
) -> None:
    account(application=application)
    assert "(not used by any credential)" in above_the_list(operator)
    assert "?application=settings" not in page(operator, APPLICATIONS)


@override_settings(INFUSIONSOFT_CLIENT_ID="", INFUSIONSOFT_CLIENT_SECRET="")
def test_nothing_is_shown_above_the_list_without_a_client_in_the_settings(
    operator: Client,
) -> None:
    assert "infusionsoft-summary" not in page(operator, APPLICATIONS)


def test_rejected_client_in_the_settings_is_shown(operator: Client, sandbox: Sandbox) -> None:
    with override_settings(INFUSIONSOFT_CLIENT_SECRET="wrong"):
        have_keap_reject(sandbox, None)
        summary = above_the_list(operator)
    assert "(in use by 1 credential) Keap rejects the client (since " in summary
    assert " The next attempt will be made in " in summary


# The state of a client at Keap


def test_client_has_no_problem_when_it_was_never_rejected(
    operator: Client, application: Application
) -> None:
    assert column(operator, "state_label") == [FINE]
    html = page(operator, change_url(application))
    assert f'<span class="infusionsoft-good">{icons.GOOD.svg} {FINE}</span>' in html


def test_rejected_client_is_shown_in_list_and_page(operator: Client, sandbox: Sandbox) -> None:
    wrong = Application.objects.create(
        name="wrong", client_id="sandbox-client", client_secret="wrong"
    )
    have_keap_reject(sandbox, wrong)
    (state,) = column(operator, "state_label")
    assert state.startswith("Keap rejects the client (since ")
    html = page(operator, change_url(wrong))
    assert f'<span class="infusionsoft-bad">{icons.BAD.svg} Keap rejects the client (since' in html
    assert above_the_list(operator).endswith(FINE)  # another client


def test_client_has_no_problem_once_its_secret_is_corrected(
    operator: Client, sandbox: Sandbox
) -> None:
    wrong = Application.objects.create(
        name="wrong", client_id="sandbox-client", client_secret="wrong"
    )
    have_keap_reject(sandbox, wrong)
    save(operator, change_url(wrong), new_secret="sandbox-secret")
    Credential.objects.get().refresh()
    assert column(operator, "state_label") == [FINE]


@pytest.mark.parametrize(
    ("block_reason", "tone"),
    [
        (BlockReason.NONE, "good"),
        (BlockReason.REJECTED, "bad"),
        (BlockReason.UNANSWERED, "waiting"),
        (BlockReason.UNAVAILABLE, "waiting"),
    ],
)
def test_block_reason_is_shown_with_its_tone(
    operator: Client, application: Application, block_reason: BlockReason, tone: str
) -> None:
    stop(application, block_reason)
    words = f"{block_reason.label} (since " if block_reason else FINE
    for html in (page(operator, APPLICATIONS), page(operator, change_url(application))):
        found = re.findall(rf'<span class="infusionsoft-{tone}">(.*?)</span>', html, re.DOTALL)
        assert [each for each in map(plain, found) if each.startswith(words)]


def test_block_reason_is_shown_only_for_its_own_application(
    operator: Client, application: Application, second: Application
) -> None:
    stop(second)
    fine, rejected = column(operator, "state_label")
    assert (fine, rejected.partition(" (")[0]) == (FINE, "Keap rejects the client")
    assert FINE in above_the_list(operator)
    assert FINE in plain(page(operator, change_url(application)))


# The secret


@pytest.mark.parametrize("secret", ["plain", "with spaces in it", "$&<>\"'%{}", "zażółć"])
def test_secret_of_a_new_application_is_stored_unchanged(operator: Client, secret: str) -> None:
    assert save(operator, f"{APPLICATIONS}add/", new_secret=secret).status_code == 302
    assert Application.objects.get().client_secret == secret


def test_secret_is_required_for_a_new_application(operator: Client) -> None:
    response = save(operator, f"{APPLICATIONS}add/")
    assert "This field is required" in response.content.decode()
    assert not Application.objects.exists()


def test_form_of_a_new_application_has_neither_use_nor_state(operator: Client) -> None:
    html = page(operator, f"{APPLICATIONS}add/")
    assert "field-use" not in html
    assert "field-state_label" not in html


def test_form_says_that_a_secret_is_stored_without_showing_it(
    operator: Client, application: Application
) -> None:
    html = page(operator, change_url(application))
    assert "A secret is stored. Leave this field empty to keep it." in html
    assert "sandbox-secret" not in html
    (field,) = re.findall('<input[^>]*name="new_secret"[^>]*>', html)
    assert 'type="password"' in field
    assert 'autocomplete="new-password"' in field
    assert "value=" not in field


@pytest.mark.parametrize("keys", [[OTHER_KEY], []])
def test_form_asks_for_the_secret_again_when_no_key_decrypts_it(
    operator: Client, application: Application, keys: list[str]
) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=keys):
        html = page(operator, change_url(application))
    assert "No encryption key of this site can decrypt the stored secret. Enter it again." in html
    assert "A secret is stored" not in html


def test_empty_secret_keeps_the_stored_one(operator: Client, application: Application) -> None:
    save(operator, change_url(application), name="renamed")
    stored = Application.objects.get()
    assert (stored.name, stored.client_secret) == ("renamed", "sandbox-secret")


def test_new_secret_replaces_the_stored_one(operator: Client, application: Application) -> None:
    save(operator, change_url(application), new_secret="new")
    assert Application.objects.get().client_secret == "new"


def test_secret_that_no_key_decrypts_is_kept_when_the_name_changes(
    operator: Client, application: Application
) -> None:
    with override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[OTHER_KEY]):
        save(operator, change_url(application), name="renamed")
    stored = Application.objects.get()
    assert (stored.name, stored.client_secret) == ("renamed", "sandbox-secret")


@override_settings(INFUSIONSOFT_ENCRYPTION_KEYS=[])
def test_form_shows_an_error_when_there_is_no_encryption_key(operator: Client) -> None:
    response = save(operator, f"{APPLICATIONS}add/", new_secret="first-secret")
    assert "infusionsoft_key" in response.content.decode()
    assert "first-secret" not in response.content.decode()
    assert not Application.objects.exists()


def test_entered_secret_is_not_shown_again_when_the_form_has_errors(operator: Client) -> None:
    response = save(operator, f"{APPLICATIONS}add/", name="", new_secret="first-secret")
    assert response.status_code == 200
    assert "first-secret" not in response.content.decode()


def test_secret_is_in_no_page_and_in_no_log_entry(
    operator: Client, application: Application
) -> None:
    responses = [
        save(operator, change_url(application), new_secret="first-secret"),
        save(operator, change_url(application), name="", new_secret="second-secret"),
        save(operator, f"{APPLICATIONS}add/", client_id="x", new_secret="third-secret"),
    ]
    urls = [f"{APPLICATIONS}{application.pk}/{name}/" for name in ("change", "delete", "history")]
    texts_shown = [
        page(operator, url) for url in (APPLICATIONS, LIST, f"{LIST}add/", "/admin/", *urls)
    ]
    texts_shown += [f"{each.content.decode()} {messages_of(each)}" for each in responses]
    texts_shown += [f"{entry} {entry.change_message}" for entry in LogEntry.objects.all()]
    assert LogEntry.objects.count() == 2
    ciphertext = str(Application.objects.get(pk=application.pk).__dict__["client_secret"].value)
    for secret in ("sandbox-secret", "first-secret", "second-secret", "third-secret", ciphertext):
        assert secret not in " ".join(texts_shown)


def test_application_can_be_viewed_without_the_change_permission(application: Application) -> None:
    client = client_for(user_who_may("view_application"))
    html = page(client, change_url(application))
    assert "sandbox-client" in html
    assert "secret" not in html  # an empty field would suggest that no secret is stored
    assert FINE in plain(html)


def test_new_default_application_replaces_the_previous_one(
    operator: Client, application: Application
) -> None:
    Application.objects.create(name="old", client_id="x", client_secret="y", is_default=True)
    save(operator, change_url(application), is_default="on")
    assert Application.objects.get(is_default=True) == application


# Delete


def delete_of(application: Application) -> str:
    return f"{APPLICATIONS}{application.pk}/delete/"


def test_application_in_use_cannot_be_deleted(operator: Client, application: Application) -> None:
    account(application=application)
    html = page(operator, delete_of(application))
    assert "would require deleting the following protected related objects" in html
    assert "Ours: in use by 1 credential" in plain(html)
    assert "ab123" not in html
    operator.post(delete_of(application), {"post": "yes"})
    assert Application.objects.exists()


def test_delete_page_needs_the_same_number_of_queries_for_many_credentials(
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
