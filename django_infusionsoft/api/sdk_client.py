"""The client of Keap's SDK, which has no refresh and no timeout of its own (keap-facts 9)."""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from django.utils.asyncio import async_unsafe
from keap_core_v2_client.api_client import ApiClient
from keap_core_v2_client.configuration import Configuration
from keap_core_v2_client.rest import RESTClientObject

from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ReplacedRecently
from django_infusionsoft.keap.headers import authorization
from django_infusionsoft.keap.sessions import Session
from django_infusionsoft.keap.urls import is_at_keap, refusal
from django_infusionsoft.redaction import Secret, clears_locals
from django_infusionsoft.refresh import single
from django_infusionsoft.storage.credentials import CredentialRow

ON_A_LOOP: Final = "Keap's SDK would stop the event loop while it waits: use asession()."
UNAUTHORIZED: Final = 401
# The SDK's paths begin with it.
REST: Final = "/rest"


class CredentialApiClient(ApiClient):
    """Sends a credential's access token, and handles a 401 as a session does."""

    def __init__(self, credential: CredentialRow, configuration: Mapping[str, Any]) -> None:
        super().__init__(_configuration(configuration))
        self._credential = credential
        self._is_shared = not configuration

    @async_unsafe(ON_A_LOOP)
    @clears_locals
    def call_api(
        self,
        method: str,
        url: str,
        header_params: dict[str, str] | None = None,
        body: Any = None,
        post_params: Any = None,
        _request_timeout: Any = None,
    ) -> Any:
        if not is_at_keap(url):
            raise refusal(url)
        if self._is_shared:
            self.rest_client = _shared(os.getpid(), self.configuration.host)
        timeout = _request_timeout or (conf.CONNECT_TIMEOUT_SECONDS, conf.READ_TIMEOUT_SECONDS)
        call_api = super().call_api

        def send(access_token: str) -> Any:
            name, value = authorization(access_token, is_key=self._credential.is_key)
            headers = {**(header_params or {}), name: value}
            return call_api(method, url, headers, body, post_params, timeout)

        access_token = single.get_access_token(self._credential)
        response = send(access_token)
        if response.status != UNAUTHORIZED:
            return response
        response.read()  # the connection can be used again
        try:
            return send(single.replace_access_token(self._credential, Secret(access_token)))
        except ReplacedRecently:
            return response


def _configuration(given: Mapping[str, Any]) -> Configuration:
    defaults = {
        "host": conf.API_URL.rstrip("/").removesuffix(REST),
        # A repeated write may be a second order.
        "retries": False,
    }
    found = Configuration(**{**defaults, **given})
    # The proxy and the certificates that requests would use.
    environment = Session().merge_environment_settings(found.host, {}, None, None, None)
    proxies, verify = environment["proxies"], environment["verify"]
    found.proxy = found.proxy or proxies.get(found.host.partition(":")[0]) or proxies.get("all")
    if isinstance(verify, str):
        found.ssl_ca_cert = found.ssl_ca_cert or verify
    return found


@cache
def _shared(process_id: int, host: str) -> RESTClientObject:
    """Return the connections of a process: a child must not use its parent's."""
    return RESTClientObject(_configuration({}))
