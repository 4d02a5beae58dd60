"""A web server of this process, on a port of this machine, that answers as a handler says."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Handler = Callable[..., BaseHTTPRequestHandler]


@contextmanager
def listening(
    handler: Handler, *, host: str = "127.0.0.1", certificate: tuple[Path, Path] | None = None
) -> Iterator[ThreadingHTTPServer]:
    """Serve until the block ends, at the port that the server names; over TLS with a certificate and its key."""
    server = ThreadingHTTPServer((host, 0), handler)
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*certificate)
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Quiet:
    """What lets a handler say nothing on the terminal."""

    def log_message(self, *_: Any) -> None:
        """Leave it out."""
