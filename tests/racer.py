"""One process of a race: its threads ask for an access token at one word from outside.

``python -m tests.racer ACCOUNT THREADS``: prints "ready", waits for a line, prints the answers.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import django
from django.db import connection


def main(account: str, threads: int) -> None:
    django.setup()
    from django_infusionsoft.models import Credential

    loaded = [Credential.objects.for_account(account) for _ in range(threads)]
    barrier = Barrier(threads)

    def ask(credential: Credential) -> str:
        try:
            barrier.wait()
            return credential.get_access_token()
        except Exception as error:  # noqa: BLE001  # the test shows whatever it was
            return f"{type(error).__name__}: {error}"
        finally:
            connection.close()

    connection.close()
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    with ThreadPoolExecutor(threads) as pool:
        print(json.dumps(list(pool.map(ask, loaded))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
