"""The URLs of Keap's API, which are all on the host of ``INFUSIONSOFT_API_URL``."""

import re
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from requests.exceptions import InvalidURL

from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError

# Every URL parser reads this as a path below the base: it has no scheme, no host and no dots.
PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", re.ASCII)


def resolve(url: str) -> str:
    """Return the absolute URL of an API path, such as ``v2/contacts``.

    :raises ConfigurationError: the URL is on another host, which must not get the access token.
    """
    base = conf.API_URL
    base = base if base.endswith("/") else base + "/"
    path = url.lstrip("/")
    if PLAIN_PATH.fullmatch(path):
        return base + path
    try:
        resolved = urlsplit(urljoin(base, path))
        is_keap = _origin(resolved) == _origin(api := urlsplit(base))
    except ValueError as error:
        raise InvalidURL(f"{error}: {url!r}") from None
    if not is_keap:
        raise ConfigurationError(
            f"This session sends the account's access token, and only to {base} "
            f"(INFUSIONSOFT_API_URL): use another one for {resolved.hostname}."
        )
    # Scheme and host as in the setting: another parser may read the caller's spelling differently.
    return resolved._replace(scheme=api.scheme, netloc=api.netloc).geturl()


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None, str | None]:
    """Return scheme, host, port and user name; Keap's URLs have no user name."""
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port, parts.username
