"""A web server for one WSGI application, in a thread of the test or in a process of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def server_of(application: Any) -> WSGIServer:
    """Return a server on a free port, which does not serve yet."""
    return make_server("127.0.0.1", 0, application, _Server, _Handler)


@contextmanager
def serving(application: Any) -> Iterator[str]:
    """Serve in a thread; yield the URL, without a slash at the end."""
    with server_of(application) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
