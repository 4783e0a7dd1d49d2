"""The shell of a project: ``python -m tests.system.shell_process`` in its folder.

It reads lines of JSON: the code, and the files for its output and its errors. It runs each like
``manage.py shell -c``, but in a fork, so that Python and Django start only once. It writes the
exit code of each.
"""

import json
import os
import sys

import django
from django.core.management import call_command


def main() -> None:
    django.setup()
    for line in sys.stdin:
        if not (child := os.fork()):
            run(*json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


def run(code: str, output: str, errors: str) -> None:
    for number, path in ((1, output), (2, errors)):
        with open(path, "w") as file:  # noqa: PTH123
            os.dup2(file.fileno(), number)
    call_command("shell", command=code)


if __name__ == "__main__":
    main()
