"""Amounts in Keap's three forms (keap-facts 14)."""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Final

# Of a currency's unit, in the form that has an object.
MINOR_DIGITS: Final = 2


def read_amount(value: object) -> Decimal:
    """Return the amount that a value of Keap's stands for, in units of its currency.

    :param value: an object of v2 with hundredths (``{"amount": 1250, "currency_code": "USD"}``),
        a number (``12.5``), or v1's text (``"12.50"``).
    :raises ValueError: it is none of these.
    """
    is_object = isinstance(value, Mapping)
    number = value.get("amount") if isinstance(value, Mapping) else value
    if isinstance(number, int | float | str | Decimal) and not isinstance(number, bool):
        try:
            amount = Decimal(str(number))
        except InvalidOperation:
            amount = Decimal("NaN")
        if amount.is_finite():
            return amount.scaleb(-MINOR_DIGITS) if is_object else amount
    raise ValueError(f"{value!r} is no amount.")


def write_hundredths(amount: Decimal) -> int:
    """Return an amount as v2 takes the ``price`` of a product: ``1250`` for 12.50.

    :raises ValueError: it has a fraction of a hundredth.
    """
    hundredths = int(amount.scaleb(MINOR_DIGITS))
    if Decimal(hundredths).scaleb(-MINOR_DIGITS) != amount:
        raise ValueError(f"{amount} has more than {MINOR_DIGITS} decimals.")
    return hundredths
