"""Serves metrics to Prometheus over HTTP. Both processes open it."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from zfserve_runtime.grpc.listener import host_and_port
from zfserve_runtime.telemetry.metrics import Metrics

MAX_SCRAPES = 16
"""Connections to the metrics port at a time. More are closed."""

IDLE_TIMEOUT_S = 5.0
"""Seconds after which a silent connection is closed."""


class MetricsEndpoint:
    """Serves `metrics` at http://address:port/metrics from a daemon thread until it is closed.

    Each connection holds a thread and a file, even if it is silent, so their number and their age are limited.

    Args:
        metrics: the metrics to serve.
        port: the port to listen on. 0 takes a free one.
        address: the host to listen on. An IPv6 address may have brackets.

    Attributes:
        port: the port that the endpoint listens on.

    Raises:
        OSError: the address cannot be bound. The message names the address and the flag.
    """

    def __init__(self, metrics: Metrics, port: int, address: str = "127.0.0.1") -> None:
        self._address = address.strip("[]")
        try:
            self._server = _Server((self._address, port), _Handler)
        except OSError as error:
            place = host_and_port(address, port)
            raise OSError(f"cannot listen on {place}; is it in use? choose another with --metrics-port") from error
        self._server.set_app(make_wsgi_app(metrics.registry))
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stops serving."""
        shutdown = threading.Thread(target=self._server.shutdown)
        shutdown.start()
        # The server checks twice a second whether to stop, and at each connection. This connection makes it stop now.
        with suppress(OSError):
            socket.create_connection((self._address, self.port), timeout=1).close()
        shutdown.join()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "MetricsEndpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Handler(WSGIRequestHandler):
    timeout = IDLE_TIMEOUT_S

    def handle(self) -> None:
        with suppress(OSError):  # the connection was silent for too long, or is gone
            super().handle()

    def log_message(self, *arguments: object) -> None:
        """Logs nothing: scrapes would only fill the log."""


class _Server(ThreadingWSGIServer):
    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self._free = threading.BoundedSemaphore(MAX_SCRAPES)
        with suppress(OSError):  # an invalid address is refused when it is bound
            self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()
