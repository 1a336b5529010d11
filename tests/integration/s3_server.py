"""An S3-compatible server on loopback that fails now and then: `python s3_server.py RATE SEED`.

Prints its port, then a line for each request that it failed: some are answered 503, of some the connection is closed.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUSY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>'


class Failing:
    """WSGI: `rate` of the requests to `app` fail."""

    def __init__(self, app: Callable[..., Iterable[bytes]], rate: float, seed: int) -> None:
        self._app = app
        self._rate = rate
        self._rng = random.Random(seed)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self._rng.random() >= self._rate:
            return self._app(environ, start_response)
        print("failed", environ["REQUEST_METHOD"], environ["PATH_INFO"], flush=True)
        if self._rng.random() < 0.5:
            environ["werkzeug.socket"].close()
            raise ConnectionError
        start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Connection", "close")])
        return [BUSY]


if __name__ == "__main__":
    logging.getLogger("werkzeug").disabled = True
    application = Failing(DomainDispatcherApplication(create_backend_app), float(sys.argv[1]), int(sys.argv[2]))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()
