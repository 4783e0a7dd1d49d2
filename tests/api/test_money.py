"""Amounts in Keap's three forms."""

from decimal import Decimal

import pytest

from django_infusionsoft.api.money import read_amount, write_hundredths


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"amount": 1250, "currency_code": "USD"}, "12.50"),
        ({"amount": 5}, "0.05"),
        (12.5, "12.5"),
        (0.1, "0.1"),
        (12, "12"),
        ("12.50", "12.50"),
        (Decimal("12.50"), "12.50"),
        ("-3", "-3"),
    ],
)
def test_each_form_is_read_exactly(value: object, expected: str) -> None:
    assert read_amount(value) == Decimal(expected)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "free",
        {},
        {"amount": None},
        {"amount": "NaN"},
        True,
        "NaN",
        "12,50",
        [],
        float("inf"),
    ],
)
def test_anything_else_is_an_error(value: object) -> None:
    with pytest.raises(ValueError, match="is no amount"):
        read_amount(value)


def test_price_of_a_product_is_written_in_hundredths() -> None:
    assert write_hundredths(Decimal("12.50")) == 1250
    with pytest.raises(ValueError, match="more than 2 decimals"):
        write_hundredths(Decimal("12.505"))
