"""Templates of a site: they cannot change or reveal anything by naming a method."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from django.template import Context, Template

from django_infusionsoft.models import Credential, CredentialManager, CredentialQuerySet
from django_infusionsoft.sandbox import Sandbox

# They read, and return no secret.
HARMLESS = {
    "session",
    "asession",
    "afor_account",
    "xmlrpc",
    "connected",
    "due",
    "needs_reauthorization",
    "for_account",
    "get_default",
    "get_queryset",
}


def methods(owner: type) -> list[str]:
    """Return the public methods that the app adds to the class."""
    found = [name for name, each in vars(owner).items() if inspect.isfunction(each)]
    return sorted({each for each in found if not each.startswith("_")} - HARMLESS)


def rendered(thing: Any, method: str) -> str:
    return Template(f"{{{{ thing.{method} }}}}").render(Context({"thing": thing}))


@pytest.mark.parametrize("method", methods(Credential))
def test_template_cannot_call_a_method_of_a_credential(
    expired: Credential, sandbox: Sandbox, method: str
) -> None:
    before = Credential.objects.values().get()
    assert rendered(expired, method) == ""
    assert Credential.objects.values().get() == before
    assert sandbox.token_requests == []


@pytest.mark.parametrize("method", methods(CredentialManager))
def test_template_cannot_call_a_method_of_the_manager(method: str) -> None:
    assert rendered(Credential.objects, method) == ""


@pytest.mark.parametrize("method", methods(CredentialQuerySet))
def test_template_cannot_call_a_method_of_a_queryset(
    connect: Callable[..., Credential], method: str
) -> None:
    connect()
    before = Credential.objects.values().get()
    assert rendered(Credential.objects.get_queryset(), method) == ""
    assert Credential.objects.values().get() == before
