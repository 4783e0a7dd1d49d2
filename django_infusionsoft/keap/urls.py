"""The URLs of Keap's API, which are all below ``INFUSIONSOFT_API_URL``."""

import re
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from requests.exceptions import InvalidURL

from django_infusionsoft.conf import conf
from django_infusionsoft.exceptions import ConfigurationError

# Both names lead to one API, and its answers name either (keap-facts 4 and 8).
KEAP_HOSTS: Final = ("api.infusionsoft.com", "api.keap.com")
KEAP_PATH: Final = "/crm/rest/"
# Keap's documents write a path with both, with the second or with none of these prefixes.
PREFIX: Final = r"/*(?:(?:crm/)?rest/(?=v[0-9]))?"
# Every URL parser reads this as a path below the base: it has no scheme, no host and no dots.
PLAIN_PATH: Final = re.compile(rf"{PREFIX}([A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*)", re.ASCII)
CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x1f\x7f]")

Origin = tuple[str, str | None, int | None, str | None]
KEAP_ORIGINS: Final[tuple[Origin, ...]] = tuple(("https", host, 443, None) for host in KEAP_HOSTS)


def resolve(url: str) -> str:
    """Return the absolute URL of an API path, such as ``v2/contacts``.

    Absolute URLs on Keap's own hosts are resolved to the host of ``INFUSIONSOFT_API_URL``.

    :raises ConfigurationError: the URL is on another host, which must not get the access token.
    :raises InvalidURL: it is malformed, or its path would leave the API.
    """
    base = _base()
    if plain := PLAIN_PATH.fullmatch(url):
        return base + plain[1]
    parts = _split(url.lstrip("/"))
    path = parts.path
    if parts.scheme or parts.netloc:
        path = _path_at_keap(parts, base)
    _require_plain_segments(url, path)
    query = f"?{parts.query}" if parts.query else ""
    return f"{base}{re.sub(f'^{PREFIX}', '', path)}{query}"


def is_at_keap(url: str) -> bool:
    """Whether an absolute URL is one of the API's, which may get the access token."""
    if url.startswith(_base()):
        return True
    try:
        return _origin(urlsplit(url)) in _origins()
    except ValueError:
        return False


def is_same_origin(url: str, other: str) -> bool:
    """Whether scheme, host and port of two absolute URLs are the same."""
    return _origin(_split(url)) == _origin(_split(other))


def refusal(url: str) -> ConfigurationError:
    """Return the exception for a URL outside the API."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    return ConfigurationError(
        f"This session sends the account's access token, and only to {_base()} "
        f"(INFUSIONSOFT_API_URL): use another one for {host}."
    )


def _base() -> str:
    url = conf.API_URL
    return url if url.endswith("/") else url + "/"


def _origins() -> tuple[Origin, ...]:
    return (_origin(urlsplit(conf.API_URL)), *KEAP_ORIGINS)


def _path_at_keap(parts: SplitResult, base: str) -> str:
    """Return the path of an absolute URL relative to the base of the API."""
    for origin, root in zip(_origins(), (urlsplit(base).path, KEAP_PATH, KEAP_PATH), strict=True):
        if _origin(parts) == origin and parts.path.startswith(root):
            return parts.path.removeprefix(root)
    raise refusal(parts.geturl())


def _require_plain_segments(url: str, path: str) -> None:
    """Require that no parser reads the path as one outside the API, or as another host.

    Requests and servers remove ``..``, also where it is encoded, as is the slash beside it, or
    where a parameter follows it, as in ``..;a=b``.
    """
    decoded = path
    while (more := unquote(decoded)) != decoded:
        decoded = more
    segments = (each.partition(";")[0].strip() for each in re.split(r"[/\\]", decoded))
    if (
        CONTROL_CHARACTERS.search(url + decoded)
        or "\\" in path
        or not {".", ".."}.isdisjoint(segments)
    ):
        raise InvalidURL(f"The path would leave Keap's API, or has control characters: {url!r}")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _origin(parts)
    except ValueError as error:
        raise InvalidURL(f"{error}: {url!r}") from None
    return parts


def _origin(parts: SplitResult) -> Origin:
    """Return scheme, host, port and user name; Keap's URLs have no user name."""
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port, parts.username
