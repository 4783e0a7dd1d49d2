"""The sandbox's HTML pages: Django templates without Django settings."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from django.template import Context, Engine

from .messages import Reply, Request, html_reply

# No form-action here: browsers apply it to the redirect after a form too, and Allow leads
# to another site.
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
    """Render a page. Give numbers and dates as text: formatting them would need settings."""
    # Said outright, or Django would look both up in the settings.
    values = Context(dict(context), use_l10n=False, use_tz=False)
    content = _engine().get_template(template).render(values)
    return html_reply(content, status=status, headers={**PAGE_HEADERS, **(headers or {})})


def error_page(title: str, message: str, *, status: int = 400) -> Reply:
    """A page that ends the way; the message is in a header too, for scripts."""
    printable = "".join(each if each.isprintable() else "?" for each in message)
    headers = {"X-Sandbox-Error": printable.encode("ascii", "replace").decode()}
    return page("error.html", {"title": title, "message": message}, status=status, headers=headers)


def is_from_elsewhere(request: Request) -> bool:
    """Tell whether another site's page sent this form (browsers say so in Origin)."""
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.host
