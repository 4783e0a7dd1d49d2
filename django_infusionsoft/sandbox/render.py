"""The sandbox's HTML pages: Django templates without Django settings."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from django.template import Context, Engine

from .messages import Reply, Request, html_reply

# No form-action: browsers also apply it to the redirect after a form, and Allow redirects to
# another site.
PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


@cache
def _engine() -> Engine:
    return Engine(dirs=[str(Path(__file__).parent / "pages")], autoescape=True)


def page(
    template: str,
    context: Mapping[str, object],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Return a rendered page. Pass numbers and dates as text: formatting needs settings."""
    # Explicit, or Django would read both from the settings.
    values = Context(dict(context), use_l10n=False, use_tz=False)
    content = _engine().get_template(template).render(values)
    return html_reply(content, status=status, headers={**PAGE_HEADERS, **(headers or {})})


def error_page(title: str, message: str, *, status: int = 400) -> Reply:
    """Return an error page, with the message also in a header, for scripts."""
    printable = "".join(each if each.isprintable() else "?" for each in message)
    headers = {"X-Sandbox-Error": printable.encode("ascii", "replace").decode()}
    return page("error.html", {"title": title, "message": message}, status=status, headers=headers)


def is_from_elsewhere(request: Request) -> bool:
    """Whether another site's page sent this form, according to the Origin header."""
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.host
