"""Keap as a backend of social-auth-app-django's, for refreshing only."""

from __future__ import annotations

from typing import Any

from requests.auth import AuthBase, HTTPBasicAuth
from social_core.backends.oauth import BaseOAuth2


class KeapOAuth2(BaseOAuth2[Any]):
    name = "keap"
    REFRESH_TOKEN_METHOD = "POST"
    # A refresh must not lose the refresh token, which is a new one each time.
    EXTRA_DATA = [("refresh_token", "refresh_token", True), ("expires_in", "expires_in")]

    def refresh_token_url(self) -> str:
        return str(self.setting("TOKEN_ENDPOINT"))

    def refresh_token_auth(self) -> AuthBase:
        return HTTPBasicAuth(*self.get_key_and_secret())

    def get_user_details(self, response: Any) -> dict[str, Any]:
        return {}
