"""What exceptions show of the frames that they passed through."""

from collections.abc import Iterator

import pytest

from django_infusionsoft.redaction import Secret, clears_locals


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
