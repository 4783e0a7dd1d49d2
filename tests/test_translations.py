"""The German translation: complete, compiled, and used in pages and mails."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polib
import pytest
from django.test import Client, override_settings

import django_infusionsoft
from django_infusionsoft.exceptions import ReauthorizationRequired
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox
from tests.mails import mailing_by
from tests.support import run
from tests.web import APPLICATIONS, EVENTS, LIST, change_url, page

PACKAGE = Path(django_infusionsoft.__file__).parent
CATALOG = PACKAGE / "locale" / "de" / "LC_MESSAGES" / "django.po"
PLACEHOLDER = re.compile(r"%\(\w+\)\w|<[^>]+>")

Need = Callable[[str, str], None]


def entries() -> list[polib.POEntry]:
    return list(polib.pofile(str(CATALOG)))


def sentences() -> list[str]:
    """Return the English texts that no German page can contain by chance."""
    texts = [text for entry in entries() for text in (entry.msgid, entry.msgid_plural) if text]
    return [text for text in texts if text.count(" ") >= 2 and not PLACEHOLDER.search(text)]


def test_every_message_is_translated() -> None:
    assert [each.msgid for each in entries() if not each.translated() or each.fuzzy] == []
    assert not polib.pofile(str(CATALOG)).obsolete_entries()


def test_translations_have_the_same_placeholders_as_the_messages() -> None:
    for entry in entries():
        pairs = [(entry.msgid, entry.msgstr_plural.get(0, entry.msgstr))]
        if entry.msgid_plural:
            pairs.append((entry.msgid_plural, entry.msgstr_plural[1]))
        for text, translated in pairs:
            expected = sorted(PLACEHOLDER.findall(text))
            assert sorted(PLACEHOLDER.findall(translated)) == expected, text


def test_compiled_catalog_matches_its_source() -> None:
    compiled = polib.mofile(str(CATALOG.with_suffix(".mo")))
    translations = {each.msgid: (each.msgstr, each.msgstr_plural) for each in compiled}
    assert translations == {each.msgid: (each.msgstr, each.msgstr_plural) for each in entries()}


def test_catalog_contains_every_text_of_the_code(need: Need, tmp_path: Path) -> None:
    need("gettext", "" if shutil.which("xgettext") else "GNU gettext is missing")
    copy = tmp_path / "django_infusionsoft"
    shutil.copytree(PACKAGE, copy)
    command = [sys.executable, "-m", "django", "makemessages", "-l", "de", "--no-wrap"]
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": ""}
    subprocess.run(command, cwd=copy, env=environment, check=True, capture_output=True, timeout=60)
    found = list(polib.pofile(str(copy / CATALOG.relative_to(PACKAGE))))
    texts = {(each.msgid, each.msgid_plural) for each in found if not each.obsolete}
    assert texts == {(each.msgid, each.msgid_plural) for each in entries()}


@pytest.mark.django_db
@override_settings(LANGUAGE_CODE="de")
def test_pages_are_german(operator: Client, credential: Credential) -> None:
    Credential.objects.update(status="reauthorization_required", reason="used_elsewhere")
    pages = [
        page(operator, url)
        for url in (
            LIST,
            change_url(credential),
            f"{LIST}{credential.pk}/disconnect/",
            APPLICATIONS,
            APPLICATIONS + "add/",
            EVENTS,
            "/infusionsoft/authorize/",
        )
    ]
    assert "Keap-Konten" in pages[0]
    shown = " ".join(pages)
    assert [text for text in sentences() if text in shown] == []


@pytest.mark.django_db
@override_settings(LANGUAGE_CODE="de", INFUSIONSOFT_ALERT_RECIPIENTS=["ops@site.example"])
def test_mail_is_german(
    credential: Credential, sandbox: Sandbox, mailoutbox: list[object]
) -> None:
    sandbox.revoke("ab123")
    run()
    with mailing_by(), pytest.raises(ReauthorizationRequired):
        credential.refresh()
    (mail,) = mailoutbox
    shown = f"{getattr(mail, 'subject', '')} {getattr(mail, 'body', '')}"
    assert "Konto" in shown
    assert [text for text in sentences() if text in shown] == []


@pytest.mark.django_db
@override_settings(LANGUAGE_CODE="de")
def test_exceptions_are_not_translated(credential: Credential, sandbox: Sandbox) -> None:
    sandbox.revoke("ab123")
    with pytest.raises(
        ReauthorizationRequired, match="Keap reports that the grant is no longer valid"
    ):
        credential.refresh()
