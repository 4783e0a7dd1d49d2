"""URLs of an admin site's pages and of the authorization view."""

from typing import Any

from django.urls import NoReverseMatch, reverse


def page(site_name: str, name: str, *args: Any) -> str:
    """Return the URL of a page of the admin site, such as ``credential_changelist``."""
    return reverse(f"admin:django_infusionsoft_{name}", args=args, current_app=site_name)


def page_if_any(site_name: str, name: str, *args: Any) -> str:
    """Return the URL of a page; empty if its model is not registered at the admin site."""
    try:
        return page(site_name, name, *args)
    except NoReverseMatch:
        return ""


def authorize(*, next_url: str, **parameters: Any) -> str:
    """Return the URL to connect an account; empty if the site does not include the app's URLs.

    :param parameters: of ``AuthorizeView``.
    """
    query = {**parameters, "next": next_url}
    try:
        return reverse("django_infusionsoft:authorize", query=query)
    except NoReverseMatch:  # reported by check W002
        return ""
