"""Many processes meet one expired credential, on whichever database the run has."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from subprocess import PIPE

import pytest
from django.db import connection
from django.utils import timezone

from django_infusionsoft.models import Credential
from django_infusionsoft.sandbox import Sandbox
from tests.processes import started

PROCESSES, THREADS = 4, 4


@pytest.mark.django_db(transaction=True)
def test_one_refresh_serves_all_when_processes_and_threads_ask_at_once(
    sandbox: Sandbox, expired: Credential, database_url: str
) -> None:
    gate = sandbox.hold("after")
    with ExitStack() as stack:
        racers = [
            stack.enter_context(
                started(
                    "-m",
                    "tests.racer",
                    "ab123",
                    str(THREADS),
                    database_url=database_url,
                    settings=sandbox.settings,
                    stdin=PIPE,
                    stdout=PIPE,
                )
            )
            for _ in range(PROCESSES)
        ]
        for racer in racers:
            assert racer.stdout
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin
            racer.stdin.write("go\n")
            racer.stdin.flush()
        gate.wait_until_processed(timeout=20)
        gate.release()
        answers = [json.loads(racer.stdout.readline()) for racer in racers if racer.stdout]
    expired.refresh_from_db()
    assert [token for process in answers for token in process] == [expired.access_token] * (
        PROCESSES * THREADS
    )
    assert [request.outcome for request in sandbox.token_requests] == ["rotated"]
    assert expired.generation == 2


@pytest.mark.django_db(transaction=True)
def test_every_way_to_refresh_shares_one_refresh_when_all_are_used_at_once(
    sandbox: Sandbox, expired: Credential
) -> None:
    Credential.objects.update(refresh_at=timezone.now() - timedelta(seconds=1))
    old = expired.access_token
    gate, start = sandbox.hold("after"), threading.Barrier(8)

    def use(way: str) -> object:
        credential = Credential.objects.for_account("ab123")
        start.wait()
        try:
            match way:
                case "session":
                    return credential.session().get("v2/contacts").status_code
                case "refresh":
                    credential.refresh()
                    return None
                case "run":
                    return Credential.objects.refresh_due().as_dict()
                case _:
                    return credential.get_access_token()
        finally:
            connection.close()

    ways = ["session", "refresh", "run", "token"] * 2
    with ThreadPoolExecutor(len(ways)) as pool:
        calls = [pool.submit(use, way) for way in ways]
        gate.wait_until_processed()
        gate.release()
        results = [call.result() for call in calls]
    expired.refresh_from_db()
    assert expired.access_token != old
    assert (sandbox.replays, len(sandbox.token_requests)) == (0, 1)
    assert results[0] == results[4] == 200
    assert results[3] == results[7] == expired.access_token
