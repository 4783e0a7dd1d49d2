"""Keap's official SDK for v2, with a credential's access token: the extra ``sdk``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from django_infusionsoft.exceptions import ConfigurationError
from django_infusionsoft.storage.credentials import CredentialRow

if TYPE_CHECKING:
    from keap_core_v2_client.api_client import ApiClient


def api_client(credential: CredentialRow, **configuration: Any) -> ApiClient:
    """Return a client of Keap's SDK for one account.

    It always sends a valid access token, and replaces one that is rejected, once. Clients without
    a configuration of their own share their connections. After an error ``Quota.of(error)`` is the
    quota.

    :param configuration: of ``keap_core_v2_client.Configuration``.
    :raises ConfigurationError: the SDK is not installed.
    """
    try:
        # Not before: its import takes seconds.
        client: Any = import_module("django_infusionsoft.api.sdk_client")
    except ImportError as error:
        raise ConfigurationError(
            "api_client() needs Keap's SDK: pip install django-infusionsoft[sdk]"
        ) from error
    found: ApiClient = client.CredentialApiClient(credential, configuration)
    return found
