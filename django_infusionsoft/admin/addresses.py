"""Where the pages of an admin site are, and the way to Keap."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.urls import NoReverseMatch, reverse


def page(site_name: str, name: str, *args: Any) -> str:
    """Return the address of a page of the admin site, such as ``credential_changelist``."""
    return reverse(f"admin:django_infusionsoft_{name}", args=args, current_app=site_name)


def page_of_application(site_name: str, application_id: int | None) -> str:
    """Return the address of an application's page; empty where the admin site has none."""
    if application_id is None:
        return ""
    try:
        return page(site_name, "application_change", application_id)
    except NoReverseMatch:  # which is a site's own choice
        return ""


def authorize(*, next_url: str, **parameters: Any) -> str:
    """Return where a person is sent to Keap; empty where the site does not include our URLs.

    :param parameters: of ``AuthorizeView``.
    """
    try:
        url = reverse("django_infusionsoft:authorize")
    except NoReverseMatch:  # which a system check tells
        return ""
    return f"{url}?{urlencode({**parameters, 'next': next_url})}"
