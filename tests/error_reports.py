"""What error reports contain: the events of Sentry's SDK, and Django's mails and debug page."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import sentry_sdk
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_started
from django.db import close_old_connections
from django.http import HttpResponse
from django.test import Client, RequestFactory, override_settings
from django.utils.log import AdminEmailHandler
from django.views.debug import ExceptionReporter
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from django_infusionsoft.sandbox import Sandbox


class Reports:
    """All reports of the block, as texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, error: BaseException) -> None:
        """Report an exception as a site's process does that does not catch it."""
        sentry_sdk.capture_exception(error)
        reporter = ExceptionReporter(None, type(error), error, error.__traceback__)
        with override_settings(DEBUG=True):  # so that Django hides no variable
            self.texts += [reporter.get_traceback_html(), reporter.get_traceback_text()]

    def of(self, function: Callable[[], object]) -> None:
        """Call the function, and report its exception."""
        try:
            function()
        except Exception as error:  # noqa: BLE001
            self.add(error)

    def leaks(self, secrets: "Secrets") -> list[str]:
        """Return the surroundings of each secret in the reports, with the secret's name."""
        return [
            f"{name}: {text[max(0, text.find(value) - 300) : text.find(value)]}"
            for text in self.texts
            for name, value in secrets.values.items()
            if value in text
        ]


class Secrets:
    """Everything that no report may contain. Its ``repr()`` does not show it either."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def add_grants(self, sandbox: Sandbox) -> None:
        """Add all tokens that Keap accepts at this moment."""
        for number, grant in enumerate(sandbox.live_grants, len(self.values)):
            self.values[f"refresh token {number}"] = grant.refresh_token
            for access_token in grant.access_tokens:
                self.values[f"access token {number}"] = access_token


@contextmanager
def reporting() -> Iterator[Reports]:
    """Report to Sentry in the block, and collect what would be sent.

    More is reported than by default: log records have frames, and requests are traced.
    """
    reports = Reports()

    class Events(Transport):
        def capture_envelope(self, envelope: Envelope) -> None:
            reports.texts.append(envelope.serialize().decode())

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        transport=Events,
        attach_stacktrace=True,
        traces_sample_rate=1.0,
    )
    try:
        with sentry_sdk.isolation_scope():
            yield reports
    finally:
        sentry_sdk.get_client().close()
        sentry_sdk.get_global_scope().set_client(None)


@contextmanager
def mailing(reports: Reports) -> Iterator[None]:
    """Collect the mails that Django sends to administrators in the block."""

    class Mails(AdminEmailHandler):
        def send_mail(self, subject: Any, message: Any, *args: Any, **kwargs: Any) -> None:
            reports.texts += [message, kwargs["html_message"]]

    handler = Mails(include_html=True)
    handler.setLevel(logging.ERROR)
    loggers = [logging.getLogger(name) for name in ("django.request", "django_infusionsoft")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


class Browser(Client):
    """A test client whose requests pass through the WSGI handler, which Sentry's SDK wraps."""

    def visit(self, url: Callable[[], str]) -> Any:
        """Request a URL that is in no variable of the frames above the handler's."""
        return self.request(**_address(url()))

    def request(self, **request: Any) -> Any:
        environ = {**RequestFactory(SERVER_NAME="localhost")._base_environ(), **request}  # type: ignore[attr-defined]  # noqa: SLF001
        del request
        environ["HTTP_COOKIE"] = self.cookies.output(header="", sep=";")
        response = HttpResponse()

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[..., Any]:
            response.status_code = int(status.split(maxsplit=1)[0])
            return response.write

        application = WSGIHandler()  # django.setup() would reset the loggers
        # It would close the connection with the test's transaction.
        request_started.disconnect(close_old_connections)
        try:
            response.content = b"".join(application(environ, start_response))
        finally:
            request_started.connect(close_old_connections)
        return response


def _address(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    return {"PATH_INFO": parts.path, "QUERY_STRING": parts.query}
