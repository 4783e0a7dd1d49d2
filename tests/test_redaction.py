"""What exceptions show of the frames that they passed through."""

import logging
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from django_infusionsoft.redaction import Secret, clears_locals, hide_query_from_sentry


def variables(error: BaseException | None) -> Iterator[object]:
    """Yield the variables in the frames of an exception, except for those of the tests."""
    traceback = error.__traceback__ if error else None
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_name.startswith("test_"):
            yield from traceback.tb_frame.f_locals.values()
        traceback = traceback.tb_next


def parse(text: str) -> int:
    return int(text)


@clears_locals
def parse_or_fail(text: str) -> int:
    try:
        return parse(text)
    except ValueError as error:
        raise RuntimeError("not a number") from error


def test_secret_is_hidden_in_reprs_only() -> None:
    secret = Secret("abc")
    assert (repr([secret]), f"{secret}", secret) == ("[<secret>]", "abc", "abc")


def test_exception_and_its_causes_leave_without_variables() -> None:
    with pytest.raises(RuntimeError) as caught:
        parse_or_fail("abc")
    found = [*variables(caught.value), *variables(caught.value.__cause__)]
    assert "abc" not in map(str, found)
    assert caught.traceback[-1].name == "parse_or_fail"


def test_exception_that_the_caller_handles_keeps_its_variables() -> None:
    with pytest.raises(RuntimeError) as caught:
        try:
            parse("of the caller")
        except ValueError:
            parse_or_fail("abc")
    cause = caught.value.__cause__
    assert cause is not None
    assert "of the caller" in variables(cause.__context__)


def log_of_the_app(text: str) -> Exception:
    """Fail and log it, in a frame of the app's."""
    source = (
        "def log(text):\n"
        "    try:\n"
        "        parse(text)\n"
        "    except ValueError as error:\n"
        "        del text\n"
        "        logger.exception('failed')\n"
        "        return error\n"
    )
    names: dict[str, Any] = {
        "__name__": "django_infusionsoft.example",
        "parse": parse,
        "logger": logging.getLogger("django_infusionsoft"),
    }
    exec(source, names)  # noqa: S102
    error: Exception = names["log"](text)
    return error


def test_logged_exception_loses_its_variables_and_the_one_that_the_site_handles_keeps_them() -> (
    None
):
    try:
        parse("of the site")
    except ValueError as handled:
        logged = log_of_the_app("abc")
        kept = [*variables(handled)]
        is_chained = logged.__context__ is handled
    assert is_chained
    assert "of the site" in kept
    assert "abc" not in map(str, variables(logged))


class Scope:
    """As Sentry's: shared by all requests unless an integration forks it for each."""

    def __init__(self, processors: list[Callable[..., Any]]) -> None:
        self._event_processors = processors

    def add_event_processor(self, processor: Callable[..., Any]) -> None:
        self._event_processors.append(processor)


def client(*, is_active: Callable[[], bool]) -> SimpleNamespace:
    return SimpleNamespace(is_active=is_active)


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"get_client": lambda: client(is_active=lambda: True)},
        {"get_client": lambda: client(is_active=lambda: 1 / 0 > 0), "get_isolation_scope": Scope},
    ],
    ids=["1.x", "without scopes", "error"],
)
def test_another_version_of_sentry_raises_no_error(
    monkeypatch: pytest.MonkeyPatch, names: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, "sentry_sdk", SimpleNamespace(**names))
    hide_query_from_sentry()


def test_shared_scope_of_sentry_gets_one_event_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    processors: list[Callable[..., Any]] = []
    scope = Scope(processors)
    sentry: Any = SimpleNamespace(
        get_client=lambda: client(is_active=lambda: True), get_isolation_scope=lambda: scope
    )
    monkeypatch.setitem(sys.modules, "sentry_sdk", sentry)
    hide_query_from_sentry()
    hide_query_from_sentry()
    (processor,) = processors
    event = {"request": {"query_string": "code=abc", "url": "/"}}
    assert processor(event, {}) == {"request": {"url": "/"}}
