"""A minimal web browser: links, forms and cookies."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urljoin

import requests

TIMEOUT_SECONDS = 30


class PageError(Exception):
    """The page is not the expected one."""


@dataclass
class Form:
    """One form: its URL, its fields, and its submit buttons."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    buttons: list[tuple[str, str]] = field(default_factory=list)

    def accepts(self, values: dict[str, str]) -> bool:
        """Whether each value has a field, or a button with that value."""
        return all(item[0] in self.fields or item in self.buttons for item in values.items())


class _PageReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.links: list[tuple[str, str]] = []  # text and URL
        self._form: Form | None = None
        self._link: tuple[str, str] | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        if tag == "a":
            self._link = ("", values.get("href", ""))
        elif tag == "form":
            self._form = Form(values.get("action", ""), values.get("method", "get").lower())
            self.forms.append(self._form)
        elif self._form and (tag == "button" or values.get("type") == "submit"):
            self._form.buttons.append((values.get("name", ""), values.get("value", "")))
        elif self._form and tag == "input":
            self._form.fields[values.get("name", "")] = values.get("value", "")

    def handle_data(self, text: str) -> None:
        if self._link:
            self._link = (self._link[0] + text, self._link[1])

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        elif tag == "a" and self._link:
            self.links.append(self._link)
            self._link = None


class Visitor:
    """Opens pages, follows links, sends forms, keeps cookies."""

    def __init__(self) -> None:
        self._session = requests.Session()
        self._page = requests.Response()
        self._reader = _PageReader()

    @property
    def url(self) -> str:
        return self._page.url

    @property
    def text(self) -> str:
        return self._page.text

    def open(self, url: str) -> None:
        """:raises PageError: the page is an error page."""
        self._arrive(self._session.get(url, timeout=TIMEOUT_SECONDS))

    def follow(self, text: str) -> None:
        """Follow the first link with this text.

        :raises PageError: the page has no such link, or its page is an error page.
        """
        for label, target in self._reader.links:
            if text in label:
                return self.open(urljoin(self.url, target))
        raise PageError(f"{self.url} has no link {text!r}")

    def submit(self, part_of_action: str, **values: str) -> None:
        """Submit the first form with this URL that accepts these values, in fields or by a button.

        :raises PageError: the page has no such form, or the response is an error page.
        """
        for form in self._reader.forms:
            action = urljoin(self.url, form.action)
            if form.method == "post" and part_of_action in action and form.accepts(values):
                data = form.fields | values
                return self._arrive(self._session.post(action, data=data, timeout=TIMEOUT_SECONDS))
        wanted = " and ".join(values) or "nothing to fill in"
        raise PageError(f"{self.url} has no form to {part_of_action} with {wanted}")

    def _arrive(self, page: requests.Response) -> None:
        self._page = page
        self._reader = _PageReader()
        self._reader.feed(page.text)
        if not page.ok:
            raise PageError(f"{page.url} responded with {page.status_code} {page.reason}")
