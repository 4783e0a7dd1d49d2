"""Ports on this machine."""

import socket

LOOPBACK = "127.0.0.1"


def choose(preferred: int, name: str) -> int:
    """Return the preferred port; if it is in use, print a message and return a free one."""
    if _is_free(preferred):
        return preferred
    port = any_free()
    print(f"Port {preferred} is in use, so the {name} uses port {port}.")
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        # As servers do: ignore connections of the last run that are still closing.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def any_free() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
    return port
