"""A credential's whole life cycle: no secret outside memory and the encrypted columns."""

import logging
import pickle
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core import serializers
from django.db import connection
from django.test import Client
from django.urls import reverse

from django_infusionsoft.exceptions import InfusionsoftError
from django_infusionsoft.models import Application, Credential, CredentialEvent
from django_infusionsoft.sandbox import Sandbox, faults
from tests.web import go_to_keap

pytestmark = pytest.mark.django_db


def attempt(credential: Credential) -> list[str]:
    """Refresh, and return all texts of the exception."""
    try:
        credential.refresh()
    except InfusionsoftError as error:
        causes = [error, error.__cause__, error.__context__]
        return [f"{cause!r} {cause} {vars(cause) if cause else ''}" for cause in causes]
    return []


def dump_database() -> str:
    tables = [model._meta.db_table for model in (Application, Credential, CredentialEvent)]
    rows: list[Any] = []
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"SELECT * FROM {table}")  # noqa: S608  # three known table names
            rows += cursor.fetchall()
    return repr(rows)


def test_no_text_contains_a_secret_after_a_whole_life_cycle(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("", "requests_oauthlib", "oauthlib", "urllib3", "django_infusionsoft"):
        caplog.set_level(logging.DEBUG, logger=name)
    secrets = {sandbox.settings["INFUSIONSOFT_CLIENT_SECRET"]}
    shown: list[str] = []

    # Connect as in a browser
    site = Client(SERVER_NAME="localhost")
    site.force_login(User.objects.create_superuser("admin"))
    code_url = sandbox.authorize(go_to_keap(site), account="ab123")
    response = site.get(code_url)
    shown += [response.content.decode(), str(response.headers)]
    secrets.add(code_url.split("code=")[1].split("&")[0])

    # Call the API, and let refreshes fail in different ways
    credential = Credential.objects.for_account("ab123")
    session = credential.session()
    shown.append(repr(session.get("v2/contacts")))
    sandbox.revoke_access_tokens("ab123")
    secrets |= {credential.access_token, credential.refresh_token}
    session.get("v2/contacts")
    secrets |= {credential.access_token, credential.refresh_token}
    shown += [repr(vars(credential)), repr(pickle.dumps(credential))]
    for fault in (
        None,
        faults.error_503(),
        faults.html(),
        faults.answer(401),
        faults.drop_after(),
    ):
        if fault is not None:
            sandbox.plan(fault, account="ab123")  # but not for a probe
        shown += attempt(credential)
        secrets |= {credential.access_token, credential.refresh_token}
    shown += attempt(credential)

    # Collect all texts
    credential.refresh_from_db()
    shown += [repr(credential), str(credential), repr(vars(credential)), str(session.headers)]
    shown.append(serializers.serialize("json", Credential.objects.all()))
    shown.append(repr(list(Credential.objects.values())))
    shown.append(repr(pickle.dumps(credential)))
    shown.append(dump_database())
    for name in ("application", "credential", "credentialevent"):
        url = reverse(f"admin:django_infusionsoft_{name}_changelist")
        shown.append(site.get(url).content.decode())
    url = reverse("admin:django_infusionsoft_credential_change", args=[credential.pk])
    shown.append(site.get(url).content.decode())

    assert credential.reason == "rotation_lost"
    assert len(secrets) == 8
    assert "refresh_failed" in caplog.text
    for number, text in enumerate([caplog.text, *shown]):
        assert not [secret for secret in secrets if secret in text], (number, text[:200])
