"""What an answer says about Keap's limits, in each form of its headers."""

import pytest

from django_infusionsoft.api.quota import UNKNOWN, Limit, Quota
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox


def family(scope: str, unit: str, limit: str, used: str, available: str) -> dict[str, str]:
    values = {"time-unit": unit, "limit": limit, "used": used, "available": available}
    return {f"X-Keap-{scope}-{part}": value for part, value in values.items()}


PRODUCT = {
    **family("Product-Quota", "day", "150000", "10", "149990"),
    **family("Product-Throttle", "minute", "1500", "1", "1499"),
}
DAY, MINUTE = Limit(150_000, 10, 149_990), Limit(1500, 1, 1499)
TENANT_MINUTE, TENANT_DAY = Limit(10_000, 3, 9997), Limit(250_000, 4, 249_996)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, Quota()),
        (PRODUCT, Quota(minute=MINUTE, day=DAY)),
        (
            family("Tenant-Throttle", "minute|day", "10000|250000", "3|4", "9997|249996"),
            Quota(tenant_minute=TENANT_MINUTE, tenant_day=TENANT_DAY),
        ),
        (
            family("Tenant-Throttle", "day | minute", "250000 | 10000", "4 | 3", "249996 | 9997"),
            Quota(tenant_minute=TENANT_MINUTE, tenant_day=TENANT_DAY),
        ),
        (
            family("Tenant-Throttle", "minute", "10000", "3", "9997"),
            Quota(tenant_minute=TENANT_MINUTE),
        ),
        # Of a 401: the numbers are blank.
        (family("Product-Quota", "day", "", "", ""), Quota()),
        (family("Tenant-Throttle", "minute|day", "|", "", "|"), Quota()),
        (family("Product-Quota", "", "", "", ""), Quota()),
        (
            family("Tenant-Throttle", "minute|day", "10000", "many", "-1"),
            Quota(tenant_minute=Limit(10_000, None, None)),
        ),
    ],
)
def test_each_form_of_the_headers_is_read(headers: dict[str, str], expected: Quota) -> None:
    assert Quota.in_headers(headers) == expected


def test_old_names_of_the_headers_are_read() -> None:
    old = {name.replace("X-Keap-", "X-Apigee-"): value for name, value in PRODUCT.items()}
    assert Quota.in_headers(old) == Quota(minute=MINUTE, day=DAY)


def test_session_has_the_quota_of_its_last_answer(
    sandbox: Sandbox, credential: Credential
) -> None:
    with credential.session() as session:
        assert session.quota == Quota()
        first = session.get("v2/contacts")
        assert session.quota == Quota.of(first)
        assert UNKNOWN not in (session.quota.minute, session.quota.tenant_day)
        before = session.quota.minute.used
        session.get("v2/contacts")
        assert session.quota.minute.used == (before or 0) + 1
