"""Servers and programs on this machine that tests need.

A test is skipped if its server or program is missing, and the end of the run says so. If
``INFUSIONSOFT_TESTS_REQUIRE`` names it (comma-separated: postgresql, mariadb, redis, rabbitmq,
browser, curl, gettext, pgbouncer, php; or ``all``), the test fails instead.
"""

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote

from django.db import Error, connection

REQUIRE = "INFUSIONSOFT_TESTS_REQUIRE"
CONNECT_TIMEOUT_SECONDS = 3
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Broker:
    """A message broker for real Celery workers."""

    title: str
    variable: str
    default_url: str

    @property
    def url(self) -> str:
        return os.environ.get(self.variable) or self.default_url

    def problem(self) -> str:
        """Return why the broker cannot be used, or an empty string."""
        if not find_spec("celery"):
            return "Celery is not installed here"
        from amqp.exceptions import AMQPError
        from kombu import Connection
        from kombu.exceptions import KombuError

        try:
            with Connection(self.url, connect_timeout=CONNECT_TIMEOUT_SECONDS) as broker:
                broker.ensure_connection(max_retries=1, interval_start=0)
        except (OSError, KombuError, AMQPError) as error:
            return (
                f"{self.title} does not answer at {self.url} ({error}). "
                f"Start it there, or set {self.variable}"
            )
        return ""


BROKERS = {
    "redis": Broker("Redis", "INFUSIONSOFT_TESTS_REDIS_URL", "redis://127.0.0.1:6379/9"),
    "rabbitmq": Broker(
        "RabbitMQ", "INFUSIONSOFT_TESTS_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//"
    ),
}


def is_required(service: str) -> bool:
    named = {name.strip() for name in os.environ.get(REQUIRE, "").split(",")}
    return bool(named & {service, "all"})


def chromium_options() -> dict[str, Any]:
    """Return the options to launch this machine's Chromium without network use of its own."""
    return {
        "executable_path": chromium(),
        "args": [
            "--no-sandbox",  # root, as in a container, cannot use the sandbox
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
        ],
    }


def chromium() -> str | None:
    """Return the path of Chromium, if there is one."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def browser_problem() -> str:
    """Return why no browser can be used, or an empty string."""
    if not find_spec("playwright"):
        return "Playwright is not installed here"
    return "" if chromium() else f"no Chromium on PATH (looked for {', '.join(CHROMIUM_NAMES)})"


def database_title() -> str:
    """Return the name of the database system that this run uses."""
    # Not Django's display_name, which asks the server whether it is MariaDB or MySQL.
    return {"mysql": "MariaDB", "postgresql": "PostgreSQL", "sqlite": "SQLite"}[connection.vendor]


def database_url() -> str:
    """Return the URL of this process's database for other processes."""
    if connection.vendor == "sqlite":
        return f"sqlite:///{connection.settings_dict['NAME']}"
    database = {name: quote(str(value)) for name, value in connection.settings_dict.items()}
    scheme = {"mysql": "mysql", "postgresql": "postgres"}[connection.vendor]
    return scheme + "://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format_map(database)


def database_problem() -> str:
    """Return why the server in ``DATABASE_URL`` cannot be used, or an empty string."""
    if connection.vendor == "sqlite":
        return ""
    parameters = connection.get_connection_params()
    if connection.vendor == "mysql":
        parameters.pop("database", None)  # created by the run itself
        parameters["connect_timeout"] = CONNECT_TIMEOUT_SECONDS
    try:
        with connection.wrap_database_errors:
            connection.get_new_connection(parameters).close()
    except Error as error:
        where = "{HOST}:{PORT}".format_map(connection.settings_dict)
        first_line = str(error).splitlines()[0]
        return f"{database_title()} refuses the connection at {where} ({first_line})"
    return ""
