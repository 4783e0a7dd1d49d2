"""`python -m django_infusionsoft.sandbox`: run the sandbox as a process."""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields
from ipaddress import ip_address
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .faults import NAMED, named
from .people import Account, Client
from .plan import ENDPOINTS
from .sandbox import Sandbox
from .storage import StateFileError
from .switches import Switches

DEFAULT_PORT = 8765


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sandbox until SIGINT or SIGTERM; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        sandbox = _sandbox(options)
    except (OSError, OverflowError, StateFileError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        print(f"The sandbox cannot start. {reason}", file=sys.stderr)
        return 2
    with sandbox:
        _introduce(sandbox, options)
        stop.wait()
    return 0


def _sandbox(options: argparse.Namespace) -> Sandbox:
    sandbox = Sandbox(
        host=options.host,
        port=options.port,
        accounts=_accounts(options),
        clients=[Client(options.client_id, options.client_secret)],
        switches=Switches(**{each.name: getattr(options, each.name) for each in fields(Switches)}),
        state_file=options.state_file,
        access_log=None if options.quiet else _log,
    )
    for line in options.plan:
        endpoint, _, fault = line.partition(":")
        sandbox.plan(fault, endpoint=endpoint, times=None)
    return sandbox


def _accounts(options: argparse.Namespace) -> list[Account] | None:
    named_accounts = [Account(*text.split("=", 1)) for text in options.account]
    numbered = [Account(f"bn{number:06}", f"Bench {number}") for number in range(options.accounts)]
    return named_accounts + numbered or None


def _introduce(sandbox: Sandbox, options: argparse.Namespace) -> None:
    if not _is_loopback(options.host):
        print(
            "Warning: others on the network can reach the sandbox, and its logins are public.",
            file=sys.stderr,
        )
    print(f"Keap sandbox, a stand-in for development: {sandbox.url}")
    for name, value in sandbox.settings.items():
        print(f'{name} = "{value}"')
    for user in sandbox.users:
        shown = ", ".join(f"{each.title} ({each.app_id})" for each in user.accounts[:5])
        more = f" and {len(user.accounts) - 5} more" if len(user.accounts) > 5 else ""
        print(f"Login: {user.email}, password: {user.password}, for {shown}{more}")
    print("Ctrl-C stops it.", flush=True)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m django_infusionsoft.sandbox",
        description="A stand-in for Keap on this machine, for demos and tests.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    add("--port", type=int, default=DEFAULT_PORT, help="0 picks a free port (default %(default)s)")
    add("--client-id", default=Client().client_id, help="default %(default)s")
    add("--client-secret", default=Client().client_secret, help="default %(default)s")
    add(
        "--account",
        action="append",
        default=[],
        metavar="APPID[=NAME]",
        help="an account to use instead of the built-in ones; may be repeated",
    )
    add(
        "--accounts",
        type=int,
        default=0,
        metavar="N",
        help="create this many accounts, starting at bn000000",
    )
    add("--state-file", metavar="PATH", help="keep tokens and contacts across restarts, in a file")
    add("--quiet", action="store_true", help="do not print a line per request")
    add(
        "--plan",
        action="append",
        default=[],
        metavar="ENDPOINT:FAULTS",
        type=_plan_line,
        help="apply faults to all requests to an endpoint, such as refresh:latency=0.05; "
        f"endpoints: {', '.join(ENDPOINTS)}; faults: {', '.join(NAMED)}",
    )
    _add_switches(parser.add_argument_group("switches: which behaviour of Keap to simulate"))
    return parser


def _plan_line(text: str) -> str:
    endpoint, _, fault = text.partition(":")
    if endpoint not in ENDPOINTS:
        raise argparse.ArgumentTypeError(f"unknown endpoint {endpoint!r}")
    try:
        named(fault)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _add_switches(group: argparse._ArgumentGroup) -> None:
    hints = get_type_hints(Switches)
    for each in fields(Switches):
        flag = "--" + each.name.replace("_", "-")
        kind: dict[str, Any] = {"type": float, "metavar": "NUMBER"}
        if get_origin(hints[each.name]) is Literal:
            kind = {"choices": get_args(hints[each.name])}
        elif hints[each.name] is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        text = f"{each.metadata['help']} (default %(default)s)"
        group.add_argument(flag, default=each.default, help=text, **kind)


if __name__ == "__main__":
    sys.exit(main())
