"""Switches for every behaviour of Keap that is not publicly known."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints


def _switch(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Switches:
    """Behaviours that can be changed while the sandbox runs (keap-facts section 12).

    Assigning an invalid value raises ValueError. Each assignment is atomic; a request in progress
    may use the old or the new value.
    """

    access_token_seconds: float = _switch(86_400, "lifetime of an access token, in seconds")
    refresh_token_seconds: float = _switch(45 * 86_400, "lifetime of a refresh token, in seconds")
    code_seconds: float = _switch(600, "lifetime of an authorization code, in seconds (our guess)")
    refresh_error: Literal["apigee", "mashery", "fault", "empty", "html"] = _switch(
        "apigee", "format of the HTTP 400 response to an invalid refresh token"
    )
    error_layout: Literal["pretty", "compact"] = _switch(
        "pretty", "layout of token errors: pretty is Apigee's, compact is Mashery's"
    )
    refresh_grace_seconds: float = _switch(
        0, "how long a used refresh token still yields another token pair, in seconds"
    )
    refresh_revokes_access_tokens: bool = _switch(
        False, "a refresh revokes the grant's older access tokens immediately"
    )
    new_grant_revokes_older: bool = _switch(
        False, "a new grant revokes older ones of the same user, client and account"
    )
    refresh_client_auth: Literal["basic", "body", "either"] = _switch(
        "basic", "where a refresh request must carry the client id and secret"
    )
    redirect_uri: Literal["loopback", "https", "any"] = _switch(
        "loopback", "allowed redirect URIs: loopback allows https, and http on loopback hosts"
    )
    callback: Literal["redirect", "deny", "never"] = _switch(
        "redirect", "what follows “Allow”: the callback, access_denied, or no redirect at all"
    )
    callback_scope: bool = _switch(True, "send scope=full|<account> to the callback")
    token_scope: Literal["account", "full", "absent"] = _switch(
        "account", "scope in token responses: full|<account>, full, or none"
    )
    tenant_id: Literal["bare", "host", "absent"] = _switch(
        "bare", "tenant_id in v2 userinfo: ab123, ab123.infusionsoft.com, or none"
    )
    query_access_token: bool = _switch(False, "accept ?access_token= in API requests")
    quota_headers: Literal["piped", "scalar", "off"] = _switch(
        "piped", "x-keap-* headers: tenant family as minute|day, as scalars, or none at all"
    )

    quota_enforced: bool = _switch(True, "refuse API requests over a limit with a 429")
    client_second_limit: float = _switch(
        0, "API requests of a client in a second, over all accounts; Keap allows 25; 0 is no limit"
    )
    client_minute_limit: float = _switch(1_500, "API requests of a client in a minute")
    client_day_limit: float = _switch(150_000, "API requests of a client in a day (UTC)")
    tenant_minute_limit: float = _switch(10_000, "API requests to an account in a minute")
    tenant_day_limit: float = _switch(250_000, "API requests to an account in a day (UTC)")

    def __setattr__(self, name: str, value: object) -> None:
        expected = _hints().get(name)
        if expected is None:
            raise AttributeError(f"Unknown switch {name!r}. Known: {', '.join(_hints())}.")
        if problem := _problem(expected, value):
            raise ValueError(f"Switch {name} {problem}, not {value!r}.")
        super().__setattr__(name, value)

    def reset(self) -> None:
        """Reset every switch to its default."""
        for each in fields(self):
            setattr(self, each.name, each.default)


def _hints() -> dict[str, Any]:
    if not _HINTS:
        _HINTS.update(get_type_hints(Switches))
    return _HINTS


_HINTS: dict[str, Any] = {}


def _problem(expected: Any, value: object) -> str:
    if get_origin(expected) is Literal:
        choices = get_args(expected)
        return "" if value in choices else f"must be one of {', '.join(choices)}"
    if expected is bool:
        return "" if isinstance(value, bool) else "must be True or False"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "" if is_number and value >= 0 else "must be a number, 0 or more"  # type: ignore[operator]
