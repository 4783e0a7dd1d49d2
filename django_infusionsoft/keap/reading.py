"""Reading the body of an answer: within a time, and up to a size."""

import socket
from io import BytesIO
from typing import Final

from urllib3.exceptions import ReadTimeoutError
from urllib3.response import BaseHTTPResponse

from django_infusionsoft import elapsed

# The timeout for reading what has already arrived. A timeout of 0 would end the read too early.
SHORTEST_WAIT_SECONDS: Final = 0.001
LONGEST_WAIT_SECONDS: Final = 86_400.0  # sockets take no infinite timeout
CHUNK_BYTES: Final = 65_536
# urllib3 before 2.6 decompresses a whole chunk, to a thousand times its size.
COMPRESSED_CHUNK_BYTES: Final = 8192


def read(
    response: BaseHTTPResponse, limit: int, *, ends_at: float, sock: socket.socket | None
) -> bytes | None:
    """Return the body, decompressed; ``None`` if it has more than ``limit`` bytes.

    Data that has arrived is read, however late this process reads it.

    :param ends_at: the reading of ``elapsed.monotonic()`` until which to wait.
    :param sock: of the connection. Without it, each read has the connection's own timeout.
    :raises HTTPError: of urllib3: the rest did not arrive in time, or is broken.
    """
    is_compressed = "Content-Encoding" in response.headers
    size = COMPRESSED_CHUNK_BYTES if is_compressed else CHUNK_BYTES
    content = BytesIO()
    while content.tell() <= limit:
        left = ends_at - elapsed.monotonic()
        if sock is None:
            if left <= 0:
                raise ReadTimeoutError(None, None, "The body did not arrive in time.")  # type: ignore[arg-type]
        elif not response.closed:  # otherwise another call may be using the connection
            sock.settimeout(min(max(left, SHORTEST_WAIT_SECONDS), LONGEST_WAIT_SECONDS))
        # Only what has arrived so far: a whole chunk of a dripping body would take for ever.
        chunk = response.read1(size, decode_content=True)
        if not chunk:
            return content.getvalue()
        content.write(chunk)
    return None
