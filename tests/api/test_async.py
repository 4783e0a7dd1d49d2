"""Async code: the same rules, and nothing waits on the event loop."""

import asyncio
import gc
import pickle
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections
from django.test import override_settings

from django_infusionsoft.api import retries
from django_infusionsoft.api.async_session import AsyncCredentialSession
from django_infusionsoft.exceptions import (
    ApiError,
    ApiUnavailable,
    ConfigurationError,
    NotFound,
    RateLimited,
    WriteUnconfirmed,
)
from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox, faults
from tests.support import row

T = TypeVar("T")
pytest.importorskip("httpx2")
pytestmark = pytest.mark.django_db(transaction=True)

Use = Callable[[AsyncCredentialSession], Awaitable[T]]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close the connection of the thread that asgiref keeps for the database."""
    yield
    async_to_sync(sync_to_async(connections.close_all))()
    asyncio.run(sync_to_async(connections.close_all)())


def run(credential: Credential, use: Use[T], **options: Any) -> T:
    """Use a session in an event loop of its own."""

    async def work() -> T:
        async with credential.asession(**options) as session:
            return await use(session)

    return asyncio.run(work())


async def heartbeat(longest: list[float]) -> None:
    """Record the longest time in which the event loop stood still."""
    while True:
        started = time.monotonic()
        await asyncio.sleep(0.01)
        longest.append(time.monotonic() - started - 0.01)


def test_account_is_found_and_called(sandbox: Sandbox, credential: Credential) -> None:
    async def work() -> Any:
        found = await Credential.objects.afor_account("ab123")
        async with found.asession() as session:
            response = await session.get("v2/contacts")
            assert session.quota.minute.used
            return response.status_code, response.json()["contacts"][0]["given_name"]

    assert asyncio.run(work()) == (200, "Bea")


@pytest.mark.django_db
def test_transaction_of_a_test_is_seen(sandbox: Sandbox, expired: Credential) -> None:
    async def work() -> str:
        found = await Credential.objects.afor_account("ab123")
        return await found.aget_access_token()

    assert async_to_sync(work)() == row(expired).access_token
    assert len(sandbox.token_requests) == 1


def test_one_refresh_serves_all_tasks_and_the_loop_goes_on(
    sandbox: Sandbox, expired: Credential
) -> None:
    sandbox.plan(faults.latency(1.5), endpoint="refresh")
    beats: list[float] = []

    async def call() -> int:
        credential = await Credential.objects.afor_account("ab123")
        async with credential.asession() as session:
            return (await session.get("v2/contacts")).status_code

    async def work() -> list[int]:
        beating = asyncio.create_task(heartbeat(beats))
        # All other database work goes on meanwhile.
        refreshing = asyncio.gather(*(call() for _ in range(20)))
        await asyncio.sleep(0.2)
        started = time.monotonic()
        await sync_to_async(Credential.objects.count)()
        assert time.monotonic() - started < 1  # it does not wait for the refresh
        found = await refreshing
        beating.cancel()
        return found

    assert asyncio.run(work()) == [200] * 20
    assert len(sandbox.token_requests) == 1
    assert max(beats) < 0.25  # the machine may be busy


def test_calls_of_tasks_run_side_by_side(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.plan(faults.latency(0.2), endpoint="api", times=None)

    async def use(session: AsyncCredentialSession) -> float:
        started = time.monotonic()
        await asyncio.gather(*(session.get("v2/contacts") for _ in range(20)))
        return time.monotonic() - started

    assert run(credential, use) < 2  # 4 one after another


def test_access_token_is_refreshed(sandbox: Sandbox, credential: Credential) -> None:
    before = credential.access_token
    asyncio.run(credential.arefresh())
    assert row(credential).access_token == credential.access_token != before

    async def instead(rejected: str) -> str:
        return await credential.aaccess_token_instead_of(rejected)

    assert asyncio.run(instead(before)) == credential.access_token
    assert len(sandbox.token_requests) == 1


def test_refresh_of_a_cancelled_task_is_stored(sandbox: Sandbox, expired: Credential) -> None:
    gate = sandbox.hold("after")

    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await expired.aget_access_token()
        gate.release()

    asyncio.run(work())
    for _ in range(100):
        if row(expired).generation == 2:
            break
        time.sleep(0.1)
    assert row(expired).has_fresh_access_token


def test_sessions_of_a_loop_share_connections_and_close_them_at_its_end(
    credential: Credential,
) -> None:
    seen: set[object] = set()

    async def work() -> None:
        for _ in range(5):
            async with credential.asession() as session:
                response = await session.get("v2/contacts")
                seen.add(response.extensions["network_stream"].get_extra_info("socket").fileno())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            asyncio.run(work())
            async_to_sync(work)()
            gc.collect()
    assert len(seen) == 1  # the same number each time: none is open in between


def test_401_is_followed_by_one_refresh(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.revoke_access_tokens("ab123")

    async def use(session: AsyncCredentialSession) -> Any:
        responses = await asyncio.gather(*(session.get("v2/contacts") for _ in range(10)))
        return {each.status_code for each in responses}

    assert run(credential, use) == {200}
    assert len(sandbox.token_requests) == 1


def test_second_401_is_returned(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.plan(faults.answer(401, {}), endpoint="api", times=None)
    assert run(credential, lambda session: session.get("v2/contacts")).status_code == 401
    assert run(credential, lambda session: session.get("v2/contacts")).status_code == 401
    assert len(sandbox.token_requests) == 1


@pytest.mark.parametrize("fault", [faults.error_503(), faults.drop_after(), faults.throttled()])
def test_read_is_repeated(sandbox: Sandbox, credential: Credential, fault: Any) -> None:
    sandbox.plan(fault, endpoint="api")
    assert run(credential, lambda session: session.get("v2/contacts")).status_code == 200


def test_write_is_repeated_only_if_keap_has_not_acted(
    sandbox: Sandbox, credential: Credential
) -> None:
    async def post(session: AsyncCredentialSession) -> Any:
        return await session.call("POST", "v2/contacts", json={"given_name": "N"})

    for fault in (faults.drop_after(), faults.error_503()):
        sandbox.plan(fault, endpoint="api")
        with pytest.raises(WriteUnconfirmed):
            run(credential, post)
    nowhere = override_settings(INFUSIONSOFT_API_URL="http://127.0.0.1:9/crm/rest/")
    with nowhere, pytest.raises(ApiUnavailable, match="cannot be reached"):
        run(credential, post, max_wait=1)


def test_call_never_takes_longer_than_its_limit(sandbox: Sandbox, credential: Credential) -> None:
    sandbox.plan(faults.throttled(retry_after=60), endpoint="api", times=None)
    started = time.monotonic()
    with pytest.raises(RateLimited) as caught:
        run(credential, lambda session: session.get("v2/contacts"))
    assert (caught.value.retry_after or 0) >= 60
    sandbox.clear_plan()
    sandbox.plan(faults.latency(20), endpoint="api", times=None)
    with pytest.raises(ApiUnavailable):
        run(credential, lambda session: session.get("v2/contacts"), max_wait=0.5)
    assert time.monotonic() - started < 5


def test_answer_has_a_limit(sandbox: Sandbox, credential: Credential) -> None:
    with pytest.raises(ApiError, match="larger than 10 bytes"):
        run(credential, lambda session: session.get("v2/contacts"), max_response_bytes=10)


def test_error_holds_no_access_token(sandbox: Sandbox, credential: Credential) -> None:
    with pytest.raises(NotFound) as caught:
        run(credential, lambda session: session.call("GET", "v2/contacts/999"))
    assert credential.access_token.encode() not in pickle.dumps(caught.value)
    assert "Authorization" not in caught.value.response.request.headers


@pytest.mark.parametrize("url", ["https://evil.example/", "http://127.0.0.1:1/crm/rest/v2/x"])
def test_other_hosts_are_refused_before_anything_is_sent(
    sandbox: Sandbox, expired: Credential, url: str
) -> None:
    with pytest.raises(ConfigurationError):
        run(expired, lambda session: session.get(url))
    assert sandbox.token_requests == []


def test_only_reads_follow_redirects_within_the_api(
    sandbox: Sandbox, credential: Credential
) -> None:
    here = faults.answer(302, headers={"Location": "/crm/rest/v1/contacts"})
    sandbox.plan(here, endpoint="api")
    response = run(credential, lambda session: session.get("v2/contacts"))
    assert (response.status_code, len(response.history)) == (200, 1)
    sandbox.plan(here, endpoint="api")
    assert run(credential, lambda session: session.post("v2/contacts")).status_code == 302
    sandbox.plan(faults.answer(302, headers={"Location": "https://x.example/"}), endpoint="api")
    assert run(credential, lambda session: session.get("v2/contacts")).status_code == 302


def test_each_item_is_yielded_once_although_pages_fail(
    sandbox: Sandbox, credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.01)

    async def use(session: AsyncCredentialSession) -> list[str]:
        found: list[str] = []
        async for contact in session.items("v1/contacts", limit=1):
            if not found:
                sandbox.revoke_access_tokens("ab123")
                sandbox.plan(faults.throttled(retry_after=0), endpoint="api")
                sandbox.plan(faults.drop_midway(), endpoint="api")
            found.append(str(contact["id"]))
        return found

    assert run(credential, use) == [each["id"] for each in sandbox.contacts]


def test_custom_fields_are_updated_and_read_by_label(
    sandbox: Sandbox, credential: Credential
) -> None:
    url = f"v2/contacts/{sandbox.contacts[0]['id']}"

    async def use(session: AsyncCredentialSession) -> dict[str, Any]:
        for label in ("Shoe Size", "Color"):
            field = {"label": label, "field_type": "TEXT"}
            await session.call("POST", "v2/contacts/model/customFields", json=field)
        await session.update(url, {"custom_fields": {"Shoe Size": "38"}})
        color = await session.custom_fields("contacts", {"Color": "blue"})
        await session.update(url, {"custom_fields": color})
        found = await session.call("GET", url)
        return await session.custom_field_values("contacts", found)

    assert run(credential, use) == {"Shoe Size": "38", "Color": "blue"}


def test_session_of_requests_is_refused_on_an_event_loop(credential: Credential) -> None:
    async def work() -> None:
        credential.session().get("v2/contacts")

    with pytest.raises(SynchronousOnlyOperation, match="asession"):
        asyncio.run(work())


def test_session_of_requests_works_on_a_loop_that_allows_it(
    credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> int:
        return credential.session().get("v2/contacts").status_code

    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    assert asyncio.run(work()) == 200


def test_missing_library_is_named(credential: Credential, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ConfigurationError, match=r"django-infusionsoft\[async\]"):
        run(credential, lambda session: session.get("v2/contacts"))
